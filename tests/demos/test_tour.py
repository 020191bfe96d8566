"""The notebook runs from top to bottom, and shows what it says."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

TOUR = Path(__file__).resolve().parents[2] / "demos" / "tour.ipynb"


@pytest.fixture(scope="module")
def cells():
    """Return the cells of code after a run in a fresh kernel; a cell that fails raises.

    Two trainings are followed, not six.
    """
    notebook = nbformat.read(TOUR, as_version=4)
    [trainings] = [cell for cell in notebook.cells if "in range(6)]" in cell.source]
    trainings.source = trainings.source.replace("in range(6)]", "in range(2)]")
    NotebookClient(notebook, timeout=300).execute()
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown(cell):
    """Return what a cell displays, by its kind."""
    kinds = {}
    for output in cell.outputs:
        kinds |= output.get("data", {})
    return kinds


def test_every_picture_is_drawn(cells):
    drawn = [cell for cell in cells if "pyplot." in cell.source or "ts.plot_" in cell.source]
    assert len(drawn) >= 3
    for cell in drawn:
        assert "image/png" in shown(cell)


def test_results_are_shown_as_blocks_and_tables(cells):
    certificate = next(c for c in cells if c.source.endswith("\ncertificate"))
    assert "holds, a local minimum" in shown(certificate)["text/plain"]
    assert "text/html" in shown(certificate)
    for source in ("net", "theta.W[2]", "found", "end"):
        cell = next(c for c in cells if c.source.split("\n")[-1] == source)
        assert "text/html" in shown(cell), source


def test_verdicts_are_spurious_and_risks_are_pytorchs(cells):
    verdicts = [c for c in cells if "verdict" in c.source]
    assert len(verdicts) == 2
    for cell in verdicts:
        assert shown(cell)["text/plain"] == "'spurious local minimum'"
    risks = next(c for c in cells if "to_torch" in c.source)
    words = shown(risks)["text/plain"].strip("()").replace("np.float64(", "").replace(")", "")
    theirs, ours = map(float, words.split(","))
    assert theirs == pytest.approx(ours, rel=1e-12)


def test_it_is_stored_without_outputs():
    for cell in nbformat.read(TOUR, as_version=4).cells:
        assert not cell.get("outputs")
