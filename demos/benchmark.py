"""Time the engine beside PyTorch on the same cores, and against explicit sparse matrices.

Each row runs the two in turn and compares medians; forward passes and forward plus backward, with
the fractions of the speeds of a large matrix product and of a large copy. The last line is that of
a cell certificate, in risks and gradients. Needs PyTorch. With --gpu only what a machine with a GPU
shows in eight minutes: the tests that need one, the main program on CuPy, the paper's step beside
PyTorch on the same GPU, memory and copies.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

# Ctrl-C ends it in one line while the rest is imported, too.
if __name__ == "__main__" and callable(signal.getsignal(signal.SIGINT)):
    signal.signal(signal.SIGINT, lambda *_: os._exit(os.write(2, b"interrupted\n") and 130))

import numpy as np

from tinyspur import datasets
from tinyspur.console import Help, exit_status, step
from tinyspur.datasets.samples import TrainingSet
from tinyspur.engine.losses import one_hot
from tinyspur.engine.network import Network
from tinyspur.engine.parameters import Parameters
from tinyspur.engine.passes import CACHED, even_slices
from tinyspur.engine.threads import WORKERS, blas, in_order
from tinyspur.files import check_outputs, write_json
from tinyspur.fitting.cost import training_flops
from tinyspur.fitting.training import kaiming_start
from tinyspur.landscape.planes import Plane
from tinyspur.landscape.scan import scan
from tinyspur.layers import (
    AveragePoolingMatrix,
    Conv,
    ConvolutionMatrix,
    Dense,
    MaxPoolingMatrix,
)
from tinyspur.studies.gpu_check import PAPER, check_gpu
from tinyspur.studies.speed import (
    BATCHES,
    LOSS,
    Row,
    activation_bytes,
    bandwidth,
    certificate_seconds,
    in_turn,
    peak,
    seconds,
    step_row,
    streamed,
)

WIDE = ((3, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256))  # of 32 x 32
LENET = ((1, 6, 32, 5, 1, 0), (6, 16, 14, 5, 1, 0))  # maps below, maps, side, size, stride, padding
RESNET = ((3, 16, 32, 3, 1, 1), (16, 16, 32, 3, 1, 1), (16, 32, 32, 3, 2, 1), (16, 32, 32, 1, 2, 0))
RESNET += (
    (32, 32, 16, 3, 1, 1),
    (32, 64, 16, 3, 2, 1),
    (32, 64, 16, 1, 2, 0),
    (64, 64, 8, 3, 1, 1),
)
POOLINGS = (("max", 6, 28, 2, 2, 0), ("max", 64, 32, 3, 2, 1), ("max", 16, 32, 3, 1, 1))
POOLINGS += (("average", 6, 28, 2, 2, 0), ("average", 64, 32, 3, 2, 1), ("average", 64, 8, 8, 8, 0))
SMALL = (4, 6, 6)  # maps of the main program's network
SIDE = 32
MANY = 8  # times as many images for smaller layers


def convolution_rows(torch, shapes, dtype: type, batch: int, repeats: int) -> list[Row]:
    """Return forward, and forward plus backward, of single convolutions."""
    rows, rng = [], np.random.default_rng(0)
    for C, T, side, size, stride, padding in shapes:
        filters = rng.standard_normal((T, C, size, size)).astype(dtype)
        W = ConvolutionMatrix(filters, (side, side), stride, padding)
        w = torch.tensor(filters, requires_grad=True)
        twin = partial(torch.nn.functional.conv2d, weight=w, stride=stride, padding=padding)
        name = f"convolution {C}-{T}, {size}x{size} of {side}" + f"/{stride}" * (stride > 1)
        rows += layer_rows(torch, name, W, twin, (w,), C, side, batch, repeats)
    return rows


def pooling_rows(torch, dtype: type, batch: int, repeats: int) -> list[Row]:
    """Return the same of poolings; an operation is an entry of a window."""
    rows = []
    for kind, C, side, size, stride, padding in POOLINGS:
        matrix = {"max": MaxPoolingMatrix, "average": AveragePoolingMatrix}[kind]
        W = matrix(C, (side, side), size, stride, padding)
        function = {"max": "max_pool2d", "average": "avg_pool2d"}[kind]
        twin = getattr(torch.nn.functional, function)
        twin = partial(twin, kernel_size=size, stride=stride, padding=padding)
        name = f"{kind} pooling {size}/{stride} of {C}x{side}x{side}"
        rows += layer_rows(torch, name, W, twin, (), C, side, batch, repeats, dtype)
    return rows


def layer_rows(
    torch,
    name: str,
    W,
    twin: Callable,
    weights: tuple,
    C: int,
    side: int,
    batch,
    repeats,
    dtype=None,
) -> list[Row]:
    """Return forward, and forward plus backward, of one layer and of its twin."""
    rng, dtype = np.random.default_rng(0), np.dtype(dtype or W.weights.dtype)
    o, delta = (rng.standard_normal((batch, n)).astype(dtype) for n in W.shape[::-1])
    x = torch.tensor(o.reshape(batch, C, side, side), requires_grad=True)
    y = torch.tensor(delta).reshape(twin(x).shape)
    image, below = sum(W.shape) * dtype.itemsize, W.shape[1] * dtype.itemsize
    # Chunks as in a pass, for each thread at least two.
    parts = even_slices(batch, max(1, min(CACHED // (2 * image), batch // (2 * WORKERS))))
    chunks = [tuple(np.ascontiguousarray(v[some].T) for v in (o, delta)) for some in parts]

    def both(chunk):
        columns, slopes = chunk
        back = W.pullback if weights else lambda delta, o: W.at(o).T @ delta
        return W @ columns, back(slopes, columns)

    def torch_forward():
        with torch.no_grad():
            twin(x)

    def torch_both():
        for tensor in (x, *weights):
            tensor.grad = None
        twin(x).backward(y)

    flops, rows = batch * W.shape[0] * W.fan_in * (2 if weights else 1), []
    for what, function, other, times, moved in (
        ("forward", lambda chunk: W @ chunk[0], torch_forward, 1, image),
        ("and back", both, torch_both, 3 if weights else 2, 2 * image + below),
    ):
        mine = partial(streamed, function, chunks)
        seconds = in_turn(mine, other, repeats)
        rows.append(Row(f"{name}, {what}", dtype.name, *seconds, times * flops, batch * moved))
    return rows


def plane_rows(
    torch, net: Network, data: TrainingSet, dtype: type, steps: int, landscaper: Path | None = None
) -> list[Row]:
    """Return a plane of steps x steps risks beside loss-landscapes and beside PyTorch in batches.

    Each is evaluated once: a plane is long. loss-landscapes takes all images at once, its way; in
    batches it is the same loop with PyTorch's fastest batch size, as is what landscaper is given,
    which the Python `landscaper` has.
    """
    from tinyspur import interop

    theta = Parameters(net, kaiming_start(net).vector.astype(dtype))
    data = TrainingSet(data.x.astype(dtype), data.y.astype(dtype))
    plane, twin = Plane.random(theta, extent=1.0, steps=steps), interop.to_torch(theta)
    x, y = torch.tensor(data.x), torch.tensor(data.y)
    mean = torch.nn.MSELoss()

    @torch.no_grad()
    def loop(batch: int, points: int = steps**2) -> list[float]:
        risks = []
        for point in plane.points(range(points)):
            vector = torch.from_numpy(point.vector)
            torch.nn.utils.vector_to_parameters(vector, twin.parameters())
            parts = zip(x.split(batch), y.split(batch), strict=True)
            risks.append(sum(float(mean(twin(a), b)) * len(a) for a, b in parts) / len(x))
        return risks

    times = [in_turn(partial(loop, n, 2), lambda: None, 2)[0] for n in BATCHES]
    batch = BATCHES[int(np.argmin(times))]
    flops = training_flops(net, len(data), 1) / 3 * steps**2
    moved = 2 * activation_bytes(theta, data) * steps**2
    name, kind = f"plane of {steps} x {steps} risks", np.dtype(dtype).name
    scan(replace(plane, alpha=plane.alpha[:1]), data, LOSS)
    rows = []

    def add(beside: str, theirs: Callable[[], float]) -> None:
        own = seconds(lambda: scan(plane, data, LOSS))
        rows.append(Row(f"{name}, {beside}", kind, own, theirs(), flops, moved))

    add(f"PyTorch in {batch}s", lambda: seconds(lambda: loop(batch)))
    if landscaper is not None:
        add("landscaper", lambda: landscaper_seconds(torch, landscaper, twin, x, y, batch, steps))
    try:
        from loss_landscapes import metrics, random_plane  # as in version 3
    except ImportError:
        return rows
    metric = metrics.Loss(mean, x, y)
    scanned = partial(random_plane, twin, metric, 1, steps, "model", deepcopy_model=True)
    add("loss-landscapes", lambda: seconds(scanned))
    return rows


NEEDED = "from landscaper.compute import compute_loss_landscape; import torch; print('ready')"
LANDSCAPER = f"""{NEEDED}
import sys, time
model, x, y, batch, steps, threads = torch.load(sys.argv[1], weights_only=False)
torch.set_num_threads(threads)
mean = torch.nn.MSELoss()

