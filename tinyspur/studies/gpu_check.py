"""What a machine with a GPU shows in eight minutes, as one script.

The tests marked ``gpu``, the main program on CuPy with 4,000 and 50,000 images, the step of the
paper's network beside PyTorch on the same GPU, the most memory that each of these takes, and how
fast and how often numbers go to the GPU and back.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

import numpy as np

from ..certificates import certify_cell
from ..constructions.embedding import linear_minimum
from ..datasets.samples import TrainingSet
from ..engine.backend import select
from ..engine.losses import one_hot
from ..engine.network import Network
from ..layers import Conv, Dense
from .speed import LOSS, finish, in_turn, step_row

PAPER = (64, 64, 128, 128, 256, 256, 256)  # maps of the paper's network
SHAPE, CLASSES = (3, 32, 32), 10
RUNS = {4000: 60, 50_000: 150}  # images of the main program, and the seconds that it may take
TESTS = 150  # seconds that the tests may take
BATCH, REPEATS = 128, 5  # images of a step, and how often it is timed
COPIED = 2**25  # numbers that are copied to the GPU and back, 256 MiB
EVERY = 0.05  # seconds between two looks at the memory


def check_gpu(root: Path) -> dict:
    """Run everything, print a line for each part, and return what was found, by part.

    `root` is the checkout, whose tests and main program are run. Raises RuntimeError where CuPy
    finds no GPU. A part that fails, or takes too long, says so as ``failed``; the others go on.
    """
    xp = gpu()
    parts: dict[str, Callable[[], dict]] = {"copies": lambda: copies(xp)}
    for dtype in (np.float32, np.float64):
        parts[f"paper's step, {np.dtype(dtype).name}"] = lambda dtype=dtype: paper_step(xp, dtype)
    for images, limit in RUNS.items():
        parts[f"main program, {images:,} images"] = lambda images=images, limit=limit: main_program(
            root, images, limit
        )
    parts["tests marked gpu"] = lambda: marked_tests(root)
    found = {}
    for name, part in parts.items():
        start = time.perf_counter()
        with most_memory(xp) as most:
            try:
                found[name] = part()
            except (ValueError, RuntimeError, OSError, subprocess.SubprocessError) as error:
                found[name] = {"failed": " ".join(str(error).split())[-500:]}
        found[name] |= {"seconds": time.perf_counter() - start, "gpu_gib": most[0] / 2**30}
        words = ", ".join(f"{key} {_short(value)}" for key, value in found[name].items())
        print(f"{name}: {words}", flush=True)
    return found


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def gpu() -> ModuleType:
    """Return CuPy, or raise RuntimeError where it finds no GPU."""
    try:
        return select("cupy").xp
    except ValueError as error:
        got = str(error).partition(": ")[2]
        expected = "expected CuPy with a CUDA device (the extra cuda12 or cuda13)"
        raise RuntimeError(f"--gpu: {expected}, got: {got}") from error


@contextmanager
def most_memory(xp: ModuleType) -> Iterator[list[int]]:
    """Keep in a list the most bytes of the GPU that were in use, by any process, meanwhile."""
    most, done = [0], threading.Event()

    def look() -> None:
        while True:
            free, total = xp.cuda.runtime.memGetInfo()
            most[0] = max(most[0], total - free)
            if done.wait(EVERY):
                return

    watching = threading.Thread(target=look, daemon=True)
    watching.start()
    try:
        yield most
    finally:
        done.set()
        watching.join()


def copies(xp: ModuleType) -> dict:
    """Return how fast numbers are copied, and how many copies a certificate and a step make."""
    x, there = np.ones(COPIED), xp.asarray(np.ones(COPIED))
    finish(xp)
    up, down = in_turn(lambda: (xp.asarray(x), finish(xp)), lambda: xp.asnumpy(there), REPEATS)
    net = Network((1, 7, 7), [Conv(4), Conv(6), Conv(6), Dense(3)])
    rng = np.random.default_rng(0)
    data = TrainingSet(rng.uniform(size=(200, 1, 7, 7)), one_hot(np.arange(200) % 3, 3))
    theta = linear_minimum(net, data, LOSS)[0].to(xp)
    found = {"up_gb_per_s": x.nbytes / up / 1e9, "down_gb_per_s": x.nbytes / down / 1e9}
    for name, function in (
        ("step", lambda: net.risk_and_gradient(theta, data, LOSS)),
        ("certificate", lambda: certify_cell(theta, data, LOSS)),
    ):
        function()  # kernels are compiled
        found[f"copies_of_a_{name}"] = counted_copies(function)
    return found


def counted_copies(function: Callable) -> str | dict[str, int]:
    """Return how many copies to the GPU and back a call makes, as PyTorch's profiler sees them.

    Without a PyTorch that finds the GPU this is a sentence that says so.
    """
    torch, obstacle = _torch()
    if obstacle:
        return obstacle
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as watched:
        function()
        torch.cuda.synchronize()
    counts = {event.key: event.count for event in watched.key_averages()}
    ways = {"up": "Memcpy HtoD", "down": "Memcpy DtoH"}
    return {
        way: sum(count for key, count in counts.items() if key.startswith(start))
        for way, start in ways.items()
    }


def _torch() -> tuple[ModuleType | None, str]:
    """Return PyTorch, or why it can't be compared with."""
    try:
        import torch
    except ImportError:
        return None, "not compared: expected PyTorch with CUDA, got none"
    if not torch.cuda.is_available():
        return None, f"not compared: expected PyTorch with CUDA, got {torch.__version__}"
    return torch, ""


