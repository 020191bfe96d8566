"""The smallest counterexamples to statements of the papers, in numbers to check with a pencil.

One function for each, with its words and its proofs. Kernels have one pixel where the statement
does not need more, inputs one or two pixels. Layers count from 1, and u = o - y.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise

from ..certificates.proofs import proof
from ..engine.network import Network
from ..layers import AveragePool, Conv, Dense
from .erratum import Erratum, column, descent, identity, minimum, pixels

RELAYED = [[0]], [[0]], [[1]]  # filters of two maps that read nothing, and of a relay


ONE = Network((1, 1), [Conv(1, 1), Conv(3, 1), Conv(3, 1), Dense(1)])  # of one pixel
ONE_SUB = Network((1, 1), [Conv(1, 1), Dense(1)])
TENT = pixels(0, 1, 2), column(0, 1, 0)


def literal_one() -> dict:
    """Return the printed theta for x = 0, 1, 2 and y = 0, 1, 0, whose best affine fit is 1/3."""
    point = {"W1": [[[1]]], "b1": [1], "W2": list(RELAYED), "b2": [0, 0, 0]}
    return point | {"W3": identity(3), "b3": [0, 0, 0], "W4": [[0, 0, 0]], "b4": ["1/3"]}


def e1() -> Erratum:
    theta = literal_one()
    changes = {("W2", 0, 0, 0): 1, ("b2", 0): -2, ("W4", 0, 0): -1}
    fit = {"W1": [[[1]]], "b1": [1], "W2": [[0]], "b2": ["1/3"]}
    repaired = theta | {"b2": [-1, -1, 0], "b3": [-1, -1, 0]}
    lower = theta | {"W2": [[[1]], [[0]], [[1]]], "b2": [-2, 0, 0]}
    lower |= {"W4": [[-2, 0, 1]], "b4": [-1]}  # x - 2 (x - 1)⁺
    return Erratum(
        "E1",
        "[CNN] Lemmas 1 and 6",
        "If the subnetwork is at a local minimum, θ, with relays and reserved maps of bias 0 "
        "as in (23), is a local minimum.",
        "Layer 1 hands on x + 1, map 3 of layers 2 and 3 relays it, maps 1 and 2 are reserved; the "
        "output is the best affine fit, 1/3, and u = o - y = (1, -2, 1)/3. The reserved map 1 is "
        "at its kink, z = 0. Give it in layer 2 the filter t and the bias -2t, so that it shows "
        "t (x - 1)⁺ = (0, 0, t), and in layer 4 the weight -t: the output for x = 2 becomes "
        "1/3 - t². Then 6 (R(t) - R) = (1/3 - t²)² - 1/9 = -2t²/3 + t⁴. All derivatives "
        "of first order are 0: θ is a saddle. With bias -1 in the reserved maps it is a "
        "spurious local minimum.",
        {
            "E1-subnetwork": minimum(ONE_SUB, *TENT, fit, "1/9"),
            "E1": descent(ONE, *TENT, theta, changes, 2, "-1/9", "1/9"),
            "E1-repaired": proof(
                "spurious-local-minimum", ONE, *TENT, {"theta": repaired, "lower": lower}
            ),
        },
    )


def e2() -> Erratum:
    net = Network((1, 1), [Conv(2, 1), Conv(4, 1), Conv(4, 1), Dense(1)])
    data = pixels(0, 1, 2, 6), column(0, 3, 0, -2)
    below = {"W1": [[[1]], [[1]]], "b1": [-3, 1]}
    theta = below | {"W2": [[[0], [0]], [[0], [0]], *identity(2)], "b2": [0] * 4}
    theta |= {"W3": identity(4), "b3": [0] * 4, "W4": [[0, 0, -1, 0]], "b4": [1]}
    changes = {("W2", 2, 1, 0): 1, ("b2", 2): -2}
    sub = Network((1, 1), [Conv(2, 1), Dense(1)])
    return Erratum(
        "E2",
        "[CNN] Lemmas 1 and 6, nonlinear subnetwork",
        "The same for any local minimum of the subnetwork.",
        "Layer 1 has the maps (x - 3)⁺ = (0, 0, 0, 3) and x + 1; the output is 1 - (x - 3)⁺, "
        "of which 1 is the best affine fit for x = 0, 1, 2, u = (1, -2, 1), and the output for "
        "x = 6 is exact. That is a local minimum of the subnetwork. But the relay in layer 2 is at "
        "the kink where (x - 3)⁺ = 0. Let it read the other map with weight t and bias -2t: it "
        "then has (x - 3)⁺ + t (x - 1), of which (0, 0, t, 3 + 5t) passes. The output falls by t "
        "for x = 2 and by 5t for x = 6, so 8 (R(t) - R) = -2t + t² + 25t²: R falls at first order.",
        {
            "E2-subnetwork": minimum(sub, *data, below | {"W2": [[-1, 0]], "b2": [1]}, "3/4"),
            "E2": descent(net, *data, theta, changes, 1, "-1/4", "3/4"),
        },
    )


def e3() -> Erratum:
    net = Network((1, 1), [Conv(2, 1), Conv(3, 1), Conv(3, 1), Dense(1)])
    data = pixels(0, 1, 2), column(0, 4, 2)
    theta = {"W1": [[[1]], [[2]]], "b1": [1, -3], "W2": [[[0], [0]], [[0], [0]], [[1], [0]]]}
    theta |= {"b2": [0] * 3, "W3": identity(3), "b3": [0] * 3, "W4": [[0, 0, 1]], "b4": [0]}
    sub = {"W1": [[[1]]], "b1": [1], "W2": [[1]], "b2": [0]}
    return Erratum(
        "E3",
        "[CNN] Lemma 6, (23)",
        "Only the first min(n_{L-2} - 2P, n_{L-3}) maps of layer L-3 are relayed; nothing is asked "
        "of the others, and θ is a local minimum.",
        "Layer 1 has two maps, layer 2 room for one relay. Map 1, x + 1, is relayed and is the "
        "best affine fit, with u = (1, -2, 1). Map 2, (2x - 3)⁺ = (0, 0, 1), is not relayed. "
        "Let the relay read it with weight -t: the output falls by t for x = 2, so "
        "6 (R(t) - R) = -2t + t². Every map of layer L-3 must be relayed or dead.",
        {
            "E3-subnetwork": minimum(ONE_SUB, *data, sub, "1"),
            "E3": descent(net, *data, theta, {("W2", 2, 1, 0): -1}, 1, "-1/3", "1"),
        },
    )


def e4() -> Erratum:
    net = Network((1, 2), [Conv(1, 1), Conv(3, 1), Conv(3, 1), Dense(1)])
    x, y, u = [(2, 3), (1, -1), (0, -5)], [-2, 4, 4], [1, -2, 1]
    theta = {"W1": [[[1]]], "b1": [6], "W2": list(RELAYED), "b2": [0] * 3}
    theta |= {"W3": identity(3), "b3": [0] * 3, "W4": [[0, 0, 0, 0, 1, -1]], "b4": [0]}
    points = []
    for step in (Fraction(1, 4), Fraction(-1, 4)):
        prime = {"W1": [[[1]]], "b1": [5], "W2": [[[-1]], [[1]], [[1]]]}
        prime |= {"b2": ["13/2", Fraction(-13, 2) + step, 0], "b3": ["15/2", "15/2", 0]}
        signs = zip((-1, 1, 1), identity(3), strict=True)
        prime["W3"] = [[[sign * v for v in taps] for taps in row] for sign, row in signs]
        points.append(prime | {"W4": [[1, -1, 1, -1, 0, 0]], "b4": [0]})
    midpoints = []
    for j in (0, 1):  # the values differ, so that each group is one sample
        n = next(i for i in range(3) if u[i])
        midpoints.append(Fraction(x[n][j] + x[n + 1][j], 2))
    eta, h = max((value, j) for j, value in enumerate(midpoints))
    above = [sum(u[i] for i in range(3) if x[i][j] > eta) for j in (0, 1)]
    if (eta, h, above) != (Fraction(3, 2), 0, [1, 1]):
        raise RuntimeError(f"E4: expected sums 1 above 3/2 at both locations, got {eta, h, above}")
    claims = [
        proof(
            "equal-risk",
            net,
            pixels(*x),
            column(*y),
            {"theta": theta, "theta_prime": prime},
            risks={"theta": 1, "theta_prime": 1},
        )
        for prime in points
    ]
    return Erratum(
        "E4",
        "[CNN] Lemma 2, (8), with η as in G.2; Lemmas 5 and 10, (63)",
        "With the biggest midpoint threshold η, the sum of u over {i : v_i^j > η} is 0 at every "
        "location j but h; hence R falls as b_2^{L-2} moves from θ' to the proper side.",
        "Two pixels are the two locations: v = (2, 1, 0) and (3, -1, -5). The output x_1 - x_2 is "
        "a best affine fit, with u = (1, -2, 1). At each location the first group with a sum of u "
        "that is not 0 is the first sample; the midpoints are 3/2 and 1, so η = 3/2 and h = 1. At "
        "location 2, too, v = 3 lies above η, and the sum there is u_1 = 1. (63) promises the "
        "slope w^h u_1/3 = 1/3; it is (w^1 + w^2) u_1/3 = 0. Indeed moving b_2^{L-2} of θ' by any "
        "|δ| < 1/2 adds δ to both locations of sample 1, which cancel: no output changes. The "
        "files have θ, and θ' of (25) moved by 1/4 and by -1/4.",
        {
            "E4-subnetwork": minimum(
                Network((1, 2), [Conv(1, 1), Dense(1)]),
                pixels(*x),
                column(*y),
                {"W1": [[[1]]], "b1": [6], "W2": [[1, -1]], "b2": [0]},
                "1",
            ),
            "E4-up": claims[0],
            "E4-down": claims[1],
        },
    )


def e5() -> Erratum:
    moved = literal_one() | {"W4": [[0, 0, 1]]}
    return Erratum(
        "E5",
        "[CNN] (64), in the proofs of Lemmas 3 and 10",
        "Perturbing W^L(1, .) leaves the risk unchanged: R(θ + δθ) = R(θ).",
        "True to first order only. At the point of E1 let the weight of the relay, which shows "
        "x + 1 = (1, 2, 3), grow from 0 to t: R(t) = 1/9 + t² (1 + 4 + 9)/6. At t = 1 it is 22/9. "
        "The file starts at t = 1 and goes back: the decrease at its end is 7/3. (t must be "
        "chosen small against what is gained afterwards.)",
        {"E5": descent(ONE, *TENT, moved, {("W4", 0, 2): -1}, 1, "-14/3", "22/9")},
    )


def e6() -> Erratum:
    net = Network((1, 1), [Conv(2, 1), Conv(4, 1), Conv(4, 1), Dense(2)])
    data = pixels(-1, 1, 2, 3), [[0, 0], [0, 1], [4, 2], [2, 3]]
    theta = {"W1": [[[1]], [[1]]], "b1": [0, 2], "b2": [0] * 4, "b3": [0] * 4, "b4": [0, 0]}
    theta |= {"W2": [[[0], [0]], [[0], [0]], *identity(2)], "W3": identity(4)}
    theta |= {"W4": [[0, 0, 1, 0], [0, 0, 1, 0]]}
    prime = {"W1": [[[1]], [[1]]], "b1": [1, 2], "W2": [[[-1], [0]], [[1], [0]], *identity(2)]}
    prime |= {"b2": ["7/2", "-7/2", 0, 0], "b3": ["5/2", "5/2", 0, 0], "b4": ["-5/2", 0]}
    prime |= {"W3": [[[-1], [0], [0], [0]], *identity(4)[1:]], "W4": [[1, 1, 0, 0], [0, 0, 1, 0]]}
    repaired = prime | {"b2": ["7/2", "-7/2", -1, 0]}
    return Erratum(
        "E6",
        "[CNN] Lemma 9, (25)",
        "θ' has the risk of θ, for any number of outputs.",
        "One pixel, two outputs, both x⁺ (map 1; map 2, x + 2, is active everywhere and has weight "
        "0). η = 5/2, b = 0. As min v = -1, the bias of map 1 is raised to 1: it shows "
        "(0, 2, 3, 4) instead of (0, 1, 2, 3). The reserved maps give output 1 what it had, but "
        "output 2 reads the relay still and rises by 1 for x = 1, 2, 3: R grows from 3/4 to 9/8. "
        "With the bias -1 in the relay of layer 2 all outputs are kept: E6-repaired. (The file of "
        "the printed θ' moves the bias of output 2, which shows that this output is off.)",
        {
            "E6-subnetwork": minimum(
                Network((1, 1), [Conv(2, 1), Dense(2)]),
                *data,
                {"W1": [[[1]], [[1]]], "b1": [0, 2], "W2": [[1, 0], [1, 0]], "b2": [0, 0]},
                "3/4",
            ),
            "E6": descent(net, *data, prime, {("b4", 1): -1}, 1, "-3/4", "9/8"),
            "E6-repaired": proof(
                "equal-risk",
                net,
                *data,
                {"theta": theta, "theta_prime": repaired},
                risks={"theta": "3/4", "theta_prime": "3/4"},
            ),
        },
    )


CORNERS = pixels((1, 0), (0, 1), (0, 0)), column(2, 0, 0)


def e6b() -> Erratum:
    net = Network((1, 2), [Conv(1, 1), Conv(3), Conv(3), AveragePool(2), Dense(1)])
    theta = {"W1": [[[1]]], "b1": [1], "W2": [[[0] * 3], [[0] * 3], [[0, 1, 0]]], "b2": [0] * 3}
    theta |= {"W3": identity(3, 3), "b3": [0] * 3, "W5": [[0, 0, 2]], "b5": [-2]}
    sub = Network((1, 2), [Conv(1, 1), AveragePool(2), Dense(1)])
    fit = {"W1": [[[1]]], "b1": [1], "W3": [[2]], "b3": [-2]}
    parts = {"kinks": [], "multipliers": [], "frozen": [(1, "b", 0), (3, "W", 0, 0)]}
    return Erratum(
        "E6b",
        "[CNN] Appendix D",
        "With average pooling above the pair of convolutions θ is still a local minimum.",
        "Two pixels, averaged above the relays. The output x_1 + x_2 is the best fit in the "
        "average, and a local minimum of the subnetwork: u = (-1, 1, 0). Give the filter of the "
        "relay in layer 2 the tap -t for the right neighbour. It changes pixel 1 by -t (x_2 + 1), "
        "pixel 2 not, and so the output by -t (x_2 + 1) = -t (1, 2, 1), which is no function of "
        "the average: 6 (R(t) - R) = -2t + 6t².",
        {
            "E6b-subnetwork": minimum(sub, *CORNERS, fit, "1/3", **parts),
            "E6b": descent(net, *CORNERS, theta, {("W2", 2, 0, 2): -1}, 1, "-1/3", "1/3"),
        },
    )


ISOLATING = Network((1, 2), [Conv(2, 1), Dense(1)])


def e7() -> Erratum:
    data = pixels((0, 0), (0, 2), (0, 4), (6, 0)), column(0, 3, 0, 4)
    theta = {"W1": [[[1]], [[1]]], "b1": [-3, 1], "W2": [[1, 0, 0, 0]], "b2": [1]}
    rest = Network((1, 2), [Dense(1)])
    fit = {"W1": [[0, 0]], "b1": [1]}
    return Erratum(
        "E7",
        "[CNN] Theorem 3, one sample in I",
        "Map 1, the identity with bias c_p, lets the k-th component of the sample in I pass and "
        "blocks that of the others; θ_1 is a local minimum.",
        "Two pixels, k the first: 6 for sample 4, 0 for the others, so c_p = -3. The others are "
        "fitted best by the constant W_2 = 1, u = (1, -2, 1), and λ = 1 makes sample 4 exact. But "
        "the bias belongs to the whole map: the second pixel of sample 3 passes, (4 - 3)⁺ = 1. "
        "Give it the weight -t at the output: 8 (R(t) - R) = -2t + t².",
        {
            "E7-rest": minimum(rest, data[0][:3], data[1][:3], fit, "1"),
            "E7": descent(ISOLATING, *data, theta, {("W2", 0, 1): -1}, 1, "-1/4", "3/4"),
        },
    )


def e8() -> Erratum:
    data = pixels((0, 0), (4, 0), (4, 1)), column(0, 3, 1)
    theta = {"W1": [[[1]], [[1]]], "b1": [-2, 1], "W2": [[1, 0, 0, 0]], "b2": [0]}
    changes = {("W2", 0, 3): -1, ("b2", 0): 1}
    return Erratum(
        "E8",
        "[CNN] Theorem 3, (16), several samples in I",
        "λ minimises the loss of the samples in I, W_2 that of the others; θ_1 is a local minimum.",
        "Samples 2 and 3 share the largest first pixel, c_p = -2, and pass 2 each. Outside I is "
        "sample 1 alone: W_2 = 0 is one of many that fit it exactly. (16) gives λ = 1, the output "
        "2 for both and u = (-1, 1): their mean is met, no more. W_2 reads the second pixel, which "
        "tells them apart: with weight -t for it the output of sample 3 falls by t, and "
        "6 (R(t) - R) = -2t + t².",
        {"E8": descent(ISOLATING, *data, theta, changes, 1, "-1/3", "1/3")},
    )


def e9() -> Erratum:
    odds = [1 + Fraction(1, 2**k) for k in range(6)]
    if any(after >= before for before, after in pairwise(odds)):
        raise RuntimeError("E9: expected losses that fall")
    rows = ", ".join(f"log {value}" for value in odds)
    return Erratum(
        "E9",
        "[CNN] Theorem 3, (16), cross-entropy and one sample in I",
        "λ = argmin of the loss of the sample in I.",
        "There is no minimiser. Let the sample have label 1 of two, and q = e^{o_2 - o_1}: its "
        "loss is log(1 + q). Where λ_1 grows by (log 2)/(x^k + c_p), q is halved and the loss "
        f"falls, whatever λ was: from q = 1 on it is {rows}, ... and never 0. Not one of the four "
        "claims of proof files, as the loss is not the squared one: the fractions 1 + 2^-k are "
        "made and compared by the program that writes this page.",
        {},
    )


def e10() -> Erratum:
    net = Network((1, 1), [Dense(3), Dense(4), Dense(2), Dense(1)])
    data = pixels(0, 2, 3, 4), column(0, 2, 3, -2)
    theta = {"W1": [[0], [-2], [4]], "b1": [6, 13, 2], "b2": [0] * 4, "b3": [0, 0], "b4": [-6]}
    theta |= {"W2": [[0, 1, 0], [-1, 1, 0], [0, 1, 0], [0, 1, -1]]}
    theta |= {"W3": [[0, 0, 1, -1], [1, -1, -1, 1]], "W4": [[1, 1]]}
    return Erratum(
        "E10",
        "[PWL] 6.1.5, (20) to (24)",
        '"The samples in each group are predicted by the same linear predictor and hence they '
        'share the same activation pattern"; the weights are a local minimum.',
        "Groups {0} and {2, 3, 4} with the fits f_1 = 0 and f_2 = 7 - 2x, u = (0, 1, -2, 1), and "
        "between them the auxiliary piece a = 4x - 4 (f_1 = a at 1, a = f_2 at 11/6). (14) gives "
        "f = max(min(f_1, f_2), min(a, f_2)). Layer 1 has f_1, f_2, a, each + 6; layer 2 "
        "f_2, (f_2 - f_1)⁺, f_2, (f_2 - a)⁺ as in (16); layer 3 the second minimum m and "
        "(first - second)⁺ as in (17). The unit (f_2 - f_1)⁺ = (7, 3, 1, 0) is active for x = 2, "
        "3 and inactive for x = 4, in one group. Let m read it with weight -t: the outputs fall by "
        "t (7, 3, 1, 0), and 8 (R(t) - R) = -2t (3 - 2) + 59t².",
        {"E10": descent(net, *data, theta, {("W3", 0, 1): -1}, 1, "-1/4", "3/4")},
    )


def e11() -> Erratum:
    net = Network((1, 2), [Conv(1, 1), Dense(1), Dense(1)])
    theta = {"W1": [[[1]]], "b1": [1], "W2": [[1, 1]], "b2": [0], "W3": [[1]], "b3": [-2]}
    sums = Network((1, 2), [AveragePool(2), Dense(1)])
    changes = {("W2", 0, 1): -1, ("b2", 0): 1}
    return Erratum(
        "E11",
        "[PWL] 6.2, (29)",
        "Weights above the first convolution are fixed to 1 and only its filters and biases are "
        "optimised; the weights are a local minimum.",
        "Two pixels, one group, a filter of one pixel: with ones in layer 2 the piece is "
        "w (x_1 + x_2) + b, best for w = 1, b = 0: u = (-1, 1, 0). The one at pixel 2 in layer 2 "
        "is not optimal: change it to 1 - t (and the bias to t, for the lift of 1): the output "
        "changes by -t x_2, and 6 (R(t) - R) = -2t + t².",
        {
            "E11-fit": minimum(sums, *CORNERS, {"W2": [[2]], "b2": [0]}, "1/3"),
            "E11": descent(net, *CORNERS, theta, changes, 1, "-1/3", "1/3"),
        },
    )


def lemma_3() -> Erratum:
    net = Network((1, 2), [Conv(1, 1), Conv(3, 1), Conv(3, 1), Dense(1)])
    x, y = [(0, 0), (1, 0), (0, 1), (1, 1)], [0, 1, 1, 0]
    u = [Fraction(1, 2) - target for target in y]
    sums = [sum(u[i] for i in range(4) if x[i][j] == level) for j in (0, 1) for level in (0, 1)]
    if any(sums):
        raise RuntimeError(f"Lemma 3: expected sums of 0, got {sums}")
    theta = {"W1": [[[1]]], "b1": [1], "W2": list(RELAYED), "b2": [-1, -1, 1]}
    theta |= {"W3": identity(3), "b3": [-1, -1, 1], "W4": [[0] * 6], "b4": ["1/2"]}
    return Erratum(
        "Lemma 3",
        "[CNN] Lemma 3",
        "If R > 0 and the features differ, there are a location j and a group q whose sum of u is "
        "not 0.",
        "Not for images of two grey levels at a linear minimum. Two pixels, all four images, and "
        "y = 1 where the pixels differ: the best fit is 1/2, u = (1, -1, -1, 1)/2. At either pixel "
        "the dark images are one with u = 1/2 and one with u = -1/2, and so are the bright ones: "
        "every sum is 0. (The proof moves θ first, and relies on (64) for that: see E5.) That θ "
        "with dead reserved maps is a local minimum with R = 1/8 is in the file.",
        {"lemma-3": minimum(net, pixels(*x), column(*y), theta, "1/8")},
    )


def softmax() -> Erratum:
    before, after = Fraction(1, 2), Fraction(1, 2) / (Fraction(1, 2) + 1)
    slope = before - 1
    if not (after < before and slope < 0):
        raise RuntimeError("softmax: expected a loss that rises where (70) is negative")
    return Erratum(
        "Softmax",
        "[CNN] (69), (70)",
        "The loss is -Σ y_j log(e^{-o_j} / Σ e^{-o_k}), and its derivative in o_1 is "
        "e^{-o_1} / Σ e^{-o_k} - y_1.",
        f"Two outputs, y = (1, 0). At o = (0, 0) (70) is 1/2 - 1 = {slope}: the loss should fall "
        f"as o_1 grows. At o = (log 2, 0) the quotient in (69) is (1/2)/(1/2 + 1) = {after}: the "
        "loss has risen from log 2 to log 3. With e^{+o} both are right.",
        {},
    )


ROWS: tuple[Callable[[], Erratum], ...] = (
    e1, e2, e3, e4, e5, e6, e6b, e7, e8, e9, e10, e11, lemma_3, softmax,
)  # fmt: skip