@torch.no_grad()
def risk(model, data):
    parts = zip(x.split(batch), y.split(batch))
    return sum(float(mean(model(a), b)) * len(a) for a, b in parts) / len(x)

directions = [[torch.randn_like(p) for p in model.parameters()] for _ in range(2)]
for n in (2, steps):
    start = time.perf_counter()
    compute_loss_landscape(model, None, directions, risk, n, 0.1, 2, "cpu")
    print(time.perf_counter() - start)
"""


def landscaper_seconds(torch, python: Path, model, x, y, batch: int, steps: int) -> float:
    """Return the seconds of landscaper 1.3 for a plane of that model's risks, by its own Python."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt"
        torch.save((model, x, y, batch, steps, torch.get_num_threads()), path)
        return float(printed(python, LANDSCAPER, path).split()[-1])


def printed(python: Path, program: str, *arguments: Path) -> str:
    """Return what a program prints that runs with landscaper; RuntimeError if it does not run."""
    try:
        ran = subprocess.run([python, "-c", program, *arguments], capture_output=True, text=True)
    except OSError as error:
        raise RuntimeError(f"--landscaper: expected a Python, got {error}") from error
    if ran.returncode or not ran.stdout:
        said = (ran.stderr.strip() or "no message").splitlines()[-1]
        raise RuntimeError(f"--landscaper: expected a Python with landscaper, got {said}")
    return ran.stdout


