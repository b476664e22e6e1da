"""The Ray cluster of a bench."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from cluster.environment import ALLOCATOR, give_way


@contextmanager
def connected(address: str = "local", **settings: Any) -> Iterator[None]:
    """Connected to the cluster at `address`, by default one of this bench alone, with processes set up as a job's.

    `settings` go to `ray.init`.
    """
    give_way()  # what Ray starts now inherits it, as from the head of `sluice submit`
    ray.init(
        address=address,
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env={"env_vars": ALLOCATOR | {"PYTHONPATH": os.getcwd()}},
        **settings,
    )
    give_way(but=threading.get_native_id())  # some benches compute here
    try:
        yield
    finally:
        ray.shutdown()
