"""Build a spurious local minimum of a convolutional network on real images, and prove it.

Writes report.json, one NPZ for each point and figure.png to the folder --out. With CIFAR-10 at
hand (--data, --download, the variable TINYSPUR_DATA or the cache folder) it is used, otherwise
the bundled Fashion-MNIST images are. With --figures also Figures 2 and 3 of the paper: the risk
around the points.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from argparse import SUPPRESS
from collections.abc import Callable
from itertools import chain
from pathlib import Path

# Ctrl-C ends it in one line while the rest is imported, too.
if __name__ == "__main__" and callable(signal.getsignal(signal.SIGINT)):
    signal.signal(signal.SIGINT, lambda *_: os._exit(os.write(2, b"interrupted\n") and 130))

# The matrix products are small: a second BLAS thread gains little, and loses much on busy cores.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


from tinyspur import datasets
from tinyspur.console import Bar, Help, Stages, exit_status
from tinyspur.constructions.data_split import SPLITS
from tinyspur.constructions.embedding import embed, linear_subnetwork, subnetwork
from tinyspur.constructions.exact_points import exact
from tinyspur.constructions.nontrivial import nontrivial_minimum
from tinyspur.constructions.relayed_pair import VARIANTS
from tinyspur.constructions.spurious import (
    SpuriousMinimum,
    find_spurious_minimum,
    risk_along_bias,
)
from tinyspur.constructions.witnesses import revive
from tinyspur.datasets.duplicates import find_duplicates
from tinyspur.datasets.samples import TrainingSet
from tinyspur.engine import backend
from tinyspur.engine.losses import CrossEntropy, SquaredLoss, loss_named, one_hot
from tinyspur.engine.network import Network
from tinyspur.engine.parameters import Parameters
from tinyspur.engine.points import save_point
from tinyspur.errors import AssumptionError
from tinyspur.figures.landscapes import draw_level_sets, draw_lines, draw_surfaces
from tinyspur.figures.points import draw_spurious_minimum
from tinyspur.files import check_outputs, check_writable, kept_name, write_json
from tinyspur.fitting.cost import training_cost, training_flops
from tinyspur.fitting.training import (
    Adam,
    descend,
    finished_epochs,
    kaiming_start,
    polish,
    train,
)
from tinyspur.landscape.planes import Lines
from tinyspur.landscape.scan import scan
from tinyspur.layers import Conv, Dense
from tinyspur.refutations.escapes import Escape
from tinyspur.studies.exact_files import KEYS, PROOF, short_pixels, words_of, write_findings
from tinyspur.studies.paper_figures import NUMBERS, Figures, read_figures, scan_figures
from tinyspur.studies.reports import POINTS, findings_of, other_settings, outputs, settings_of

DEFAULT_SAMPLES = 4000
ARCHITECTURES = {  # maps of the convolutions, epochs; paper: [CNN] Appendix F
    "small": ([4, 6, 6], 20),
    "paper": ([64, 64, 128, 128, 256, 256, 256], 150),
}
TRAINING = {  # defaults of --theta trained
    "batch_size": (128, "images of a mini-batch"),
    "learning_rate": (1e-3, "of Adam"),
    "weight_decay": (5e-4, "of Adam"),
    "polish": (300, "steps of L-BFGS after the training, 0 for none"),
}
LANDSCAPES = {  # defaults of --figures
    "grid": (21, "of N x N points in a plane"),
    "directions": (200, "random lines through each point"),
}
EXACT = {"loss": ["squared"], "variant": ["repaired"], "theta": ["linear", "nontrivial"]}
REPORT, CHECKPOINT, FIGURES = "report.json", "checkpoint.npz", "figures"
CURVE = 33  # points of the curve along a bias
DESCENT, BRIEF, MANY = 12, 3, 10_000  # steps of the descent, and with over so many images


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    parser.error = lambda message: parser.exit(2, f"error: {message}\n")
    option = parser.add_argument
    option(
        "--data", metavar="PATH", help="CIFAR-10 folder or archive, or an .npz of images and labels"
    )
    option("--download", action="store_true", help="fetch CIFAR-10 into the cache folder first")
    option(
        "--samples",
        type=int,
        metavar="N",
        default=SUPPRESS,
        help=f"samples to use (default: all, but {DEFAULT_SAMPLES} at most with small)",
    )
    option(
        "--loss",
        choices=[SquaredLoss.name, CrossEntropy.name],
        default=SquaredLoss.name,
        help="of a sample",
    )
    option("--label-smoothing", type=float, default=0.0, metavar="S", help="0 <= S < 1")
    option("--architecture", choices=ARCHITECTURES, default="small", help="3 x 3 convolutions")
    option(
        "--maps",
        type=int,
        nargs="+",
        default=SUPPRESS,
        metavar="M",
        help="other maps of the convolutions",
    )
    option(
        "--theta",
        choices=["linear", "nontrivial", "trained"],
        default="linear",
        help="the subnetwork",
    )
    text = "samples, of the nontrivial theta and of theta_1 in the figures (default: 1)"
    option("--isolated", type=int, default=SUPPRESS, metavar="M", help=text)
    option("--variant", choices=VARIANTS, default="repaired", help="of the construction")
    option("--split", choices=SPLITS, default="steepest", help="rule of the data split")
    option("--output-unit", type=int, metavar="K", help="output of the split; any, if not given")
    option("--dtype", choices=["float64", "float32"], default="float64", help="of theta")
    option("--backend", choices=["auto", "numpy", "cupy"], default="auto", help="arrays")
    option("--seed", type=int, default=0, help="of all random choices")
    text = f"of L-BFGS; 0 for none (default: {DESCENT}, {BRIEF} with over {MANY:,} images)"
    option("--descend", type=int, metavar="STEPS", help=text)
    text = "theta, theta' and the lower point as fractions, too (pixels are k/256)"
    option("--exact", action="store_true", help=text)
    option("--out", type=Path, default=Path("out"), metavar="FOLDER", help="for files")
    option = parser.add_argument_group("the landscapes of the paper's figures").add_argument
    option("--figures", action="store_true", help="level sets and lines around the points, too")
    for name, (default, text) in LANDSCAPES.items():
        text = f"{text} (default: {default})"
        option(f"--{name}", type=int, default=SUPPRESS, metavar="N", help=text)
    option("--replot", action="store_true", help="draw those of FOLDER again, and no more")
    option = parser.add_argument_group("--theta trained").add_argument
    epochs = ", ".join(f"{name} {epochs}" for name, (_, epochs) in ARCHITECTURES.items())
    option("--epochs", type=int, default=SUPPRESS, metavar="N", help=f"(default: {epochs})")
    for name, (default, text) in TRAINING.items():
        text, flag = f"{text} (default: {default:g})", f"--{name.replace('_', '-')}"
        option(flag, type=type(default), default=SUPPRESS, metavar="N", help=text)
    option("--resume", action="store_true", help=f"go on from FOLDER/{CHECKPOINT}")
    options = parser.parse_args(arguments)
    given = [name for name in ("epochs", *TRAINING) if name in options]
    given += ["resume"] * options.resume
    if given and options.theta != "trained":
        flag = given[0].replace("_", "-")
        parser.error(f"--{flag}: expected --theta trained, got --theta {options.theta}")
    given = [name for name in LANDSCAPES if name in options]
    if given and not options.figures:
        parser.error(f"--{given[0]}: expected --figures too")
    if "isolated" in options and options.theta != "nontrivial" and not options.figures:
        parser.error(f"--isolated: expected --theta nontrivial, got --theta {options.theta}")
    if options.figures and options.replot:
        parser.error("--replot: expected no --figures, got both")
    for name, allowed in EXACT.items():
        if options.exact and (value := getattr(options, name)) not in allowed:
            parser.error(f"--exact: expected --{name} {' or '.join(allowed)}, got {value}")
    maps, epochs = ARCHITECTURES[options.architecture]
    defaults = {"maps": maps, "epochs": epochs, **{name: TRAINING[name][0] for name in TRAINING}}
    defaults |= {"isolated": 1}
    defaults |= {name: default for name, (default, _) in LANDSCAPES.items()}
    options = argparse.Namespace(**{**defaults, **vars(options)})
    options.resumable, options.scanning = options.resume, False
    return options


def check(options: argparse.Namespace) -> None:
    """Raise ValueError for options out of range."""
    bounds = {"seed": 0, "descend": 0, "polish": 0, "epochs": 1, "batch_size": 1}
    bounds |= {"grid": 3, "directions": 1, "isolated": 1}
    for name, least in bounds.items():
        value = getattr(options, name)
        if value is not None and value < least:
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag}: expected {least} or more, got {value}")
    Adam(options.learning_rate, options.weight_decay)
    if options.resume:
        checkpoint = options.out / CHECKPOINT
        if not checkpoint.exists():
            raise ValueError(f"--resume: expected a checkpoint, there is no {checkpoint}")
        if (done := finished_epochs(checkpoint)) > options.epochs:
            raise ValueError(
                f"--epochs: expected {done} or more, as {checkpoint} has, got {options.epochs}"
            )


def load(options: argparse.Namespace) -> datasets.Dataset:
    """Return the images that the options ask for, and say which they are."""
    if options.download:
        datasets.download_cifar10()
    dataset = datasets.load(options.data)
    if dataset.name == datasets.BUNDLED_NAME:
        print("No CIFAR-10 found: using the bundled Fashion-MNIST images (see --data, --download).")
    for note in dataset.notes:
        print(f"{dataset.name}: {note}.")
    most = DEFAULT_SAMPLES if options.architecture == "small" else len(dataset)
    samples = getattr(options, "samples", min(most, len(dataset)))
    return dataset.subset(samples, options.seed)


def trained_point(options, net: Network, training_set, loss, xp, stages):
    """Return a trained point of `net` ([CNN] Lemma 6), and what the report says of it.

    `options.resumable` is set once there is a checkpoint of this run.
    """
    theta = kaiming_start(net, options.seed).to(xp, options.dtype)
    checkpoint, samples, epochs = options.out / CHECKPOINT, len(training_set), options.epochs
    done = finished_epochs(checkpoint) if options.resume else 0
    print(f"trained: {net}")
    if checkpoint.exists() and not options.resume:
        name = kept_name(checkpoint).name
        text = f"{checkpoint} is of an earlier run, from which --resume goes on: kept as {name}"
        print(f"{text} once there is a new one", file=sys.stderr)
    cost = (epochs - done, options.batch_size, options.polish)
    print(training_cost(theta, training_set, loss, *cost), file=sys.stderr, flush=True)
    adam = Adam(options.learning_rate, options.weight_decay)
    counts, shown = (epochs * samples, done * samples, " images"), done * samples
    with stages("training", "Adam", *counts) as bar:

        def show(epoch: int, images: int, risk: float) -> None:
            nonlocal shown
            options.resumable = options.resumable or epoch > 1
            now = (epoch - 1) * samples + images
            bar.advance(now - shown, f"epoch {epoch} of {epochs}, R = {risk:.6g}")
            shown = now

        settings = (epochs, options.batch_size, adam, options.seed, checkpoint, options.resume)
        theta = train(theta, training_set, loss, *settings, show)
    options.resumable = True
    with stages("polish", "L-BFGS", options.polish) as bar:
        polished = polish(theta, training_set, loss, options.polish, progress=stepping(bar))
    print(f"trained: {polished}")
    return polished.theta, {
        "epochs": epochs,
        "batch_size": options.batch_size,
        "learning_rate": adam.learning_rate,
        "weight_decay": adam.weight_decay,
        "risk_after_training": polished.risk_before,
        "polish": {"iterations": polished.iterations, "gradient": polished.gradient},
        "flops": training_flops(net, samples, epochs),
    }


def stepping(bar: Bar) -> Callable[[float], None]:
    """Return what to call with the risk after each step."""
    return lambda risk: bar.advance(note=f"R = {risk:.6g}")


def theta_1(options, net: Network, training_set, loss, xp) -> Parameters | None:
    """Return the point of [CNN] Theorem 2 for the figures, or say why there is none."""
    obstacle = None
    if (options.theta, options.variant, loss.name) != ("linear", "repaired", SquaredLoss.name):
        obstacle = "it goes with --theta linear, --variant repaired and the squared loss"
    else:
        settings = (training_set, loss, options.isolated, options.seed)
        try:
            phi = nontrivial_minimum(subnetwork(net), *settings)
            return embed(net, phi, training_set.x)[0].to(xp, options.dtype)
        except ValueError as error:  # AssumptionError is one
            obstacle = str(error)
    print(f"figures: without theta_1: {obstacle}")
    return None


def shorter_witness(found: SpuriousMinimum, training_set, loss, seed: int) -> Escape | None:
    """Return a lower point that uses a dead map; None where the risk is flat along its weights."""
    try:
        map = found.pair.upper, found.pair.reserved[0]
        known = found.risk, found.risk_rounding
        return revive(found.theta, training_set, loss, *map, seed, known)
    except AssumptionError:
        return None


def draw_figures(folder: Path, figures: Figures) -> None:
    """Write Figures 2 and 3 and the surfaces, and say what they show."""
    for panel in chain.from_iterable(figures.lines):
        name = panel.symbol.replace("$", "").replace("\\", "")
        print(f"around {name}: {panel.landscape}")
    for kind in ("png", "pdf"):
        draw_level_sets(folder / f"figure2.{kind}", figures.level_sets)
        draw_lines(folder / f"figure3.{kind}", figures.lines)
        draw_surfaces(folder / f"surfaces.{kind}", figures.level_sets[-1:])


def run(options: argparse.Namespace) -> None:
    """Build, certify, descend, print and write."""
    check(options)
    wanted = outputs(REPORT, f"{FIGURES}/{NUMBERS}", options.figures, options.replot)
    check_outputs(options.out, wanted | ({} if options.replot else {PROOF: KEYS}))
    if options.figures:
        check_writable(options.out / FIGURES)
    if options.replot:
        draw_figures(options.out, read_figures(options.out / FIGURES))
        return
    chosen = backend.select(options.backend)
    loss, stages = loss_named(options.loss), Stages()
    dataset = load(options)
    y = one_hot(dataset.labels, dataset.classes, options.label_smoothing)
    training_set = TrainingSet(short_pixels(dataset) if options.exact else dataset.pixels(), y)
    if options.output_unit not in (None, *range(dataset.classes)):
        raise ValueError(
            f"output unit: expected 0..{dataset.classes - 1}, got {options.output_unit}"
        )
    layers = [*map(Conv, options.maps), Dense(dataset.classes)]
    net = Network(dataset.input_shape, layers)
    duplicates = find_duplicates(dataset.images, dataset.labels)
    equal = f", {duplicates}" if duplicates.samples else ""
    print(f"data:    {dataset}{equal}\nnetwork: {net}")
    print(f"loss:    {loss.name}, label smoothing {options.label_smoothing:g}")
    print(f"backend: {chosen.reason}; {options.dtype}", flush=True)
    settings = (options.label_smoothing, options.seed, chosen.name, options.dtype, options.variant)
    settings = settings_of(dataset, duplicates, net, loss, *settings)
    settings |= {"pixels": "k/256"} if options.exact else {}
    if other := other_settings(options.out / REPORT, settings, options.theta == "trained"):
        text = f"the files of an earlier run, which has another {', '.join(other)}"
        print(f"{options.out}: {text}, will be replaced", file=sys.stderr)

    training = None
    if options.theta == "trained":
        sub = subnetwork(net, variant=options.variant, all_relayed=True)
        phi, training = trained_point(options, sub, training_set, loss, chosen.xp, stages)
    with stages("theta", f"building theta: the {options.theta} subnetwork"):
        if options.theta == "linear":
            phi = linear_subnetwork(subnetwork(net), training_set, loss, options.variant)
        elif options.theta == "nontrivial" and options.variant == "literal":
            raise ValueError("--theta nontrivial: expected --variant repaired, got literal")
        elif options.theta == "nontrivial":
            phi = nontrivial_minimum(
                subnetwork(net), training_set, loss, options.isolated, options.seed
            )
        theta, pair = embed(net, phi, training_set.x, options.variant)
        theta = theta.to(chosen.xp, options.dtype)
    found = find_spurious_minimum(
        theta,
        pair,
        training_set,
        loss,
        options.variant,
        options.split,
        options.output_unit,
        options.seed,
        stages,
    )
    print(f"\n{found}")
    fractions = None
    if options.exact:
        with stages("exact", "solving and checking in fractions"):
            fractions = exact(found, training_set, loss)
        print(fractions)
    if options.variant == "repaired":
        with stages("witness", "reviving a dead map"):
            witness = shorter_witness(found, training_set, loss, options.seed)
        if witness is not None and witness.decrease > witness.rounding:
            print(f"shorter witness that theta is not global, {witness}")
    with stages("curve", "risk along the bias"):
        steps, risks = risk_along_bias(found, training_set, loss, CURVE)
        along = None
        if found.escapes:
            line = Lines.between(theta, found.escape.theta, CURVE, margin=0.5)
            along = scan(line, training_set, loss)
    descended = None
    if (downhill := options.descend) is None:
        downhill = BRIEF if len(dataset) > MANY else DESCENT
    if downhill:
        text, lower = "L-BFGS from the lower point", found.lower.theta
        with stages("descent", text, downhill) as bar:
            descended = descend(lower, training_set, loss, downhill, stepping(bar))

    with stages("files", f"writing to {options.out}"):
        summary = settings | findings_of(found, descended, training_set, loss)
        escape = found.escape and found.escape.theta
        points = (found.theta, found.theta_prime, found.lower.theta, descended, escape)
        for name, point in zip(POINTS, points, strict=True):
            if point is not None:
                save_point(options.out / f"{name}.npz", point)
            else:  # that of an earlier run has no place beside these
                (options.out / f"{name}.npz").unlink(missing_ok=True)
        draw_spurious_minimum(options.out / "figure.png", found, steps, risks, along)
        summary |= write_findings(options.out, fractions)
    trained = {"training": training} if training else {}
    write_json(options.out / REPORT, {**summary, **trained, "seconds": stages.seconds})
    if fractions:
        print(words_of(summary["exact"]))
    if descended is not None:
        risk = summary["points"]["descended"]["risk"]
        print(
            f"descent: R = {risk:.9g} after at most {downhill} L-BFGS steps from the lower "
            f"point, lower than theta by {found.risk - risk:.3g}"
        )
    if options.figures:
        around, options.scanning = theta_1(options, net, training_set, loss, chosen.xp), True
        where = (training_set, loss, options.out / FIGURES)
        sizes = (options.grid, options.directions, options.seed)
        draw_figures(options.out, scan_figures(found, around, *where, *sizes, progress=True))
    elif (options.out / FIGURES).exists():
        print(f"figures: those in {options.out} are of an earlier run", file=sys.stderr)
    print(f"verdict: {found.verdict}")


def how_to_go_on(options: argparse.Namespace) -> str:
    """Return what there is after Ctrl-C that the same command goes on from."""
    checkpoint = options.out / CHECKPOINT
    if options.scanning:
        resume = " with --resume" if options.theta == "trained" else ""
        return f"the same command{resume} goes on from {options.out / FIGURES}"
    if options.resumable:
        return f"the same command with --resume goes on from {checkpoint}"
    if options.theta == "trained" and checkpoint.exists():
        return f"{checkpoint} is still that of the earlier run"
    return "nothing to resume"


def main(arguments: list[str] | None = None) -> int:
    """Run the program; return 0, 2 after a one-line error, or 130 after Ctrl-C."""
    options = parse(arguments)
    return exit_status(lambda: run(options), lambda: how_to_go_on(options))


if __name__ == "__main__":
    sys.exit(main())
