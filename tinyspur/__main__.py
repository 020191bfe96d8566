"""Certify and inspect points from the command line: python -m tinyspur."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from . import datasets
from .certificates import Certificate, round_down
from .certificates import certify as find_certificate
from .console import Stages, exit_status
from .datasets.samples import TrainingSet
from .engine import backend
from .engine.losses import HuberLoss, loss_named, one_hot
from .engine.network import Network
from .engine.parameters import Parameters
from .engine.points import load_point
from .errors import AssumptionError
from .files import check_writable, naming, write_json
from .refutations.escapes import DescentDirection, Escape, find_descent_direction, find_escape
from .refutations.evidence import gather_evidence
from .studies.findings import REACH

LARGEST_CORNER = 1000  # rows and columns that are shown at most
EXAMPLES = """examples:
  python -m tinyspur certify out/theta.npz
  python -m tinyspur inspect out/theta.npz"""
CERTIFY_EXAMPLES = """exit status:
  0 certified, 1 refuted or undecided, 2 an error in the input

examples:
  python demos/cifar_spurious.py --out out
  python -m tinyspur certify out/theta.npz --no-evidence --no-search

  python demos/cifar_spurious.py --loss cross-entropy --label-smoothing 0.1 --out out/ce
  python -m tinyspur certify out/ce/theta.npz --loss cross-entropy --label-smoothing 0.1

  python demos/cifar_spurious.py --data cifar-10-batches-bin --out out/cifar
  python -m tinyspur certify out/cifar/theta.npz --data cifar-10-batches-bin --samples 4000

  python -m tinyspur certify point.npz --data regression.npz --loss huber --json report.json"""
INSPECT_EXAMPLES = """examples:
  python -m tinyspur inspect out/theta.npz
  python -m tinyspur inspect out/theta.npz --layer 2 --size 6
  python -m tinyspur inspect out/theta.npz --layer 2 --block 2 0"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        self.exit(2, f"error: {message}\n")


def path(text: str) -> Path:
    """Return the path of an argument, which may not be empty."""
    if not text:
        raise argparse.ArgumentTypeError("expected a path, got an empty one")
    return Path(text)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    text = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    whole = _Parser("python -m tinyspur", description=__doc__, epilog=EXAMPLES, **text)
    whole.add_argument("--version", action="store_true", help="print the version")
    commands = whole.add_subparsers(dest="command", metavar="COMMAND")
    about = "print certificate, evidence and lower points nearby, for any point"
    command = commands.add_parser(
        "certify", help=about, description=about, epilog=CERTIFY_EXAMPLES, **text
    )
    command.set_defaults(run=certify)
    option = command.add_argument
    option("point", type=path, help="an .npz as save_point writes it")
    data = (
        "a CIFAR-10 folder or archive, an .npz with images and labels, or one with float arrays "
        "x (N, C, H, W) or (N, C, W) and y (N, d_y), which are taken as they are (default: "
        f"${datasets.DATA_VARIABLE}, CIFAR-10 in the cache folder, or the bundled images)"
    )
    option("--data", type=path, metavar="PATH", help=data)
    option("--samples", type=int, metavar="N", help="samples, drawn with the seed (default: all)")
    losses = ["squared", "cross-entropy", "absolute", "huber"]
    option("--loss", choices=losses, default="squared", help="loss of a sample (default: squared)")
    option("--delta", type=float, help="where the Huber loss turns linear (default: 1)")
    option("--label-smoothing", type=float, default=0.0, metavar="S", help="0 <= S < 1")
    radius = f"largest change in the search (default: the certificate's radius, or {REACH:g})"
    option("--radius", type=float, metavar="R", help=radius)
    option("--backend", choices=["auto", "numpy", "cupy"], default="auto", help="array library")
    seed = "of all random choices, also of the samples that are drawn (default: 0)"
    option("--seed", type=int, default=0, metavar="N", help=seed)
    option("--no-evidence", action="store_true", help="skip evidence (as long as 300 gradients)")
    option("--no-search", action="store_true", help="skip the search (as long as 250 gradients)")
    about = "write a report to FILE; a folder that does not exist is made"
    option("--json", type=path, metavar="FILE", help=about)
    about = "print the layers of a point, or a corner of one of its weight matrices"
    command = commands.add_parser(
        "inspect", help=about, description=about, epilog=INSPECT_EXAMPLES, **text
    )
    command.set_defaults(run=inspect)
    option = command.add_argument
    option("point", type=path, help="an .npz as save_point writes it")
    option("--layer", type=int, metavar="L", help="show entries of W[L]; layers count from 1")
    option("--block", type=int, nargs=2, metavar=("T", "C"), help="from channel C to map T only")
    option("--size", type=int, metavar="N", help="rows and columns to show (default: 10)")
    return whole


