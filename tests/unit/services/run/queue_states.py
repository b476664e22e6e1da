"""States of a rollout queue."""

from sluice.actors.queue.leases import QueueStatus


def status(**changes):
    """Of a queue in which nothing has happened, but for the changes."""
    counts = dict.fromkeys(
        (
            *("issued", "trained", "stale", "invalid", "leased", "queued", "pulled", "waiting"),
            *("queued_bytes", "reissued", "late", "epoch", "cursor", "staleness_max", "actors"),
        ),
        0,
    )
    bounds = {"max_groups": 128, "limit": 128, "max_bytes": 2**20}
    rest = {"staleness_mean": 0.0, "last_error": "", "restored": True, "leased_by": {}}
    return QueueStatus(**{**counts, **bounds, **rest, **changes})
