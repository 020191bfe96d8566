"""tinyspur: build, inspect and certify spurious local minima of neural networks."""

import os
import signal
import sys

# python -m tinyspur: Ctrl-C ends it in one line while the rest is imported, too.
if sys.argv[:1] == ["-m"] and callable(signal.getsignal(signal.SIGINT)):
    signal.signal(signal.SIGINT, lambda *_: os._exit(os.write(2, b"interrupted\n") and 130))

from . import datasets
from .certificates import (
    CellCertificate,
    Certificate,
    Kink,
    RelayCertificate,
    StrictCertificate,
    certify,
    certify_cell,
    certify_relays,
    certify_strict,
)
from .certificates.curvature import CurvatureCertificate, certify_curvature
from .constructions.convolutional_lattices import (
    ConvolutionalLattice,
    convolutional_lattice,
    patch_sums,
)
from .constructions.data_split import DataSplit, split_data
from .constructions.embedding import (
    check_assumption_1,
    embed,
    linear_minimum,
    linear_subnetwork,
    subnetwork,
)
from .constructions.equal_risk import equal_risk_point
from .constructions.exact_points import ExactPoints, exact
from .constructions.lattices import Lattice, lattice_network, lattices_of, smallest_cases
from .constructions.nontrivial import nontrivial_minimum
from .constructions.ordered_groups import OrderedGroups, ordered_groups
from .constructions.piecewise_linear import (
    Groups,
    PiecewiseFit,
    SpuriousPair,
    fit_groups,
    gated_minimum,
    spurious_pair,
)
from .constructions.relayed_pair import RelayedPair
from .constructions.relays import fold_scales, rescale
from .constructions.smooth import SmoothMinimum, interpolate, smooth_minimum
from .constructions.spurious import SpuriousMinimum, find_spurious_minimum, risk_along_bias
from .constructions.witnesses import LowerPoint, lower_point, revive
from .datasets.samples import TrainingSet
from .engine.activations import (
    ELU,
    GELU,
    Activation,
    Arctan,
    Identity,
    ReLU,
    Sigmoid,
    SiLU,
    Sine,
    Softplus,
    Swish,
    Tanh,
)
from .engine.losses import AbsoluteLoss, CrossEntropy, HuberLoss, Loss, SquaredLoss, one_hot
from .engine.network import Network
from .engine.parameters import Parameters
from .engine.points import load_point, save_point
from .engine.user_activations import SmoothActivation
from .errors import AssumptionError
from .figures.matrices import plot_matrix
from .fitting.affine import AffineFit, fit_affine
from .fitting.members import Member, move_along
from .fitting.settle import Settled, settle
from .fitting.training import Adam, descend, kaiming_start, polish, train
from .landscape.directions import random_direction
from .landscape.planes import Lines, Plane
from .landscape.risks import Landscape
from .landscape.scan import scan
from .layers import (
    AveragePool,
    AveragePoolingMatrix,
    Conv,
    ConvolutionMatrix,
    Dense,
    DenseMatrix,
    MaxPool,
    MaxPoolingMatrix,
    Residual,
    Same,
    Scale,
    ScaleMatrix,
)
from .refutations.descent import DescentDirection, find_descent_direction
from .refutations.escapes import (
    Escape,
    find_escape,
    kink_escape,
)
from .refutations.evidence import Evidence, gather_evidence
from .refutations.expansion import one_sided_derivative

__version__ = "0.1.0"
__all__ = [  # what matters; everything else that is imported above is there too
    "AssumptionError",
    "AveragePool",
    "Conv",
    "CrossEntropy",
    "Dense",
    "Groups",
    "HuberLoss",
    "Lines",
    "MaxPool",
    "Network",
    "Parameters",
    "Plane",
    "ReLU",
    "SmoothActivation",
    "SquaredLoss",
    "Tanh",
    "TrainingSet",
    "certify",
    "certify_cell",
    "certify_strict",
    "datasets",
    "exact",
    "find_descent_direction",
    "find_escape",
    "find_spurious_minimum",
    "gated_minimum",
    "gather_evidence",
    "kaiming_start",
    "linear_minimum",
    "load_point",
    "move_along",
    "nontrivial_minimum",
    "one_hot",
    "plot_matrix",
    "save_point",
    "scan",
    "settle",
    "smooth_minimum",
    "spurious_pair",
    "train",
]


def __dir__() -> list[str]:
    return [*__all__, "__doc__", "__version__"]
