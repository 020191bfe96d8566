"""What the figures share: colours, frames, titles, the letters of panels, and their files."""

from __future__ import annotations

import io
from pathlib import Path
from string import ascii_lowercase

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..files import MARK, as_path, whole_file

# Colours come in pairs that the colour-blind tell apart.
HIGHER, LOWER = "#5e3c99", "#d95f02"  # purple and orange: risks around a point
MINIMUM, ELSEWHERE = "#0072B2", "#D55E00"  # blue and vermilion: a minimum, what is lower than it
REACHED = "#009E73"  # green, which these two can be told from: the lowest that training reached
PRINTED, REPAIRED = "C3", "C0"  # red and blue: a statement of a paper at its word, and mended
PLUS, MINUS = "C0", "C3"  # blue and red: the signs of weights that are drawn as lines
ENTRIES = "RdBu_r"  # those of weights that are drawn as entries: red is positive, blue negative
SCREEN, PAGE = 100, 200  # dots per inch of figures for a screen, and for a page


class NotebookFigure(Figure):
    """A figure that IPython shows, whether pyplot is loaded or not."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png")
        return file.getvalue()


def window(width: float, height: float) -> Figure:
    """Return a new figure of pyplot, in inches; pyplot is loaded here, as it chooses a backend."""
    from matplotlib import pyplot

    return pyplot.figure(figsize=(width, height), layout="constrained")


def save_figure(path: str | Path, figure: Figure, dpi: int) -> None:
    """Write a figure as PNG or PDF, by the suffix of `path`; equal figures give equal bytes."""
    kind = figure_kind(path)
    with whole_file(path) as file:
        about = {"Software": MARK} if kind == "png" else {"Creator": MARK, "CreationDate": None}
        figure.savefig(file, format=kind, dpi=dpi, metadata=about)


def figure_kind(path: str | Path) -> str:
    """Return "png" or "pdf", or raise ValueError for a name that ends in neither."""
    kind = as_path(path).suffix.lower().removeprefix(".")
    if kind not in ("png", "pdf"):
        raise ValueError(f"figure: expected a name with .png or .pdf, got '{path}'")
    return kind


def panel_letters(count: int) -> str:
    """Return the letters of `count` panels: a, b, c, ...; ValueError if there are not so many."""
    if count > len(ascii_lowercase):
        raise ValueError(f"figure: expected at most {len(ascii_lowercase)} panels, got {count}")
    return ascii_lowercase[:count]


def set_title(ax: Axes, words: str, size: float, **options) -> None:
    """Write the title above the left end of the axes; `options` are those of its text."""
    ax.set_title(words, loc="left", fontsize=size, **options)


def open_frame(ax: Axes) -> None:
    """Leave the lines at the left and below of the frame around the axes."""
    ax.spines[["top", "right"]].set_visible(False)


def ordered_colours(count: int, first: float, last: float) -> np.ndarray:
    """Return colours (count, 4) from dark blue (0) to yellow (1), for what has an order."""
    return colormaps["viridis"](np.linspace(first, last, count))
