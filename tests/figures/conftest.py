"""What the tests of figures share: to look into a figure that was drawn to a file."""

import functools

import pytest
from matplotlib.figure import Figure


def figure_of(path, draw, *what, rendered=False):
    """Return the figure that draw(path, what) saves, and its path.

    Nothing is laid out or written unless it has to be `rendered`.
    """
    seen, save = [], Figure.savefig

    def savefig(figure, *args, dpi, **options):
        seen.append((figure, dpi))
        return save(figure, *args, dpi=dpi, **options) if rendered else None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", savefig)
        draw(path, *what)
    [(figure, dpi)] = seen
    figure.set_dpi(dpi)
    return figure, path


@pytest.fixture
def saved(tmp_path):
    """Return what draws, see `figure_of`."""
    return functools.partial(figure_of, tmp_path / "drawn.png")


@pytest.fixture(scope="module")
def saved_once(tmp_path_factory):
    """The same, for figures that several tests look at."""
    return functools.partial(figure_of, tmp_path_factory.mktemp("figures") / "drawn.png")
