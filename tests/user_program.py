"""A program as a user writes it, with the types that it expects; `test_packaging` has mypy read it.

Each line that has to be refused says so: mypy also refuses a comment of that kind without need.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from typing_extensions import assert_type

import tinyspur as ts
from tinyspur import datasets


def work() -> None:
    """Use what the README uses."""
    images = datasets.bundled().subset(200, seed=0)
    pixels: NDArray[np.float64] = images.pixels()
    data = ts.TrainingSet(pixels, ts.one_hot(images.labels, images.classes))
    layers = [ts.Conv(4), ts.MaxPool(2), ts.Residual([ts.Conv(4)]), ts.Dense(10)]
    net = ts.Network((1, 28, 28), layers)
    loss: ts.Loss = ts.SquaredLoss()
    theta = ts.Parameters(net, np.zeros(net.size))
    assert_type(theta.net, ts.Network)
    risk: float = theta.net.risk(theta, data, loss)
    theta.net.risk(theta, data)  # type: ignore[call-arg]
    theta.net.depth = 3  # type: ignore[misc]
    theta.net.layer()  # type: ignore[attr-defined]
    theta.net.risk(data, theta, loss)  # type: ignore[arg-type]
    ts.Network((1, 28, 28), ts.Conv(4))  # type: ignore[arg-type]
    ts.certify(theta, data, "squared")  # type: ignore[arg-type]
    ts.TrainingSet([[1, 2], [3, 4]], None)  # type: ignore[arg-type]

    curve = ts.TrainingSet([[1, 2], [3, 4], [5, 6]], [0, 1, 0])
    groups = ts.Groups.equal(curve.x, [1.0, 0.0], 2)
    gates = ts.Network((1, 2), [ts.Dense(7), ts.Dense(1)])
    gated: ts.Parameters = ts.gated_minimum(gates, curve, loss, groups)
    print(gated.net.forward(gated, [[1, 2]]), ts.one_hot([0, 1, 0], 2))
    wrong: str = net.risk(theta, data, loss)  # type: ignore[assignment]
    outputs: NDArray[np.float64] = net.forward(theta, data.x)
    print(risk, wrong, outputs)

    step: ts.Parameters = theta - 0.1 * net.gradient(theta, data, loss) / 2
    length: float = (theta - step).norm()
    theta + 1  # type: ignore[operator]
    theta.b[1] = np.ones(4)
    theta.b[1] += 1
    theta.W[1].weights[...] = 2.0
    theta.W[1] = theta.W[1].weights
    theta.vector *= 2
    theta.W["1"]  # type: ignore[index]
    print(length)

    W: ts.WeightMatrix = theta.W[1]
    rows: int = len(W)
    shape: tuple[int, int] = W.shape
    entries: NDArray[np.float64] = W.toarray()
    block: NDArray[np.float64] = W.block(0, 0)
    print(rows, shape, entries, block, W @ data.x[0].ravel(), 0.5 * W, W.T @ W)

    certificate: ts.Certificate = ts.certify(theta, data, loss)
    holds: bool = certificate.holds
    cell: ts.CellCertificate = ts.certify_cell(theta, data, loss)
    radius: float = cell.radius
    print(ts.find_escape(theta, data, loss, radius=0.1).decrease)  # type: ignore[union-attr]
    escape = ts.find_escape(theta, data, loss, radius=0.1)
    lower: float = 0.0 if escape is None else escape.decrease
    end: ts.Settled = ts.settle(theta, data, loss, steps=3)
    evidence: ts.Evidence = ts.gather_evidence(theta, data, loss)
    print(holds, radius, lower, end.radius, evidence)

    point, pair = ts.linear_minimum(net, data, loss)
    found: ts.SpuriousMinimum = ts.find_spurious_minimum(point, pair, data, loss)
    verdict: str = found.verdict
    split: ts.DataSplit = found.split
    moved: ts.Parameters = found.lower.theta
    plane = ts.Plane.through(theta, point, moved, steps=9)
    landscape: ts.Landscape = ts.scan(plane, data, loss)
    lines: ts.Landscape = ts.scan(ts.Lines.random(theta, count=5, extent=0.5), data, loss)
    print(verdict, split, landscape, lines)

    ts.save_point(Path("point.npz"), theta)
    again: ts.Parameters = ts.load_point("point.npz")
    trained: ts.Parameters = ts.train(ts.kaiming_start(net, seed=0), data, ts.CrossEntropy(), 3)
    fit: ts.AffineFit = ts.fit_affine(data.x, data.y, loss)
    print(again, trained, fit)
