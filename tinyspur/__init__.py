"""tinyspur: build, inspect and certify spurious local minima of neural networks."""

from .activations import (
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
from .certificates import (
    CellCertificate,
    Kink,
    RelayCertificate,
    certify_cell,
    certify_relays,
)
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
from .constructions.relays import rescale
from .constructions.smooth import SmoothMinimum, interpolate, smooth_minimum
from .constructions.spurious import SpuriousMinimum, find_spurious_minimum, risk_along_bias
from .constructions.towers import RelayedPair
from .constructions.witnesses import LowerPoint, lower_point, revive
from .curvature import CurvatureCertificate, certify_curvature
from .escapes import (
    DescentDirection,
    Escape,
    find_descent_direction,
    find_escape,
    kink_escape,
)
from .evidence import Evidence, gather_evidence
from .expansion import one_sided_derivative
from .fitting import AffineFit, AssumptionError, fit_affine
from .landscape import Landscape, Lines, Plane, random_direction
from .layers import AveragePool, Conv, Dense, MaxPool
from .losses import AbsoluteLoss, CrossEntropy, HuberLoss, Loss, SquaredLoss, one_hot
from .matrices import ConvolutionMatrix, DenseMatrix
from .matrix_figures import plot_matrix
from .network import Network
from .parameters import Parameters
from .pooling import AveragePoolingMatrix, MaxPoolingMatrix
from .reports import load_point, save_point
from .samples import TrainingSet
from .scanning import scan
from .training import Adam, descend, kaiming_start, polish, train

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
    "certify_cell",
    "certify_curvature",
    "certify_relays",
    "check_assumption_1",
    "convolutional_lattice",
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
