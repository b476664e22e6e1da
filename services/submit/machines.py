"""The machines that a run would have that is submitted from here."""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from sluice.services.submit.head import find_head, use_token_if_any

if TYPE_CHECKING:
    from sluice.services.preflight.resources import Machines

FindMachines = Callable[[bool], "Machines"]


def name_remote(address: str | None) -> str | None:
    """The job server or cluster that `--address` or the environment names; None: this machine's own."""
    return address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")


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
