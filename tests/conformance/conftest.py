"""What the tests of the Go client share."""

import pytest

from tests.support import go_module


@pytest.fixture(scope="session")
def go() -> str:
    """The path of the Go toolchain."""
    return go_module.toolchain()
