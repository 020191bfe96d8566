"""tinyspur: build, inspect and certify spurious local minima of neural networks."""

import os
import signal
import sys

# python -m tinyspur, or tinyspur: Ctrl-C ends it in one line while the rest is imported, too.
if os.path.basename((sys.argv or [""])[0]) in ("-m", "tinyspur", "tinyspur.exe") and callable(
    signal.getsignal(signal.SIGINT)
):
    signal.signal(signal.SIGINT, lambda *_: os._exit(os.write(2, b"interrupted\n") and 130))

from . import datasets
from .certificates import (
    CellCertificate as CellCertificate,
    Certificate as Certificate,
    Kink as Kink,
    RelayCertificate as RelayCertificate,
    StrictCertificate as StrictCertificate,
    certify,
    certify_cell,
    certify_relays as certify_relays,
    certify_strict,
)
from .certificates.curvature import (
    CurvatureCertificate as CurvatureCertificate,
    certify_curvature as certify_curvature,
)
from .constructions.convolutional_lattices import (
    ConvolutionalLattice as ConvolutionalLattice,
    convolutional_lattice as convolutional_lattice,
    patch_sums as patch_sums,
)
from .constructions.data_split import (
    DataSplit as DataSplit,
    split_data as split_data,
)
from .constructions.embedding import (
    check_assumption_1 as check_assumption_1,
    embed as embed,
    linear_minimum,
    linear_subnetwork as linear_subnetwork,
    subnetwork as subnetwork,
)
from .constructions.equal_risk import equal_risk_point as equal_risk_point
from .constructions.exact_points import (
    ExactPoints as ExactPoints,
    exact,
)
from .constructions.lattices import (
    Lattice as Lattice,
    lattice_network as lattice_network,
    lattices_of as lattices_of,
    smallest_cases as smallest_cases,
)
from .constructions.nontrivial import nontrivial_minimum as nontrivial_minimum
from .constructions.ordered_groups import (
    OrderedGroups as OrderedGroups,
    ordered_groups as ordered_groups,
)
from .constructions.piecewise_linear import (
    Groups,
    PiecewiseFit as PiecewiseFit,
    SpuriousPair as SpuriousPair,
    fit_groups as fit_groups,
    gated_minimum,
    spurious_pair,
)
from .constructions.relayed_pair import RelayedPair as RelayedPair
from .constructions.relays import (
    fold_scales as fold_scales,
    rescale as rescale,
)
from .constructions.smooth import (
    SmoothMinimum as SmoothMinimum,
    interpolate as interpolate,
    smooth_minimum,
)
from .constructions.spurious import (
    SpuriousMinimum as SpuriousMinimum,
    find_spurious_minimum,
    risk_along_bias as risk_along_bias,
)
from .constructions.witnesses import (
    LowerPoint as LowerPoint,
    lower_point as lower_point,
    revive as revive,
)
from .datasets.samples import TrainingSet
from .engine.activations import (
    ELU as ELU,
    GELU as GELU,
    Activation as Activation,
    Arctan as Arctan,
    Identity as Identity,
    ReLU,
    Sigmoid as Sigmoid,
    SiLU as SiLU,
    Sine as Sine,
    Softplus as Softplus,
    Swish as Swish,
    Tanh as Tanh,
)
from .engine.losses import (
    AbsoluteLoss as AbsoluteLoss,
    CrossEntropy,
    HuberLoss,
    Loss as Loss,
    SquaredLoss,
    one_hot,
)
from .engine.network import Network
from .engine.parameters import Parameters
from .engine.points import (
    load_point,
    save_point,
)
from .engine.shared_gradient import shared_gradient as shared_gradient
from .engine.user_activations import SmoothActivation
from .errors import AssumptionError
from .figures.landscapes import plot_landscape, plot_lines
from .figures.matrices import plot_matrix, plot_point
from .fitting.affine import (
    AffineFit as AffineFit,
    fit_affine as fit_affine,
)
from .fitting.members import (
    Member as Member,
    move_along as move_along,
)
from .fitting.settle import (
    Settled as Settled,
    settle,
)
from .fitting.training import (
    Adam as Adam,
    descend as descend,
    kaiming_start,
    polish as polish,
    train,
)
from .landscape.directions import random_direction as random_direction
from .landscape.planes import (
    Lines,
    Plane,
)
from .landscape.risks import Landscape as Landscape
from .landscape.scan import scan
from .layers import (
    AveragePool,
    AveragePoolingMatrix as AveragePoolingMatrix,
    Conv,
    ConvolutionMatrix as ConvolutionMatrix,
    Dense,
    DenseMatrix as DenseMatrix,
    MaxPool,
    MaxPoolingMatrix as MaxPoolingMatrix,
    Residual as Residual,
    Same as Same,
    Scale as Scale,
    ScaleMatrix as ScaleMatrix,
    WeightMatrix as WeightMatrix,
)
from .refutations.descent import (
    DescentDirection as DescentDirection,
    find_descent_direction,
)
from .refutations.escapes import (
    Escape as Escape,
    find_escape,
    kink_escape as kink_escape,
)
from .refutations.evidence import (
    Evidence as Evidence,
    gather_evidence,
)
from .refutations.expansion import one_sided_derivative as one_sided_derivative
from .tasks import run_each as run_each

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
    "one_hot",
    "plot_landscape",
    "plot_lines",
    "plot_matrix",
    "plot_point",
    "save_point",
    "scan",
    "settle",
    "smooth_minimum",
    "spurious_pair",
    "train",
]


def __dir__() -> list[str]:
    return [*__all__, "__doc__", "__version__"]
