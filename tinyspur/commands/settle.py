"""The command settle: from where training stopped to a local minimum, and the proof of it."""

from __future__ import annotations

import argparse
import math

import numpy as np

from ..engine.points import save_point
from ..files import write_json
from ..fitting.settle import INTERRUPTED
from ..fitting.settle import settle as find_settled
from .inputs import check_output_files, load_data, loss_of, read_point


def check(options: argparse.Namespace) -> None:
    """Raise an error for options of settle that are out of range."""
    if options.seed < 0:
        raise ValueError(f"--seed: expected 0 or more, got {options.seed}")
    if options.steps < 1:
        raise ValueError(f"--steps: expected 1 or more, got {options.steps}")
    if not options.seconds > 0:
        raise ValueError(f"--seconds: expected a number > 0, got {options.seconds}")
    report = options.json, ["reason", "settled"]
    check_output_files({"--out": (options.out, ["spec"]), "--json": report})


def settle(options: argparse.Namespace) -> int:
    """Settle a point and write where it ended; return 0 if a local minimum is proved, 1 if not.

    After Ctrl-C it writes the best point, too, and returns 130.
    """
    check(options)
    loss, stored = loss_of(options), read_point(options)
    theta = stored.to(np, np.float64)
    if not theta.net.size:
        raise ValueError(f"{options.point}: expected a network with parameters, got {theta.net}")
    about, data, _ = load_data(options, theta.net)
    print(f"point:   {theta.net}, {theta.net.activation}, {stored.vector.dtype}")
    print(f"loss:    {loss}, label smoothing {options.label_smoothing:g}", flush=True)
    found = find_settled(theta, data, loss, options.steps, options.seconds, progress=True)
    print(found)
    save_point(options.out, found.theta)
    print(f"written: {options.out}")
    if options.json is not None:
        low, high = found.risk_interval
        report = {
            "point": str(options.point),
            "dataset": about,
            "network": theta.net.spec,
            "loss": {"name": loss.name, **vars(loss)},
            "label_smoothing": options.label_smoothing,
            "seed": options.seed,
            "settled": found.settled,
            "reason": found.reason,
            "risk_before": found.risk_before,
            "risk": found.risk,
            "moved": found.moved,
            "kinks": [
                {
                    "layer": kink.layer,
                    "units": [int(unit) for unit in kink.units],
                    "samples": [int(sample) for sample in kink.samples],
                }
                for kink in found.kinks
            ],
            "multipliers": found.multipliers.tolist(),
            "certificate": found.certificate and found.certificate.as_dict(),
            "bounds": found.certificate and found.certificate.bounds(),
            "risk_interval": [low, high] if math.isfinite(low) else None,
            "file": str(options.out),
        }
        write_json(options.json, report)
    if INTERRUPTED in found.reason:
        return 130
    return 0 if found.holds else 1
