"""What a unit test sets in the environment ends with it."""

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def same_environment() -> Iterator[None]:
    """Put the environment back: a command that is called in the test's own process may set, say,
    `RAY_AUTH_MODE`, and the clusters of later tests would ask for a token that Ray has not read.
    """
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)