def check(options: argparse.Namespace) -> None:
    """Raise an error for options of certify that are out of range."""
    if options.seed < 0:
        raise ValueError(f"--seed: expected 0 or more, got {options.seed}")
    if options.radius is not None and not 0 < options.radius < math.inf:
        raise ValueError(f"--radius: expected a finite number > 0, got {options.radius}")
    if options.delta is not None and options.loss != HuberLoss.name:
        raise ValueError(f"--delta: expected --loss huber, got --loss {options.loss}")
    if options.json is not None:
        check_writable(options.json.parent)
        if options.json.exists() and not options.json.is_file():
            kind = "the folder" if options.json.is_dir() else "a device or a pipe,"
            raise OSError(f"--json: expected a file, got {kind} {options.json}")


@contextmanager
def argument(name: str) -> Iterator[None]:
    """Name the argument in the error for a file that can't be opened."""
    try:
        yield
    except OSError as error:
        raise type(error)(f"{name}: {error}") from error


def read_point(options: argparse.Namespace) -> Parameters:
    """Return the point that the arguments name."""
    with argument("point"):
        return load_point(options.point)


def read_data(options: argparse.Namespace) -> TrainingSet | datasets.Dataset:
    """Return all samples x and y, or labelled images, that the arguments name."""
    if options.data is None:
        return datasets.load()
    with argument("--data"):
        return datasets.load_samples(options.data) or datasets.load(options.data)


def check_fit(name: str, *parts: tuple[str, object, object]) -> None:
    """Raise ValueError unless the data fit the network; each part is (what, expected, found)."""
    for what, wanted, got in parts:
        if wanted != got:
            raise ValueError(f"{name}: the network expects {what} {wanted}, got {got}")


def load_data(options: argparse.Namespace, net: Network) -> tuple[dict, TrainingSet, int]:
    """Return what a report says of the data, the samples, and how many there were to draw from."""
    data, outputs = read_data(options), math.prod(net.shapes[-1])
    total = len(data)
    if isinstance(data, TrainingSet):
        if options.label_smoothing:
            raise ValueError(f"--label-smoothing: expected labels, got targets y: {options.data}")
        name, classes = options.data.stem, None
        check_fit(
            name,
            ("samples x of shape", net.input_shape, data.x.shape[1:]),
            ("targets y of width", outputs, data.y.shape[1]),
        )
        if options.samples is not None:
            with naming(f"{name}:"):
                data = data.subset(options.samples, options.seed)
    else:
        images, name, classes = data, data.name, data.classes
        check_fit(
            name,
            ("images of shape", net.input_shape, images.input_shape),
            ("classes, as many as outputs,", outputs, classes),
        )
        if options.samples is not None:
            images = images.subset(options.samples, options.seed)
        y = one_hot(images.labels, classes, options.label_smoothing)
        data = TrainingSet(images.pixels(), y)
    print(f"data:    {name}: {len(data)} samples {data.x.shape[1:]}, targets {data.y.shape[1:]}")
    about = {"name": name, "samples": len(data), "input_shape": list(data.x.shape[1:])}
    return {**about, "classes": classes}, data, total


def report_beside(point: Path) -> dict | None:
    """Return what the report.json beside `point` says of its data; None if it says nothing.

    The keys are name, samples, loss, label_smoothing and seed.
    """
    file = point.with_name("report.json")
    try:
        report = json.loads(file.read_text("utf-8")) if file.is_file() else {}
        files = [about["file"] for about in report["points"].values()]
        said = {key: report["dataset"][key] for key in ("name", "samples")}
        said |= {key: report[key] for key in ("loss", "label_smoothing", "seed")}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    kinds = (str, int, str, int | float, int)
    sound = all(isinstance(value, kind) for value, kind in zip(said.values(), kinds, strict=True))
    return said if sound and point.name in files else None


