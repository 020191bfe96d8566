"""The audit of one set of images, which the tests of its rows and of its findings look at."""

import contextlib
import functools
import io
from types import SimpleNamespace

import pytest
from shared import ROOT, Pickling, load_program

from tinyspur.refutations import escapes
from tinyspur.studies import findings as compared


@pytest.fixture(scope="package")
def audited(tmp_path_factory):
    """The program, run once on few images with a short search: what it found, said and wrote."""
    program, out = load_program(ROOT / "demos" / "audit.py"), tmp_path_factory.mktemp("audit")
    audit, found = program.audit, []

    def kept(*options):
        found.extend(audit(*options))
        return found

    search = functools.partial(compared.find_escape, starts=2, iterations=10)
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as said:
        patch.setattr(program, "audit", kept)
        patch.setattr(program, "processes", Pickling)
        patch.setattr(compared, "find_escape", search)
        patch.setattr(escapes, "TRIALS", 1)
        status = program.main(
            ["--samples", "200", "--seed", "1", "--workers", "2", "--out", str(out)]
        )
    return SimpleNamespace(status=status, findings=found, printed=said.getvalue(), out=out)


@pytest.fixture(scope="package")
def findings(audited):
    return {finding.name: finding for finding in audited.findings}
