"""What a program says on the console: how far it is, errors in its input, and how it ended."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import IO

from tqdm import tqdm


def exit_status(run: Callable[[], int | None], after: Callable[[], str] = lambda: "") -> int:
    """Run a program; return its status, 2 after an error in its input, 130 after Ctrl-C.

    Both are told in one line on stderr. After Ctrl-C it says what `after` returns, too.
    """
    if threading.current_thread() is threading.main_thread() and callable(
        signal.getsignal(signal.SIGINT)
    ):  # programs have another handler while they import
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return run() or 0
    except KeyboardInterrupt:
        print(": ".join(filter(None, ("interrupted", after()))), file=sys.stderr)
        return 130
    except (ValueError, RuntimeError, OSError, MemoryError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """The help of a program, with the defaults that there are and that the texts don't name."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        default, text = action.default, action.help or ""
        if default is None or default is False or "(default: " in text:
            return text
        if isinstance(default, list):
            return f"{text} (default: {' '.join(map(str, default))})"
        return super()._get_help_string(action)


class Bar:
    """How far a step has come, which is drawn on a terminal only."""

    def __init__(self, drawn: tqdm | None = None):
        self.drawn = drawn

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count what has been done since the last time, and show the note beside it."""
        if self.drawn is not None:
            self.drawn.set_postfix_str(note, refresh=False)
            self.drawn.update(count)

    def over(self, items: Iterable) -> Iterator:
        """Yield the items, and count each when the next one is asked for."""
        for item in items:
            yield item
            self.advance()


@contextmanager
def step(
    text: str,
    total: int | None = None,
    done: int = 0,
    unit: str = "",
    stream: IO[str] | None = None,
) -> Iterator[Bar]:
    """Name a long step on stderr when it starts, and in the same line the seconds that it took.

    On a terminal a bar shows how much of `total` is done, or without one the seconds count up.
    Elsewhere, as in a file, there is that line and no more; nothing where stderr is closed.
    """
    stream, start, took = stream or sys.stderr, time.perf_counter(), ""
    if stream is None:
        yield Bar()
        return
    terminal = stream.isatty()
    shown = _counting(text, start, stream)
    if terminal and total is not None:
        shown = _filling(desc=text, total=total, initial=done, unit=unit, file=stream)
    try:
        with shown as bar:
            yield bar
        took = f" {time.perf_counter() - start:.1f} s"
    finally:
        print(f"\r{text} ..." * terminal + took, file=stream, flush=True)


@contextmanager
def _filling(**options) -> Iterator[Bar]:
    options |= {"leave": False, "mininterval": 0.5, "unit_scale": options["unit"] == "B"}
    with _Drawn(**options) as drawn:
        yield Bar(drawn)


class _Drawn(tqdm):
    """A bar that pooch takes, too: it asks whether there is one and fills it at the end."""

    def __bool__(self) -> bool:
        return True  # also while the total is unknown

    def reset(self, total: float | None = None) -> None:
        """Go back to the start before it is filled, but not in time."""
        self.n = 0 if self.total else self.n


@contextmanager
def _counting(text: str, start: float, stream: IO[str]) -> Iterator[Bar]:
    done = threading.Event()

    def count() -> None:
        while not done.wait(1):
            seconds = time.perf_counter() - start
            print(f"\r{text} ... {seconds:.0f} s", end="", file=stream, flush=True)

    counter = threading.Thread(target=count, daemon=True)
    print(f"{text} ...", end="", file=stream, flush=True)
    if stream.isatty():
        counter.start()
    try:
        yield Bar()
    finally:
        done.set()
        if counter.is_alive():
            counter.join()


def silent(*_: object) -> AbstractContextManager[Bar]:
    """Take the place of `step` or of `Stages`, and say nothing."""
    return nullcontext(Bar())


class Stages:
    """The steps of a run, and the seconds that each took."""

    def __init__(self, stream: IO[str] | None = None):
        self.stream = stream
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(
        self, name: str, text: str, total: int | None = None, done: int = 0, unit: str = ""
    ) -> Iterator[Bar]:
        """Show and time the step `name`, see `step`."""
        start = time.perf_counter()
        with step(text, total, done, unit, self.stream) as bar:
            yield bar
        self.seconds[name] = time.perf_counter() - start
