"""The length of the stress tests: short for every change, long before a release."""

import pytest


@pytest.fixture(scope="session")
def long(pytestconfig: pytest.Config) -> bool:
    return bool(pytestconfig.getoption("--long"))
