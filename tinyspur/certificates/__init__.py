"""Proofs that a point is a local minimum, and by how much a point nearby is lower at most.

A new kind of certificate is a module and an entry in `CERTIFICATES`.
"""

from __future__ import annotations

import numpy as np

from ..datasets.samples import TrainingSet
from ..engine.floats import QUIET
from ..engine.losses import Loss
from ..engine.network import check_at
from ..engine.parameters import Parameters
from ..errors import AssumptionError
from .cell import CellCertificate, certify_cell
from .certificate import Certificate, round_down, round_up
from .curvature import CurvatureCertificate, certify_curvature
from .kinks import Kink
from .relays import RelayCertificate, certify_relays
from .strict import StrictCertificate, certify_strict

__all__ = [
    "CERTIFICATES",
    "CellCertificate",
    "Certificate",
    "CurvatureCertificate",
    "Kink",
    "RelayCertificate",
    "StrictCertificate",
    "certify",
    "certify_cell",
    "certify_curvature",
    "certify_relays",
    "certify_strict",
    "round_down",
    "round_up",
]

CERTIFICATES = (
    (CellCertificate, certify_cell),
    (CurvatureCertificate, certify_curvature),
    (StrictCertificate, certify_strict),
)


@np.errstate(**QUIET)
def certify(theta: Parameters, data: TrainingSet, loss: Loss) -> Certificate:
    """Return the certificate for the network and the loss: the first kind of several that holds.

    In turn that of `certify_cell`, for ReLU and leaky ReLU, of `certify_curvature`, for activations
    with curvature, and of `certify_strict`, whose Hessian is a dense matrix. If none holds, it is
    the first one that is for such a network, and says what is missing.

    Raises AssumptionError that says why where no kind of certificate applies, and ValueError where
    parameters or outputs are not finite.
    """
    check_at(theta, data, loss)
    found, obstacles = None, []
    for kind, check in CERTIFICATES:
        try:
            kind.require(theta, loss)
        except ValueError as error:
            obstacles.append(str(error))
            continue
        certificate = check(theta, data, loss)
        if certificate.holds:
            return certificate
        found = found or certificate
    if found is None:
        raise AssumptionError(f"no certificate: {'; '.join(obstacles)}")
    return found