def sparse_rows(net: Network, data: TrainingSet, batch: int, repeats: int) -> list[Row]:
    """Return a convolution, risk, and risk and gradient, beside the same from CSR matrices."""
    theta = kaiming_start(net)
    matrices = {layer: theta.W[layer].tocsr() for layer in theta.b}
    columns, y = data.x.reshape(len(data), -1).T.copy(), data.y.T.copy()

    def forward() -> list[np.ndarray]:
        trace = [columns]
        for layer, W in matrices.items():
            z = W @ trace[-1] + np.repeat(theta.b[layer], theta.W[layer].positions_out)[:, None]
            trace.append(net.activation(z) if net.is_active(layer) else z)
        return trace

    def step() -> dict[int, np.ndarray]:
        trace, gradients = forward(), {}
        delta = LOSS.gradient(trace[-1], y)
        for layer, W in reversed(matrices.items()):
            if net.is_active(layer):
                delta = delta * (trace[layer] > 0)
            gradients[layer] = entries_gradient(W, delta, trace[layer - 1])
            delta = W.T @ delta
        return gradients

    rng, (C, T) = np.random.default_rng(0), WIDE[1]
    W = ConvolutionMatrix(rng.standard_normal((T, C, 3, 3)), (SIDE, SIDE))
    entries, o = W.tocsr(), rng.standard_normal((W.shape[1], batch))
    parts = np.array_split(o, min(batch, 2 * WORKERS), axis=1)
    chunks = [np.ascontiguousarray(part) for part in parts]
    mine = lambda: list(in_order(lambda part: W @ part, chunks, np))  # noqa: E731
    single = in_turn(mine, lambda: entries @ o, repeats)
    flops, name = training_flops(net, len(data), 1), f"small network, {len(data)} images"
    moved, work = activation_bytes(theta, data), (2 * entries.nnz * batch, 8 * sum(W.shape) * batch)
    risk = in_turn(lambda: net.risk(theta, data, LOSS), forward, repeats)
    both = in_turn(lambda: net.risk_and_gradient(theta, data, LOSS), step, repeats)
    return [
        Row(f"convolution {C}-{T}, forward, CSR", "float64", *single, *work),
        Row(f"{name}, risk, CSR", "float64", *risk, flops / 3, 2 * moved),
        Row(f"{name}, step, CSR", "float64", *both, flops, 5 * moved),
    ]


