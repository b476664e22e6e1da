"""One local Ray cluster for all tests of this directory, since starting one is what costs."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 60.0  # bound of every wait in these tests; none of them needs a fraction of it


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """A cluster of four CPUs whose workers import this repository's packages."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT)] + ([before] if before else []))
    ray.init(
        address="local",  # a cluster of its own, whatever else runs on this machine
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=256 * 2**20,
        log_to_driver=False,
        namespace="sluice",
    )
    yield
    ray.shutdown()
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


@contextlib.contextmanager
def launcher() -> Iterator[Callable]:
    """A function that starts actors, `start(Class, options, *arguments)`; they are killed at the end."""
    handles = []

    def start(actor_class: type, options: dict | None = None, *arguments, **named):
        options = {"num_cpus": 0, "max_restarts": -1} | (options or {})
        handles.append(ray.remote(**options)(actor_class).remote(*arguments, **named))
        return handles[-1]

    yield start
    for handle in handles:
        ray.kill(handle)


@pytest.fixture
def launch(cluster: None) -> Iterator[Callable]:
    """Starts actors for one test."""
    with launcher() as start:
        yield start


@pytest.fixture(scope="module")
def launch_shared(cluster: None) -> Iterator[Callable]:
    """Starts actors for all tests of a file."""
    with launcher() as start:
        yield start
