"""What a program says on the console: the progress of its stages, and errors in its input."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO


def exit_status(run: Callable[[], None]) -> int:
    """Run a program; return 0, or 2 after one line on stderr for an error in its input."""
    try:
        run()
    except (ValueError, RuntimeError, OSError, MemoryError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


class Stages:
    """Names the stages of a run on stderr as they start, and keeps the seconds that each took.

    On a terminal the seconds count up while a stage runs.
    """

    def __init__(self, stream: IO[str] | None = None):
        self.stream = stream or sys.stderr
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str, text: str, own_line: bool = False) -> Iterator[None]:
        """Time the stage `name`; with `own_line` the line is left to a progress bar."""
        start, done = time.perf_counter(), threading.Event()

        def count() -> None:
            while not done.wait(1):
                seconds = time.perf_counter() - start
                print(f"\r{text} ... {seconds:.0f} s", end="", file=self.stream, flush=True)

        counter = threading.Thread(target=count, daemon=True)
        if not own_line:
            print(f"{text} ...", end="", file=self.stream, flush=True)
            if self.stream.isatty():
                counter.start()
        try:
            yield
            self.seconds[name] = time.perf_counter() - start
        finally:
            done.set()
            if counter.is_alive():
                counter.join()
            if not own_line:
                back = f"\r{text} ..." if self.stream.isatty() else ""
                took = f" {self.seconds[name]:.1f} s" if name in self.seconds else ""
                print(f"{back}{took}", file=self.stream, flush=True)