def other_data(options: argparse.Namespace, about: dict, total: int) -> str:
    """Return how data and loss in the report beside the point differ from these, in words, or "".

    The seed matters only where samples were drawn from more, label smoothing only with labels.
    """
    said, words = report_beside(options.point), []
    if said is None:
        return ""
    name, samples = " ".join(said["name"].split()), said["samples"]
    other_name, other_number = said["name"] != about["name"], samples != about["samples"]
    if other_number:
        words.append(f"{samples} samples" + f" of {name}" * other_name)
    elif other_name:
        words.append(f"the data set {name}")
    if said["loss"] != options.loss:
        words.append(f"the {' '.join(said['loss'].split())} loss")
    smoothing = said["label_smoothing"]
    if about["classes"] is not None and smoothing != options.label_smoothing:
        words.append(f"label smoothing {smoothing:g}")
    if samples < total and said["seed"] != options.seed:
        words.append(f"seed {said['seed']}")
    return ", ".join(words)


def judge(
    certificate: Certificate | None,
    obstacle: str,
    escape: Escape | None,
    downhill: DescentDirection | None,
) -> tuple[str, str]:
    """Return "certified", "refuted", "undecided" or "contradiction", and the reason."""
    reason, lower = obstacle if certificate is None else certificate.words, ""
    if escape is not None:
        lower = f"; at distance {escape.distance:.3g} a point is lower by {escape.decrease:.3g}"
    if certificate is not None and certificate.holds:
        if escape is not None and escape.distance <= certificate.radius:
            return "contradiction", reason + lower
        return "certified", reason
    if downhill is not None:
        return "refuted", f"not a local minimum, {downhill}{lower}"
    if escape is not None:
        lower += ": so far from theta, this does not refute a local minimum"
    return "undecided", reason + lower


def certify(options: argparse.Namespace) -> int:
    """Certify a point and look for lower ones; return 0 if it is certified, 1 if not."""
    check(options)
    chosen, stages = backend.select(options.backend), Stages()
    loss = loss_named(options.loss) if options.delta is None else HuberLoss(options.delta)
    stored = read_point(options)
    net, theta = stored.net, stored.to(chosen.xp, np.float64)
    if not net.size:
        raise ValueError(f"{options.point}: expected a network with parameters, got {net}")
    about, data, total = load_data(options, net)
    with np.errstate(over="ignore", invalid="ignore"):
        risk, gradient = net.risk_and_gradient(theta, data, loss)
        length = float((gradient.vector**2).sum()) ** 0.5
    if not math.isfinite(risk) or not math.isfinite(length):
        raise ValueError(
            f"{options.point} with the data {options.data or about['name']}: expected finite risk, "
            f"gradient, got {risk}, {length}: numbers of the point or of the data are too large"
        )
    dtype = str(stored.vector.dtype)
    note = ", taken as it is: a minimum may lie next to it" * (dtype != "float64")
    print(f"point:   {net}, {net.activation}, {dtype}{note}")
    print(f"loss:    {loss}, label smoothing {options.label_smoothing:g}")
    if other := other_data(options, about, total):
        print(f"note:    the report.json beside this point is for {other}", end=" ")
        print("(a certificate belongs to its data and loss)")
    print(f"backend: {chosen.reason}")
    print(f"risk:    {risk:.9g}, gradient {length:.2g}", flush=True)

    evidence = escape = downhill = None
    certificate, obstacle = None, ""
    with stages("certificate", "certifying"):
        try:
            certificate = find_certificate(theta, data, loss)
        except AssumptionError as error:  # no kind of certificate is for such a point
            obstacle = str(error)
    print(certificate or obstacle, flush=True)
    if hasattr(loss, "subgradients"):
        print("no evidence: the loss has kinks, hence no Hessian")
    elif not options.no_evidence:
        with stages("evidence", "gathering evidence"):
            evidence = gather_evidence(theta, data, loss, options.seed)
        print(evidence, flush=True)
    holds = certificate is not None and certificate.holds
    radius = options.radius
    if radius is None:
        radius = certificate.radius if holds and math.isfinite(certificate.radius) else REACH
    if not options.no_search:
        with stages("search", "looking for lower points"):
            escape = find_escape(theta, data, loss, radius, seed=options.seed)
        found = escape or "nothing lower found" + ", which proves nothing" * (not holds)
        print(f"search within max-norm distance {round_down(radius)}: {found}", flush=True)
    if not holds:
        with stages("descent", "looking for directions of descent"):
            downhill = find_descent_direction(theta, data, loss, escape, options.seed)
    verdict, reason = judge(certificate, obstacle, escape, downhill)
    print(f"verdict: {reason}" if verdict == "certified" else f"verdict: {verdict}: {reason}")
    if options.json is not None:
        report = {
            "point": str(options.point),
            "dataset": about,
            "network": net.spec,
            "dtype": dtype,
            "loss": {"name": loss.name, **vars(loss)},
            "label_smoothing": options.label_smoothing,
            "seed": options.seed,
            "backend": chosen.name,
            "risk": risk,
            "gradient_norm": length,
            "certificate": certificate and certificate.as_dict(),
            "evidence": evidence and evidence.as_dict(),
            "radius": None if options.no_search else radius,
            "escape": escape and numbers_of(escape),
            "descent_direction": downhill and numbers_of(downhill),
            "verdict": verdict,
            "reason": reason,
        }
        write_json(options.json, {**report, "seconds": stages.seconds})
    return 0 if verdict == "certified" else 1


