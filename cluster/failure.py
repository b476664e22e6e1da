"""What happens after a component failed: pure decisions, carried out by whoever watches the component."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Start the component again, or end the run."""

    restart: bool
    restarts: int  # of this component, this one included if `restart`
    message: str


def decide_restart(component: str, *, restarts: int, bound: int, setting: str, reason: str) -> Decision:
    """What to do about `component`, which failed with `reason` after `restarts` restarts.

    `setting` names the field that holds `bound`, for the message.

    >>> decide_restart("rollout-0", restarts=2, bound=2, setting="cluster.max_actor_restarts", reason="gone")
    Decision(restart=False, restarts=2, message='rollout-0 failed after 2 restart(s), ...')
    """
    if restarts < bound:
        return Decision(
            restart=True,
            restarts=restarts + 1,
            message=f"{component} failed and is started again ({restarts + 1} of at most {bound} times): "
            f"{reason}",
        )
    return Decision(
        restart=False,
        restarts=restarts,
        message=f"{component} failed after {restarts} restart(s), the most that {setting} = {bound} allows. "
        f"Last failure: {reason}. Remove its cause, or raise {setting}",
    )
