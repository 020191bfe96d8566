"""Many tasks of one function, here or on any executor, with results from which a call goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from contextlib import AbstractContextManager, closing
from functools import partial
from pathlib import Path
from typing import Any

from .console import Bar, silent, step
from .engine.executors import Task, answers, check_executor
from .records import Records


def run_each(
    function: Callable[[Any], Any],
    items: Iterable,
    executor: Executor | None = None,
    path: str | Path | None = None,
    progress: bool | str = False,
) -> list:
    """Return function(item) for all items, in their order.

    `executor` is any `concurrent.futures.Executor`: a process pool, Dask's
    ``client.get_executor()``, mpi4py's pool. The function, with the data that a
    ``functools.partial`` gives it, goes to each worker once, items go with each call. Workers run
    on one thread each. A call that fails, as where its worker dies, is made a second time; then the
    other items go on, and in the end an error names those that failed.

    Each result is added to the file `path` as it comes. After a kill the same call goes on from
    there, and with more items it adds theirs: results are known by the version of tinyspur, the
    function, its data and the item. They are numbers, text, arrays, points, what tinyspur returns,
    or lists, tuples and dictionaries of these; nothing is pickled in the file. `progress` shows on
    stderr how far it is, after a text of yours if it is one.

    Raises ValueError for functions and items that can't be pickled where that is needed, and for a
    file of another kind; RuntimeError where items failed twice or workers died that the executor
    does not replace; OSError where a file can't be written. Without an executor errors of the
    function pass unchanged.

    >>> from math import isqrt
    >>> run_each(isqrt, [4, 9, 16])
    [2, 3, 4]
    """
    text = progress if isinstance(progress, str) else "tasks"
    shown = partial(step, text) if progress else silent
    return run_tasks("run_each", function, items, executor, path, shown)


def run_tasks(
    what: str,
    function: Callable[[Any], Any],
    items: Iterable,
    executor: Executor | None,
    path: str | Path | None,
    shown: Callable[[int, int], AbstractContextManager[Bar]] = silent,
) -> list:
    """Do what `run_each` does; `what` is done is in errors.

    `shown` is entered with the number of items and that of those that are done.
    """
    items = list(items)
    check_executor(what, executor)
    records = Records(path, function, items)
    tasks = [Task(number, items[number]) for number in records.missing]
    found = answers(what, function, tasks, executor, records.kept, "item {}".format)
    with shown(len(items), records.done) as bar, closing(found):
        for number, result in found:
            records.add(number, result)
            bar.advance()
    return records.results
