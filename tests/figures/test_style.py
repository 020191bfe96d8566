"""What the figures share: files are whole and the same again, and nothing else needs Matplotlib."""

import ast
import io
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

import tinyspur
from tinyspur.figures.style import (
    NotebookFigure,
    figure_kind,
    open_frame,
    ordered_colours,
    panel_letters,
    save_figure,
    set_title,
)

PACKAGE = Path(tinyspur.__file__).parent


def imports(path):
    """Return the modules that a file imports, names with a dot in front if relative."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("." * node.level + (node.module or ""))
    return found


def test_figures_alone_import_matplotlib_and_studies_no_figures():
    modules = [path for path in PACKAGE.rglob("*.py") if path.parent.name != "figures"]
    assert PACKAGE / "studies" / "smooth_survey.py" in modules
    for path in modules:
        names = imports(path)
        used = {name for name in names if name.split(".")[0] in ("matplotlib", "mpl_toolkits")}
        assert used <= ({"matplotlib.image"} if path == PACKAGE / "shown.py" else set())
        drawing = {name for name in names if "figures" in name.split(".")}
        public = {".figures.landscapes", ".figures.matrices"}
        allowed = public if path == PACKAGE / "__init__.py" else set()
        assert drawing == allowed, path


def some_figure():
    figure = Figure(figsize=(3, 2))
    ax = figure.subplots()
    ax.plot([0, 1], [1, 0])
    return figure


@pytest.mark.parametrize(
    ("name", "kind", "start"), [("a.png", "png", b"\x89PNG\r\n\x1a\n"), ("a.PDF", "pdf", b"%PDF-")]
)
def test_a_figure_is_written_as_its_name_says_and_with_the_same_bytes(name, kind, start, tmp_path):
    assert figure_kind(tmp_path / name) == kind
    written = []
    for folder in ("first", "second"):
        save_figure(tmp_path / folder / name, some_figure(), 50)
        written.append((tmp_path / folder / name).read_bytes())
    assert written[0] == written[1]
    assert written[0].startswith(start)
    assert b"CreationDate" not in written[0]
    if kind == "png":
        assert imread(tmp_path / "first" / name).shape == (100, 150, 4)


@pytest.mark.parametrize("name", ["figure.svg", "png", ".png", "figure.png.txt", ""])
def test_other_names_are_refused_and_nothing_is_written(name, tmp_path):
    for act in (figure_kind, lambda path: save_figure(path, some_figure(), 50)):
        with pytest.raises(ValueError, match=r"^figure: expected a name with \.png or \.pdf, got"):
            act(tmp_path / "folder" / name)
    assert not list(tmp_path.iterdir())


def test_letters_follow_the_alphabet_to_its_end():
    assert panel_letters(3) == "abc"
    assert panel_letters(26)[-1] == "z"
    with pytest.raises(ValueError, match=r"^figure: expected at most 26 panels, got 27$"):
        panel_letters(27)


def test_an_open_frame_has_two_lines_and_titles_start_at_the_left():
    ax = Figure().subplots()
    open_frame(ax)
    shown = {side for side, line in ax.spines.items() if line.get_visible()}
    assert shown == {"left", "bottom"}
    set_title(ax, "words", 9, linespacing=2)
    assert (ax.get_title(loc="left"), ax.get_title()) == ("words", "")
    assert ax._left_title.get_fontsize() == 9


def test_colours_in_order_are_different_and_brighter_and_brighter():
    colours = ordered_colours(7, 0.0, 0.9)
    assert colours.shape == (7, 4)
    brightness = colours[:, :3] @ [0.3, 0.6, 0.1]
    assert (brightness[1:] > brightness[:-1] + 0.02).all()


def test_a_notebook_shows_the_figure_as_png():
    figure = NotebookFigure(figsize=(3, 2), dpi=40)
    assert imread(io.BytesIO(figure._repr_png_())).shape == (80, 120, 4)
