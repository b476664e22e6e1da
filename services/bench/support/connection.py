"""The Ray cluster of a bench."""

import logging
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray
from ray.cluster_utils import Cluster

from sluice.cluster.environment import ALLOCATOR, lower_thread_priority


@contextmanager
def bench_cluster(
    address: str = "local", variables: Mapping[str, str] | None = None, **settings: Any
) -> Iterator[None]:
    """Connected to the cluster at `address`, by default one of this bench alone, with processes set up as a
    job's.

    `variables` are for the environment of all of them; `settings` go to `ray.init`.
    """
    lower_thread_priority()  # what Ray starts now inherits it, as from the head of `sluice submit`
    ray.init(
        address=address,
        log_to_driver=False,
        logging_level=logging.ERROR,
        runtime_env={"env_vars": ALLOCATOR | {"PYTHONPATH": os.getcwd()} | dict(variables or {})},
        **settings,
    )
    try:
        lower_thread_priority(but=threading.get_native_id())  # some benches compute here
        yield
    finally:
        ray.shutdown()


@contextmanager
def cluster_of(head: Mapping[str, Any], *nodes: Mapping[str, Any]) -> Iterator[Cluster]:
    """Several nodes on this machine, each with what `Cluster.add_node` takes, until the bench is over."""
    lower_thread_priority()
    cluster = Cluster(initialize_head=True, head_node_args=dict(head))
    try:
        for node in nodes:
            cluster.add_node(**node)
        yield cluster
    finally:
        cluster.shutdown()
