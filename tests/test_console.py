"""Stages are named and timed, and an error in the input is one line."""

import io
import re
import time

import pytest

from tinyspur.console import Stages, exit_status


def test_stages_keep_their_seconds_in_order():
    stages = Stages(io.StringIO())
    with stages("long", "working"):
        time.sleep(0.05)
    with stages("short", "resting"):
        pass
    assert list(stages.seconds) == ["long", "short"]
    assert 0.05 <= stages.seconds["long"] < 5
    assert 0 <= stages.seconds["short"] < stages.seconds["long"]


def test_a_stage_is_named_when_it_starts_and_timed_when_it_ends():
    stream = io.StringIO()
    with Stages(stream)("fit", "fitting"):
        assert stream.getvalue() == "fitting ..."
    assert re.fullmatch(r"fitting \.\.\. \d+\.\d s\n", stream.getvalue())


def test_a_stage_with_a_line_of_its_own_prints_nothing():
    stream = io.StringIO()
    stages = Stages(stream)
    with stages("curve", "", own_line=True):
        pass
    assert stream.getvalue() == ""
    assert list(stages.seconds) == ["curve"]


@pytest.mark.parametrize(("own_line", "printed"), [(False, "fitting ...\n"), (True, "")])
def test_a_stage_that_fails_ends_its_line_and_has_no_seconds(own_line, printed):
    stream = io.StringIO()
    stages = Stages(stream)
    with pytest.raises(ValueError, match="stop"), stages("fit", "fitting", own_line):
        raise ValueError("stop")
    assert stream.getvalue() == printed
    assert stages.seconds == {}


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self):
        return True


def test_on_a_terminal_the_seconds_count_up_until_the_stage_ends():
    stream = Terminal()
    with Stages(stream)("fit", "fitting"):
        time.sleep(1.3)
        assert stream.getvalue() == "fitting ...\rfitting ... 1 s"
    ended = stream.getvalue()
    assert re.fullmatch(r"fitting \.\.\. 1\.\d s\n", ended.rpartition("\r")[2])
    time.sleep(1.1)
    assert stream.getvalue() == ended


def test_stages_are_named_on_stderr(capsys):
    with Stages()("fit", "fitting"):
        pass
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("fitting ...")


@pytest.mark.parametrize("kind", [ValueError, RuntimeError, OSError, MemoryError])
def test_an_error_in_the_input_is_one_line_on_stderr_and_status_2(kind, capsys):
    def run():
        raise kind("data.npz: expected an array,\n  got none")

    assert exit_status(run) == 2
    assert capsys.readouterr() == ("", "error: data.npz: expected an array, got none\n")


def test_a_program_that_ends_has_status_0_and_an_error_of_its_own_is_raised():
    assert exit_status(lambda: None) == 0
    with pytest.raises(ZeroDivisionError):
        exit_status(lambda: 1 / 0)