def entries_gradient(W, delta: np.ndarray, o: np.ndarray) -> np.ndarray:
    """Return sum_i delta_r^i o_c^i for each entry (r, c) of a CSR matrix."""
    found = np.empty(W.nnz)
    rows = np.repeat(np.arange(W.shape[0]), np.diff(W.indptr))
    for part in range(0, W.nnz, 1000):
        some = slice(part, part + 1000)
        found[some] = np.einsum("ei,ei->e", delta[rows[some]], o[W.indices[some]])
    return found


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    parser.error = lambda message: parser.exit(2, f"error: {message}\n")
    option = parser.add_argument
    option("--repeats", type=int, default=7, metavar="N", help="of each pair, after a warm-up")
    option("--batch", type=int, default=16, metavar="N", help="images of 32 x 32")
    option("--samples", type=int, default=4000, metavar="N", help="images of the small network")
    option("--plane", type=int, default=11, metavar="N", help="of N x N risks, once each")
    option(
        "--landscaper",
        type=Path,
        metavar="PYTHON",
        help="of an environment with landscaper 1.3 and PyTorch, for a row beside it",
    )
    option("--gpu", action="store_true", help="only what a GPU shows, see above")
    option("--json", type=Path, metavar="FILE", help="to write the table to")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> int:
    """Measure, print and write; return 1 if a part of --gpu failed."""
    for name in ("repeats", "batch", "plane"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name}: expected 1 or more, got {getattr(options, name)}")
    if options.json is not None:
        keys = ["gpu"] if options.gpu else ["peaks", "bandwidth", "rows"]
        check_outputs(options.json.parent, {options.json.name: keys})
    if options.gpu:
        found = check_gpu(Path(__file__).resolve().parents[1])
        if options.json is not None:
            write_json(options.json, {"gpu": found})
        return int(any("failed" in part for part in found.values()))
    try:
        import torch
    except ImportError as error:
        raise RuntimeError(f"the benchmark needs PyTorch: {error}") from error
    if options.landscaper is not None:
        printed(options.landscaper, NEEDED)
    images = datasets.bundled().subset(options.samples, 0)
    torch.set_num_threads(WORKERS)
    small = TrainingSet(images.pixels(), one_hot(images.labels, images.classes))
    rng = np.random.default_rng(0)
    colours = TrainingSet(
        rng.uniform(size=(options.batch, 3, SIDE, SIDE)),
        one_hot(np.arange(options.batch) % 10, 10),
    )
    paper = Network(colours.x.shape[1:], [*map(Conv, PAPER), Dense(10)])
    little = Network(small.x.shape[1:], [*map(Conv, SMALL), Dense(10)])
    kernels = " ".join(blas().get(key, "") for key in ("internal_api", "version", "architecture"))
    print(f"{WORKERS} cores, {kernels}; GFLOP/s: engine, PyTorch (CSR in the last rows)")
    columns = f"{'median':>13}{'engine':>8}{'other':>8}{'ratio':>8}{'product':>8}{'memory':>8}"
    print(f"{'':<42}{'':>8}{columns}", flush=True)
    rows, peaks, copied = [], {}, bandwidth(options.repeats)
    print(f"{'copy':<42}{'':>8}{copied / 1e9:10.1f} GB/s", flush=True)
    for dtype in (np.float64, np.float32):
        kind = np.dtype(dtype).name
        top = peaks[kind] = peak(dtype, options.repeats)
        print(f"{'matrix product':<42}{kind:>8}{'':>13}{top / 1e9:8.0f}", flush=True)
        with step(f"timing in {kind}"):
            wide = [(C, T, SIDE, 3, 1, 1) for C, T in WIDE]
            many = MANY * options.batch, options.repeats
            found = convolution_rows(torch, (*wide[:1], *LENET, *RESNET), dtype, *many)
            found += convolution_rows(torch, wide[1:], dtype, options.batch, options.repeats)
            found += pooling_rows(torch, dtype, *many)
            for name, net, data in (
                (f"paper's network, batch {options.batch}, step", paper, colours),
                (f"small network, {len(small)} images, step", little, small),
            ):
                found.append(step_row(torch, name, net, data, dtype, options.repeats))
            found += plane_rows(torch, little, small, dtype, options.plane, options.landscaper)
        print("\n".join(row.text(top, copied) for row in found), flush=True)
        rows += found
    if not any("loss-landscapes" in row.name for row in rows):
        print("no row for loss-landscapes: its version 3 is not installed")
    with step("timing sparse matrices"):
        found = sparse_rows(little, small, options.batch, options.repeats)
    print("\n".join(row.text(peaks["float64"], copied) for row in found))
    rows += found
    shape = (5 * len(small) // 2, 3, SIDE, SIDE)
    many = TrainingSet(rng.uniform(size=shape), one_hot(rng.integers(0, 10, shape[0]), 10))
    with step("timing a certificate"):
        net = Network(shape[1:], [*map(Conv, SMALL), Dense(10)])
        times = certificate_seconds(net, many, min(options.repeats, 3))
    certified = {"samples": len(many), "certificate": times[0], "step": times[1]}
    print(
        f"cell certificate, {len(many)} images of {SIDE} x {SIDE} x 3: {times[0]:.2f} s, "
        f"{times[0] / times[1]:.1f} times a risk and gradient at that point"
    )
    if options.json is not None:
        table = [asdict(row) | {"ratio": row.ratio} for row in rows]
        speeds = {"cores": WORKERS, "blas": kernels, "peaks": peaks, "bandwidth": copied}
        write_json(options.json, speeds | {"rows": table, "certified": certified})
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run the program; return 0, 2 after a one-line error, or 130 after Ctrl-C."""
    options = parse(arguments)
    return exit_status(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
