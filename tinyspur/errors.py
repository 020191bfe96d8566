"""What is raised where a theorem does not apply, or numbers end."""

from collections.abc import Iterator
from contextlib import contextmanager

from numpy.linalg import LinAlgError

TOO_LARGE = "derivatives are too large for floating-point numbers"


class AssumptionError(ValueError):
    """A hypothesis of a theorem does not hold; the message says which, where and for whom."""


@contextmanager
def within_floats(what: str = "") -> Iterator[None]:
    """Raise AssumptionError, beginning with `what`, for matrices that linear algebra can't take.

    LAPACK does not converge where entries are NaN or infinite, and SciPy refuses them.
    """
    try:
        yield
    except ValueError as error:
        if not isinstance(error, LinAlgError) and "infs or NaNs" not in str(error):
            raise
        raise AssumptionError(what + TOO_LARGE) from error
