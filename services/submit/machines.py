"""The machines that a run would have that is submitted from here."""

import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from sluice.catalog.errors import ClusterError
from sluice.services.submit.head import answers, find_head, is_job_server, use_token_if_any

if TYPE_CHECKING:
    from sluice.services.preflight.resources import Machines

_HOST_AND_PORT = re.compile(r"[^:/\s]+:\d+|\[[0-9a-fA-F:]+\]:\d+")

FindMachines = Callable[[bool], "Machines"]


def name_remote(address: str | None) -> str | None:
    """The job server or cluster that `--address` or the environment names; None: this machine's own.

    Raises:
        ClusterError: it names the port of a dashboard as if it were a cluster's, or nobody listens there.
    """
    places = {
        "--address": address,
        "RAY_API_SERVER_ADDRESS": os.environ.get("RAY_API_SERVER_ADDRESS"),
        "RAY_ADDRESS": os.environ.get("RAY_ADDRESS"),
    }
    name, remote = next(((name, place) for name, place in places.items() if place), ("", None))
    if remote is not None and _HOST_AND_PORT.fullmatch(remote):
        _check_cluster(name, remote)
    return remote


def _check_cluster(name: str, address: str) -> None:
    """Ray would wait for 40 s for a cluster's answer, and then blame its GCS."""
    if is_job_server(f"http://{address}"):
        raise ClusterError(
            f"{name} is {address}, the port of a dashboard and job server: write it as http://{address}, in "
            "--address or RAY_API_SERVER_ADDRESS. An address without http:// is a cluster's, whose port is "
            "6379 by default"
        )
    if not answers(address):
        raise ClusterError(
            f"{name} is {address}, and nobody listens there: start the cluster, give another address, or "
            "take it away to run on this machine"
        )


def machines_without_job() -> FindMachines | None:
    """Of the head that answers on this machine, which is joined for it, or of this machine alone; None when a
    remote cluster is named: only a job there sees it.
    """
    if name_remote(None) is not None:
        return None
    use_token_if_any()  # before Ray is imported
    head = find_head()
    from sluice.services.preflight.resources import joined_cluster, this_machine

    return this_machine if head is None else lambda _with_gpus: joined_cluster(head.address)


def machines_of_new_head() -> FindMachines | None:
    """Of this machine, if a head is going to be started here; None when one answers: the job will see it."""
    if find_head() is not None:
        return None
    from sluice.services.preflight.resources import this_machine  # imports Ray, which wants a token first

    return this_machine