def numbers_of(found: Escape | DescentDirection) -> dict:
    """Return what a report says of a finding: all of its fields but points and directions."""
    return {key: value for key, value in vars(found).items() if not isinstance(value, Parameters)}


def layer_table(theta: Parameters) -> str:
    """Return a line for each layer: shapes, nonzeros, and the range of weights and biases."""
    rows = [("layer", "kind", "output", "matrix", "filters", "nonzeros", "weights", "biases")]
    for layer, kind in enumerate(theta.net.spec["layers"], start=1):
        W, filters, ranges = theta.W[layer], "-", ["-", "-"]
        if layer in theta.b:
            filters = "x".join(map(str, W.weights.shape)) if kind["type"] == "conv" else "-"
            ranges = [f"{v.min():.4g} .. {v.max():.4g}" for v in (W.weights, theta.b[layer])]
        output, shape = "x".join(map(str, theta.net.shapes[layer])), "{} x {}".format(*W.shape)
        rows.append((str(layer), kind["type"], output, shape, filters, str(W.nnz), *ranges))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def corner(options: argparse.Namespace, theta: Parameters) -> str:
    """Return the first rows and columns of W[L], or of one block of it, as NumPy prints them."""
    depth, layer = theta.net.depth, options.layer
    size = 10 if options.size is None else options.size
    for name, value, last in (("layer", layer, depth), ("size", size, LARGEST_CORNER)):
        if not 1 <= value <= last:
            raise ValueError(f"--{name}: expected 1..{last}, got {value}")
    W, where = theta.W[layer], ""
    if W.selects:
        raise ValueError(f"--layer: {W} has entries only for a given input, as W.at(o)")
    rows, columns = map(range, W.shape)
    if options.block is not None:
        t, c = options.block
        for name, value, maps in (("map", t, W.maps_out), ("channel", c, W.maps_in)):
            if not 0 <= value < maps:
                raise ValueError(f"--block: expected a {name} in 0..{maps - 1}, got {value}")
        rows = rows[t * W.positions_out : (t + 1) * W.positions_out]
        columns = columns[c * W.positions_in : (c + 1) * W.positions_in]
        where = f" of the block from channel {c} to map {t}"
    rows, columns = rows[:size], columns[:size]
    with np.printoptions(threshold=sys.maxsize, linewidth=sys.maxsize):
        entries = W[rows.start : rows.stop, columns.start : columns.stop]
        head = f"rows {rows[0]}..{rows[-1]}, columns {columns[0]}..{columns[-1]}{where}"
        return f"theta.W[{layer}]  {W}\n{head}\n{entries}"


def inspect(options: argparse.Namespace) -> int:
    """Print the layers of a point, or entries of one of its matrices; return 0."""
    theta = read_point(options)
    if options.layer is not None:
        print(corner(options, theta))
        return 0
    for name in ("block", "size"):
        if getattr(options, name) is not None:
            raise ValueError(f"--{name}: expected --layer too")
    print(f"{theta.net}, {theta.net.activation}, {theta.vector.dtype}")
    print(f"\n{layer_table(theta)}\n")
    for layer, W in theta.W.items():
        print(f"theta.W[{layer}]  {W}")
    print(f"\n{theta.net.size} parameters")
    return 0


def version() -> str:
    """Return the version that is installed."""
    try:
        return importlib.metadata.version("tinyspur")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return its status, 2 without one or after an error, 130 after Ctrl-C."""
    program, status = parser(), []
    options = program.parse_args(arguments)
    if options.version:
        print(f"tinyspur {version()}")
        return 0
    if options.command is None:
        program.print_help()
        return 2
    try:
        return exit_status(lambda: status.append(options.run(options))) or status[0]
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # quiet where a reader has closed the pipe
    sys.exit(main())
