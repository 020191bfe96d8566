"""A page of exact counterexamples to printed statements, and a proof file for each.

Each file is checked by a program that needs nothing of this package, and the page says what that
program printed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

from ..certificates.proofs import save_proof
from ..files import check_outputs, whole_file
from .counterexamples import ROWS
from .erratum import Erratum

PAGE = "README.md"
INTRODUCTION = """# Statements that fail as printed, in numbers to check with a pencil

Each of these is a small network with small integers as data, at which a statement fails as it is
printed. [CNN] is Liu, Fu & Yuan, *Spurious local minima provably exist for deep convolutional
neural networks* (OpenReview 0sjwFxqLHw3), [PWL] Liu, *Spurious local minima are common for deep
neural networks with piecewise linear activations* (arXiv:2102.13233); lemmas and equations have
their numbers there. Statements are in our words except in quotation marks. How tinyspur repairs
the constructions is said in [the derivations](../../tinyspur/constructions/README.md).

Three samples are the least that an affine map of one pixel does not fit. Four are used where one
more has to be set apart or another group is needed (E2, E6, E7, E10), and all four images of two
black or white pixels for Lemma 3.

R is the mean of half the squared distances of outputs o and targets y, and u = o - y; layers count
from 1; x⁺ is ReLU. A network is given by its layers, a point by its filters and biases in PyTorch's
shapes. Every file is checked in fractions by [check_proof.py](../check_proof.py), which needs
Python alone; what it says stands below each. `python demos/audit.py --exact` makes this page.
"""


def write_errata(folder: str | Path, checker: str | Path) -> list[str]:
    """Write the page and the proof files; return their names.

    `checker` is the program that each file is given to. Raises RuntimeError with its words where
    it does not accept one, OSError for a file of another kind in the folder.
    """
    folder, found = Path(folder), [row() for row in ROWS]
    names = [f"{name}.json" for erratum in found for name in erratum.proofs]
    check_outputs(folder, {PAGE: []} | dict.fromkeys(names, ("format", "claim", "points")))
    parts = [INTRODUCTION]
    for erratum in found:
        parts.append(_heading(erratum))
        for name, proof in erratum.proofs.items():
            save_proof(folder / f"{name}.json", proof)
            parts.append(_section(name, proof, checked(folder / f"{name}.json", checker)))
    with whole_file(folder / PAGE) as file:
        file.write("\n".join(parts).encode())
    return [*names, PAGE]


def checked(path: str | Path, checker: str | Path) -> str:
    """Return what the checker says of a proof file, in a process without other packages."""
    done = subprocess.run(
        [sys.executable, "-E", "-S", os.fspath(checker), os.fspath(path)],
        capture_output=True,
        encoding="utf-8",
    )
    if done.returncode:
        raise RuntimeError(f"checker: {done.stderr.strip() or done.returncode}")
    return done.stdout.partition("\n")[2]


def _heading(erratum: Erratum) -> str:
    """Return the words of an erratum."""
    title = erratum.place if erratum.name in erratum.place else f"{erratum.name}: {erratum.place}"
    statement, text = (
        textwrap.fill(words, 100, break_long_words=False, break_on_hyphens=False)
        for words in (f"**The statement**: {erratum.statement}", f"**Here**: {erratum.text}")
    )
    return f"## {title}\n\n{statement}\n\n{text}\n"


def _section(name: str, proof: dict, said: str) -> str:
    """Return the numbers of a proof file, and what the checker says."""
    spec = proof["network"]
    layers = ", ".join(" ".join(map(str, layer.values())) for layer in spec["layers"])
    lines = [f"input {spec['input']}; {layers}"]
    lines += [f"{key} = {_text(values)}" for key, values in proof["data"].items()]
    for title, point in proof["points"].items():
        lines += [f"{title}:", *(f"  {key} = {_text(array)}" for key, array in point.items())]
    if "direction" in proof:
        moved = {key: _text(array) for key, array in proof["direction"].items()}
        moved = {key: text for key, text in moved.items() if set(text) - set("[], 0")}
        lines += ["direction, 0 elsewhere:", *(f"  {key} = {text}" for key, text in moved.items())]
    numbers = "\n".join(lines)
    return f"""[{name}.json]({name}.json)

```text
{numbers}

{said.strip()}
```
"""


def _text(values: list) -> str:
    """Return nested lists of numbers without quotation marks."""
    return json.dumps(values).replace('"', "")
