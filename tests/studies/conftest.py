"""The audit of one set of images, which the tests of its rows and of its findings look at."""

import pytest

from tinyspur.studies import audit


@pytest.fixture(scope="package")
def findings():
    return {finding.name: finding for finding in audit.audit(samples=200, seed=1)}