def paper_step(xp: ModuleType, dtype: type) -> dict:
    """Return risk and gradient of the paper's network beside PyTorch on the same GPU."""
    torch, obstacle = _torch()
    if obstacle:
        return {"failed": obstacle}
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    rng = np.random.default_rng(0)
    net = Network(SHAPE, [*map(Conv, PAPER), Dense(CLASSES)])
    labels = one_hot(np.arange(BATCH) % CLASSES, CLASSES)
    data = TrainingSet(rng.uniform(size=(BATCH, *SHAPE)), labels)
    row = step_row(torch, f"step of {BATCH} images", net, data, dtype, REPEATS, xp)
    found = asdict(row)
    return {"of": f"{BATCH} images", "engine_s": found["seconds"], "torch_s": found["other"]} | {
        "ratio": row.ratio,
        "tflops": row.flops / row.seconds / 1e12,
    }


def main_program(root: Path, images: int, limit: float) -> dict:
    """Return what the main program's report says for so many random images, on CuPy."""
    rng = np.random.default_rng(0)
    with TemporaryDirectory() as folder:
        data, out = Path(folder) / "images.npz", Path(folder) / "out"
        np.savez(
            data,
            images=rng.integers(0, 256, (images, *SHAPE), np.uint8),
            labels=rng.integers(0, CLASSES, images),
        )
        program = root / "demos" / "cifar_spurious.py"
        options = ["--backend", "cupy", "--samples", images, "--data", data, "--out", out]
        _called([program, *options], root, limit)
        report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return {"verdict": report["verdict"], "stages": report["seconds"]}


def marked_tests(root: Path) -> dict:
    """Return the last line of the tests that need a GPU."""
    options = ["-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", "tests"]
    return {"said": _called(options, root, TESTS).strip().splitlines()[-1]}


def _called(arguments: list, root: Path, limit: float) -> str:
    """Return what Python prints with these arguments, or raise RuntimeError with its end."""
    command = [sys.executable, *map(str, arguments)]
    options = {"cwd": root, "timeout": limit, "capture_output": True, "text": True}
    ended = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(root)}, **options)
    if ended.returncode:
        raise RuntimeError(f"ended with {ended.returncode}: {ended.stdout}{ended.stderr}")
    return ended.stdout
