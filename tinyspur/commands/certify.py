"""The command certify: certificate, evidence and lower points nearby, for any point."""

from __future__ import annotations

import argparse
import math
import shlex

import numpy as np

from ..certificates import Certificate, StrictCertificate, round_down, round_up
from ..certificates import certify as find_certificate
from ..console import Stages
from ..engine import backend
from ..engine.losses import SquaredLoss
from ..engine.parameters import Parameters
from ..errors import AssumptionError
from ..files import write_json
from ..refutations.descent import DescentDirection, find_descent_direction
from ..refutations.escapes import (
    REACH,
    Escape,
    find_escape,
    measure_escape,
)
from ..refutations.evidence import gather_evidence
from .inputs import (
    check_output_files,
    load_data,
    loss_of,
    other_data,
    problem_words,
    read_lower,
    read_point,
)
from .proof import write_proof


def check(options: argparse.Namespace) -> None:
    """Raise an error for options of certify that are out of range."""
    if options.seed < 0:
        raise ValueError(f"--seed: expected 0 or more, got {options.seed}")
    if options.radius is not None and not 0 < options.radius < math.inf:
        raise ValueError(f"--radius: expected a finite number > 0, got {options.radius}")
    if options.proof is not None and options.loss != SquaredLoss.name:
        raise ValueError(f"--proof: expected --loss squared, got --loss {options.loss}")
    proof = options.proof, ["format", "claim"]
    check_output_files({"--json": (options.json, ["certificate", "verdict"]), "--proof": proof})


def judge(
    certificate: Certificate | None,
    obstacle: str,
    lower: Escape | None,
    downhill: DescentDirection | None,
) -> tuple[str, str]:
    """Return the verdict and the reason; `lower` is the lowest of the points that were found.

    "spurious local minimum", "local minimum", "spurious up to delta", "refuted", "undecided", or
    "contradiction": a point as low as the certificate says that there is none.
    """
    reason, where = obstacle if certificate is None else certificate.words, ""
    if lower is not None:
        where = f"; at distance {lower.distance:.3g} a point is lower by {lower.decrease:.3g}"
    if certificate is not None and certificate.proves:
        spurious = lower is not None and lower.decrease - lower.rounding > certificate.delta
        if spurious and lower.distance <= certificate.radius:
            return "contradiction", reason + where
        if certificate.holds:
            return "spurious " * spurious + "local minimum", reason + where * spurious
        if spurious:
            return f"spurious up to {round_up(certificate.delta)}", reason + where
    if downhill is not None and not downhill.beyond:
        return "refuted", f"not a local minimum, {downhill}{where}"
    if downhill is not None:
        where = f"; {downhill}{where}"
    elif lower is not None:
        where += ": so far from theta, this does not refute a local minimum"
    return "undecided", reason + where


def certify(options: argparse.Namespace) -> int:
    """Certify a point and look for lower ones; return 0 for a local minimum, 1 if it is open."""
    check(options)
    loss, chosen, stages = loss_of(options), backend.select(options.backend), Stages()
    stored = read_point(options)
    net, theta = stored.net, stored.to(chosen.xp, np.float64)
    if not net.size:
        raise ValueError(f"{options.point}: expected a network with parameters, got {net}")
    about, data, total = load_data(options, net)
    lower = None if options.lower is None else read_lower(options.lower, theta)
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
    proves = "" if certificate is None else certificate.proves
    if lower is not None:
        lower = measure_escape(theta, lower, str(options.lower), 1.0, data, loss)
        if not lower.decrease > lower.rounding:
            print(f"not lower, up to rounding: {lower}", flush=True)
            lower = None
    if proves != "P1":  # what refutes it at once, before what takes long
        with stages("descent", "looking for directions of descent"):
            downhill = find_descent_direction(theta, data, loss, seed=options.seed)
        if downhill is not None:
            print(f"{'note' if downhill.beyond else 'refuted'}: {downhill}", flush=True)
    if hasattr(loss, "subgradients"):
        print("no evidence: the loss has kinks, hence no Hessian")
    elif not options.no_evidence:
        with stages("evidence", "gathering evidence"):
            try:
                found = evidence = gather_evidence(theta, data, loss, options.seed)
            except AssumptionError as error:  # numbers that are too large
                found = f"no {error}"
        print(found, flush=True)
    radius = options.radius
    if radius is None:
        radius = certificate.radius if proves and math.isfinite(certificate.radius) else REACH
    if not options.no_search:
        with stages("search", "looking for lower points"):
            escape = find_escape(theta, data, loss, radius, seed=options.seed)
        found = escape or "nothing lower found" + ", which proves nothing" * (not proves)
        print(f"search within max-norm distance {round_down(radius)}: {found}", flush=True)
    if proves != "P1" and downhill is None and escape is not None:
        with stages("line", "looking along the line to the lower point"):
            downhill = find_descent_direction(theta, data, loss, escape, options.seed)
    if proves and lower is not None and lower.decrease - lower.rounding > certificate.delta:
        print(f"P3: {lower}", flush=True)
    verdict, reason = judge(certificate, obstacle, lower or escape, downhill)
    if proves != "P1" and length > 0 and StrictCertificate.applies(theta, loss):
        words = shlex.join(["settle", str(options.point), *problem_words(options)])
        print(f"next:    python -m tinyspur {words} goes on downhill from here")
    print(f"verdict: {verdict}: {reason}")
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
            "bounds": certificate and certificate.bounds(),
            "evidence": evidence and evidence.as_dict(),
            "radius": None if options.no_search else radius,
            "escape": escape and numbers_of(escape),
            "lower": lower and numbers_of(lower),
            "descent_direction": downhill and numbers_of(downhill),
            "verdict": verdict,
            "reason": reason,
        }
        write_json(options.json, {**report, "seconds": stages.seconds})
    if options.proof is not None:
        return 0 if write_proof(options.proof, stored, data, loss) else 1
    return 0 if verdict.endswith("local minimum") else 1


def numbers_of(found: Escape | DescentDirection) -> dict:
    """Return what a report says of a finding: all of its fields but points and directions."""
    return {key: value for key, value in vars(found).items() if not isinstance(value, Parameters)}
