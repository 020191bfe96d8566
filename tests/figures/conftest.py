"""What the tests of figures share: to look into a figure that was drawn to a file."""

import pytest
from matplotlib.figure import Figure


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """Return what draws: ``saved(draw, what)`` is the figure that draw(path, what) saves, its path.

    The figure has the dots of the file, which has no content unless it has to be `rendered`.
    """

    def call(draw, *what, rendered=False):
        seen, save = [], Figure.savefig

        def savefig(figure, *args, dpi, **options):
            seen.append((figure, dpi))
            if rendered:
                return save(figure, *args, dpi=dpi, **options)
            figure.set_dpi(dpi)
            return figure.draw_without_rendering()

        with monkeypatch.context() as patch:
            patch.setattr(Figure, "savefig", savefig)
            draw(tmp_path / "drawn.png", *what)
        [(figure, dpi)] = seen
        figure.set_dpi(dpi)
        return figure, tmp_path / "drawn.png"

    return call
