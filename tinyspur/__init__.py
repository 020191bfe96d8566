"""tinyspur: build, inspect and certify spurious local minima of neural networks."""

from . import datasets
from .certificates import (
    CellCertificate,
    Certificate,
    Kink,
    RelayCertificate,
    certify,
    certify_cell,
    certify_relays,
)
from .certificates.curvature import CurvatureCertificate, certify_curvature
from .constructions.convolutional import (
    LowerPoint,
    SpuriousMinimum,
    equal_risk_point,
    find_spurious_minimum,
    lower_point,
    revive,
    risk_along_bias,
)
from .constructions.convolutional_lattices import (
    ConvolutionalLattice,
    convolutional_lattice,
    patch_sums,
)
from .constructions.data_split import DataSplit, OrderedGroups, ordered_groups, split_data
from .constructions.embedding import (
    check_assumption_1,
    embed,
    linear_minimum,
    linear_subnetwork,
    subnetwork,
)
from .constructions.lattices import Lattice, lattice_network, lattices_of, smallest_cases
from .constructions.nontrivial import nontrivial_minimum
from .constructions.piecewise_linear import (
    Groups,
    PiecewiseFit,
    SpuriousPair,
    fit_groups,
    gated_minimum,
    spurious_pair,
)
from .constructions.relays import RelayedPair, rescale
from .constructions.smooth import SmoothMinimum, interpolate, smooth_minimum
from .datasets.samples import TrainingSet
from .engine.activations import (
    ELU,
    GELU,
    Activation,
    Arctan,
    ReLU,
    Sigmoid,
    SiLU,
    Sine,
    SmoothActivation,
    Softplus,
    Swish,
    Tanh,
)
from .engine.losses import AbsoluteLoss, CrossEntropy, HuberLoss, Loss, SquaredLoss, one_hot
from .engine.network import Network
from .engine.parameters import Parameters
from .engine.points import load_point, save_point
from .errors import AssumptionError
from .figures.matrices import plot_matrix
from .fitting.affine import AffineFit, fit_affine
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
)
from .refutations.escapes import (
    DescentDirection,
    Escape,
    find_descent_direction,
    find_escape,
    kink_escape,
)
from .refutations.evidence import Evidence, gather_evidence
from .refutations.expansion import one_sided_derivative

__all__ = [
    "ELU",
    "GELU",
    "AbsoluteLoss",
    "Activation",
    "Adam",
    "AffineFit",
    "Arctan",
    "AssumptionError",
    "AveragePool",
    "AveragePoolingMatrix",
    "CellCertificate",
    "Certificate",
    "Conv",
    "ConvolutionMatrix",
    "ConvolutionalLattice",
    "CrossEntropy",
    "CurvatureCertificate",
    "DataSplit",
    "Dense",
    "DenseMatrix",
    "DescentDirection",
    "Escape",
    "Evidence",
    "Groups",
    "HuberLoss",
    "Kink",
    "Landscape",
    "Lattice",
    "Lines",
    "Loss",
    "LowerPoint",
    "MaxPool",
    "MaxPoolingMatrix",
    "Network",
    "OrderedGroups",
    "Parameters",
    "PiecewiseFit",
    "Plane",
    "ReLU",
    "RelayCertificate",
    "RelayedPair",
    "SiLU",
    "Sigmoid",
    "Sine",
    "SmoothActivation",
    "SmoothMinimum",
    "Softplus",
    "SpuriousMinimum",
    "SpuriousPair",
    "SquaredLoss",
    "Swish",
    "Tanh",
    "TrainingSet",
    "certify",
    "certify_cell",
    "certify_curvature",
    "certify_relays",
    "check_assumption_1",
    "convolutional_lattice",
    "datasets",
    "descend",
    "embed",
    "equal_risk_point",
    "find_descent_direction",
    "find_escape",
    "find_spurious_minimum",
    "fit_affine",
    "fit_groups",
    "gated_minimum",
    "gather_evidence",
    "interpolate",
    "kaiming_start",
    "kink_escape",
    "lattice_network",
    "lattices_of",
    "linear_minimum",
    "linear_subnetwork",
    "load_point",
    "lower_point",
    "nontrivial_minimum",
    "one_hot",
    "one_sided_derivative",
    "ordered_groups",
    "patch_sums",
    "plot_matrix",
    "polish",
    "random_direction",
    "rescale",
    "revive",
    "risk_along_bias",
    "save_point",
    "scan",
    "smallest_cases",
    "smooth_minimum",
    "split_data",
    "spurious_pair",
    "subnetwork",
    "train",
]
