"""The risk at the points of a plane or of lines: with any executor, resumed from files."""

from __future__ import annotations

from concurrent.futures import Executor
from contextlib import closing, nullcontext
from pathlib import Path

import numpy as np

from ..console import Bar, step
from ..datasets.samples import TrainingSet
from ..engine.executors import answers, check_executor
from ..engine.losses import Loss
from ..engine.network import check_at
from .job import Job, first_moved
from .planes import Lines, Plane
from .risks import Landscape
from .store import Store


def scan(
    where: Plane | Lines,
    data: TrainingSet,
    loss: Loss,
    executor: Executor | None = None,
    path: str | Path | None = None,
    progress: bool | str = False,
) -> Landscape:
    """Return the risks at the points of a plane or of lines.

    No point is evaluated twice, although theta lies on every line. What points have in common is
    computed once: the layers below the first one that the directions move, and the patches of that
    layer. Passes stream over the samples in chunks, as everywhere.

    `executor` is any `concurrent.futures.Executor`: a process pool, Dask's
    ``client.get_executor()``, mpi4py's pool. Each worker process reads the data once, from a
    temporary file, however many points it evaluates, and keeps the data of the last two scans. A
    worker on another machine, which can't read the file, is sent the data, about once. Workers run
    on one thread; without an executor all cores work, and a chunk holds up to twice the memory
    budget. The risks are the same to the last bit either way.

    What is finished is written to `path` (an NPZ) as it comes. After a kill the same call goes on
    from there and ends with the same numbers; if the scan is finished they are only read.
    `progress` shows on stderr how far it is, after a text of yours if it is one: a bar on a
    terminal, a line elsewhere. Raises ValueError for a file of another scan, RuntimeError where
    risks fail twice or workers die that the executor does not replace, and OSError where a file
    can't be written.
    """
    if not isinstance(where, Plane | Lines):
        raise ValueError(f"scan: expected a Plane or Lines, got a {type(where).__name__}")
    check_executor("scan", executor)
    check_at(where.theta, data, loss)
    job = Job(where, data, loss, first_moved(where))
    store = Store(path, job)
    text = progress if isinstance(progress, str) else "risks"
    counts = (store.done.size, int(store.done.sum()))
    with store, step(text, *counts) if progress else nullcontext(Bar()) as bar:
        if not store.done[0]:
            store.put(slice(0, 1), job.centre())
            bar.advance()
        missing = store.missing()
        with closing(answers("scan", job, missing, executor, store.kept, _numbers)) as found:
            for place, risks in found:
                store.put(place, risks)
                bar.advance(len(risks))
        if np.isnan(store.rounding):
            store.put_rounding(job.rounding(store.risks))
    return store.landscape()


def _numbers(place: slice) -> str:
    return f"risks {place.start} to {place.stop - 1}"
