"""The connection to a Ray cluster: join the one that is running, or say what is missing."""

import logging
from dataclasses import dataclass

import ray
from ray.exceptions import AuthenticationError

from sluice.catalog.errors import ClusterError

_AUTH_REMEDY = (
    "Ray has token authentication on by default: set RAY_AUTH_MODE=token, and have the cluster's token in "
    "~/.ray/auth_token, in RAY_AUTH_TOKEN, or in the file that RAY_AUTH_TOKEN_PATH names (`ray "
    "get-auth-token` prints it on the head node)"
)


@dataclass(frozen=True, kw_only=True)
class ClusterFacts:
    """The cluster as it is when a run joins it."""

    address: str
    nodes: int  # alive
    resources: dict[str, float]  # total, over the alive nodes


def connect_cluster(address: str = "auto", namespace: str = "sluice") -> ClusterFacts:
    """Join the running cluster; a process that already has joined one stays there.

    Raises:
        ClusterError: no cluster runs at `address`, it cannot be reached, or it refuses the token.
    """
    if not ray.is_initialized():
        try:
            ray.init(address=address, namespace=namespace, logging_level=logging.WARNING)
        except (ConnectionError, ValueError) as error:
            raise ClusterError(
                f"no Ray cluster answers at {address!r} ({_first_line(error)}). Start one with `ray start "
                "--head`, or submit the run with `sluice submit`, which starts one; on another machine set "
                "RAY_API_SERVER_ADDRESS"
            ) from None
        except AuthenticationError as error:
            raise ClusterError(
                f"the Ray cluster at {address!r} refused us ({_first_line(error)}). {_AUTH_REMEDY}"
            ) from None
        except RuntimeError as error:
            raise ClusterError(
                f"cannot join the Ray cluster at {address!r}: {_first_line(error)}. {_AUTH_REMEDY}"
            ) from None
    context = ray.get_runtime_context()
    return ClusterFacts(
        address=context.gcs_address,
        nodes=sum(node["Alive"] for node in ray.nodes()),
        resources={name: amount for name, amount in ray.cluster_resources().items() if ":" not in name},
    )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
