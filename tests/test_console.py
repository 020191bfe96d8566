"""Steps are named and timed, progress is for people, and errors and Ctrl-C are one line."""

import io
import re
import sys
import time

import pytest

from tinyspur.console import Stages, exit_status, silent, step


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self):
        return True


# Steps


def test_stages_keep_their_seconds_in_order():
    stages = Stages(io.StringIO())
    with stages("long", "working"):
        time.sleep(0.05)
    with stages("short", "resting", 3):
        pass
    assert list(stages.seconds) == ["long", "short"]
    assert 0.05 <= stages.seconds["long"] < 5
    assert 0 <= stages.seconds["short"] < stages.seconds["long"]


@pytest.mark.parametrize("total", [None, 3])
def test_a_step_is_named_when_it_starts_and_timed_when_it_ends(total):
    stream = io.StringIO()
    with step("fitting", total, stream=stream):
        assert stream.getvalue() == "fitting ..."
    assert re.fullmatch(r"fitting \.\.\. \d+\.\d s\n", stream.getvalue())


def test_a_step_in_a_file_is_one_line_however_often_it_advances():
    stream = io.StringIO()
    with step("fitting", 1000, 10, " images", stream) as bar:
        for n in bar.over(range(500)):
            bar.advance(1, f"R = {n}")
    assert re.fullmatch(r"fitting \.\.\. \d+\.\d s\n", stream.getvalue())


@pytest.mark.parametrize("total", [None, 3])
def test_a_step_says_nothing_where_stderr_is_closed(total, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", None)
    with step("fitting", total) as bar:
        bar.advance(1, "R = 1")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("total", [None, 3])
def test_a_stage_that_fails_ends_its_line_and_has_no_seconds(total):
    stream = io.StringIO()
    stages = Stages(stream)
    with pytest.raises(ValueError, match="stop"), stages("fit", "fitting", total):
        raise ValueError("stop")
    assert stream.getvalue() == "fitting ...\n"
    assert stages.seconds == {}


def test_on_a_terminal_the_seconds_count_up_until_the_step_ends():
    stream = Terminal()
    with step("fitting", stream=stream):
        time.sleep(1.3)
        assert stream.getvalue() == "fitting ...\rfitting ... 1 s"
    ended = stream.getvalue()
    assert re.fullmatch(r"fitting \.\.\. 1\.\d s\n", ended.rpartition("\r")[2])
    time.sleep(1.1)
    assert stream.getvalue() == ended


def test_on_a_terminal_a_bar_shows_how_much_of_the_total_is_done():
    stream = Terminal()
    with step("fitting", 4, 1, stream=stream) as bar:
        assert "1/4" in stream.getvalue()
        time.sleep(0.6)
        bar.advance(2, "R = 0.5")
        assert "3/4" in (shown := stream.getvalue())
        assert "R = 0.5" in shown
    assert re.fullmatch(r"fitting \.\.\. 0\.\d s\n", stream.getvalue().rpartition("\r")[2])


def test_what_is_counted_is_what_was_asked_for(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with step("fitting", 5) as bar:
        items = bar.over("abcde")
        assert [next(items), next(items), next(items)] == ["a", "b", "c"]
        assert bar.drawn.n == 2
        assert list(items) == ["d", "e"]
        assert bar.drawn.n == 5


def test_steps_are_named_on_stderr(capsys):
    with step("fitting"), silent("name", "nothing", 3) as bar:
        bar.advance(2)
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"fitting \.\.\. \d+\.\d s\n", err)


# The end


@pytest.mark.parametrize("kind", [ValueError, RuntimeError, OSError, MemoryError])
def test_an_error_in_the_input_is_one_line_on_stderr_and_status_2(kind, capsys):
    def run():
        raise kind("data.npz: expected an array,\n  got none")

    assert exit_status(run) == 2
    assert capsys.readouterr() == ("", "error: data.npz: expected an array, got none\n")


@pytest.mark.parametrize(
    ("after", "line"), [((), "interrupted\n"), ((lambda: "go on",), "interrupted: go on\n")]
)
def test_ctrl_c_is_one_line_on_stderr_and_status_130(after, line, capsys):
    def run():
        with step("fitting", 3):
            raise KeyboardInterrupt

    assert exit_status(run, *after) == 130
    assert capsys.readouterr() == ("", f"fitting ...\n{line}")


def test_a_program_that_ends_has_its_status_and_an_error_of_its_own_is_raised():
    assert exit_status(lambda: None) == 0
    assert exit_status(lambda: 1) == 1
    with pytest.raises(ZeroDivisionError):
        exit_status(lambda: 1 / 0)
