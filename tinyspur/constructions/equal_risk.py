"""[CNN] theta' (Lemmas 4 and 9): the tracks A and B take over a map for one output, at equal risk.

A split is at map m of layer L-3, for output k, with the threshold eta. There o_m = sigma(v + b) has
the bias b; b' = max(b, -min v) makes it v + b' >= 0, and D = b' - b. The track r relays m with the
biases kappa_2 and kappa_1, whose sum is kappa, and w = W^L(k, r). In theta', where L-2 and L-1 are
under a ReLU and o_m has the bias b':

    eta >= -b   L-2   A = -o_m + (eta + b')   B = o_m - (eta + b')   bias of r = -D
                L-1   A = -A + (eta + b)      B = B + (eta + b)      bias of r = kappa
                W^L   (k, A) = w              (k, B) = w             (k, r) = 0
                b^L_k += kappa sum w - (eta + b) sum w

    eta < -b    L-2   A = o_m - (eta + b')    B = o_m - (eta + b')   bias of r = -D
                L-1   A = A                   B = B                  bias of r = kappa
                W^L   (k, A) = w              (k, B) = -w            (k, r) = w

No other output reads A or B. As printed (literal) r keeps its biases where eta >= -b; where
eta < -b they are -(eta + b') and eta + b. Where the pair reads the input or a pooling there is no
bias to raise: o_m = v, b' = 0, b = max(0, -min v), the first case applies, and r stays as it is.

The layers are called as if the pair of convolutions were L - 2 and L - 1 and the first dense layer
were L; other layers may lie between and above (Appendix D). Then b^L_k takes off what the relays
above make of kappa and of eta + b.
"""

from __future__ import annotations

from typing import NamedTuple

from ..engine.backend import Array, namespace
from ..engine.parameters import Parameters
from .data_split import DataSplit
from .relayed_pair import RelayedPair, check_pair, check_variant


class Track(NamedTuple):
    """Sign and bias of a track in L-2, where it reads o_m, and in L-1; W^L(k, .) is share * w."""

    lower: tuple[int, float]
    upper: tuple[int, float]
    share: int


def case_above(eta: float, b: float, b_prime: float, relay: tuple[float, float]) -> list[Track]:
    """Return A, B and r, with the biases `relay`, where eta >= -b: A + B replaces r ((25))."""
    A = Track((-1, eta + b_prime), (-1, eta + b), share=1)
    B = Track((+1, -(eta + b_prime)), (+1, eta + b), share=1)
    r = Track((+1, relay[0]), (+1, relay[1]), share=0)
    return [A, B, r]


def case_below(eta: float, b: float, b_prime: float, relay: tuple[float, float]) -> list[Track]:
    """Return A, B and r, with the biases `relay`, where eta < -b: A and B cancel ((26))."""
    A = Track((+1, -(eta + b_prime)), (+1, 0.0), share=1)
    B = Track((+1, -(eta + b_prime)), (+1, 0.0), share=-1)
    r = Track((+1, relay[0]), (+1, relay[1]), share=1)
    return [A, B, r]


def bias_below(theta: Parameters, pair: RelayedPair, split: DataSplit) -> float:
    """Return b, the bias of map m below the pair.

    Where the pair reads a pooling or the input, say, there is no bias; then it is the number that,
    added to the map, makes it nonnegative.
    """
    if pair.biased:
        return float(theta.b[pair.below][split.map])
    return max(0.0, -split.lowest)


def equal_risk_point(
    theta: Parameters, pair: RelayedPair, split: DataSplit, variant: str = "repaired"
) -> Parameters:
    """Return theta', where the reserved tracks A and B take over map m of `split` for its output.

    Every output of every sample is kept ([CNN] Lemma 9, (25) and (26)). Literal: the relay of m
    keeps its biases where eta >= -b, so other outputs change if the bias of m had to be raised.
    """
    check_variant(variant)
    check_pair(pair, theta)
    if not isinstance(split, DataSplit):
        raise ValueError(f"split: expected what split_data returns, got a {type(split).__name__}")
    theta, eta, kappa = theta.copy(), split.threshold, pair.kappa_lower + pair.kappa_upper
    has_bias = pair.biased
    b = bias_below(theta, pair, split)
    b_prime = max(b, -split.lowest) if has_bias else 0.0
    relay = added = pair.kappa_lower, pair.kappa_upper
    if has_bias:
        theta.b[pair.below][split.map] = b_prime
    if has_bias and variant == "repaired":
        relay, added = (b - b_prime, kappa), (0.0, kappa)  # -D undoes what b' is more than b
    if eta < -b and variant == "literal":
        relay = -(eta + b_prime), eta + b
    tracks = (case_above if eta >= -b else case_below)(eta, b, b_prime, relay)
    for place, track in zip((*pair.reserved, pair.relay_of(split.map)), tracks, strict=True):
        _hand_on(theta, pair, split.map, place, track)
    _read(theta, pair, split, tracks, b, added)
    return theta


def _hand_on(theta: Parameters, pair: RelayedPair, m: int, place: int, track: Track) -> None:
    """Let L-2 and L-1 hand on map m as `track` says, and the convolutions above relay that."""
    (sign_2, bias_2), (sign_1, bias_1), _ = track
    pair.tower.relay(theta, pair.lower, m, place, bias_2, sign_2)
    pair.tower.relay(theta, pair.upper, place, place, bias_1, sign_1)
    for layer in pair.tower.taps:
        if layer > pair.upper:
            pair.tower.relay(theta, layer, place, place, pair.kappa_above)


def _read(
    theta: Parameters,
    pair: RelayedPair,
    split: DataSplit,
    tracks: list[Track],
    b: float,
    added: tuple[float, float],
) -> None:
    """Let output k read its shares of A, B and r, and take off at L what their biases add up to.

    To sigma(v + b), or v where there is no bias, r adds `added` in L-2 and L-1. The two are not the
    same: a shifted copy reads 0 beyond the border of L-2, and has there what L-1 adds alone.
    """
    k, eta = split.output, split.threshold
    outputs = slice(theta.net.shapes[-1][0])
    W, offset = theta.W[pair.dense].weights[outputs], theta.b[pair.dense][outputs]
    A, B, r = map(pair.tower.columns, (*pair.reserved, pair.relay_of(split.map)))

    def constants(lower: float, upper: float, tracks: int = 1) -> Array:
        return namespace(W).asarray(pair.constants(lower, upper, tracks), dtype=W.dtype)

    w, relayed = W[k, r].copy(), constants(*added)
    if added != (pair.kappa_lower, pair.kappa_upper):
        offset += W[:, r] @ (constants(pair.kappa_lower, pair.kappa_upper) - relayed)
    W[:, A] = 0
    W[:, B] = 0
    for columns, track in zip((A, B, r), tracks, strict=True):
        W[k, columns] = track.share * w if track.share else 0
    if eta >= -b:
        # A + B = sigma(v + b) + (eta + b), and 2 (eta + b) beyond the border. With no bias
        # sigma(v + b) = v + b is more than v by b.
        more = 0.0 if pair.biased else b
        both = constants(more - (eta + b), 2 * (eta + b), tracks=2)
        offset[k] += w @ (relayed - both)
