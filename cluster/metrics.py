"""The metrics of a run, for Prometheus through Ray: one table that says what exists, one class that reports
to it.

Ray exposes them on each node's metrics port with the prefix `ray_`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from ray.util.metrics import Counter, Gauge, Histogram


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One declared metric."""

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    unit: str
    description: str
    tags: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()  # of a histogram's buckets


Kind = TypeVar("Kind", Gauge, Counter, Histogram)

_SECONDS = (0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0)


def _gauge(name: str, unit: str, description: str, *tags: str) -> Metric:
    return Metric(name=name, kind="gauge", unit=unit, description=description, tags=tags)


def _counter(name: str, unit: str, description: str, *tags: str) -> Metric:
    return Metric(name=name, kind="counter", unit=unit, description=description, tags=tags)


def _seconds(name: str, description: str, *tags: str) -> Metric:
    return Metric(name=name, kind="histogram", unit="s", description=description, tags=tags, bounds=_SECONDS)


METRICS: tuple[Metric, ...] = (
    _gauge("sluice_queue_queued", "groups", "groups waiting for the learner"),
    _gauge("sluice_queue_leased", "groups", "prompts with rollout actors"),
    _gauge("sluice_queue_in_flight", "groups", "prompts issued and not yet trained or dropped"),
    _gauge("sluice_queue_limit", "groups", "most groups leased or queued, as flow control has it now"),
    _gauge("sluice_queue_queued_bytes", "bytes", "object-store bytes of the queued groups"),
    _gauge("sluice_queue_staleness_mean", "weight versions", "mean staleness of the groups trained so far"),
    _counter("sluice_groups_issued_total", "groups", "prompts handed out for the first time"),
    _counter("sluice_groups_trained_total", "groups", "groups the learner has trained on"),
    _counter("sluice_groups_stale_total", "groups", "groups dropped as too old"),
    _counter("sluice_groups_invalid_total", "groups", "groups given up"),
    _counter("sluice_groups_late_total", "groups", "groups refused because their lease had moved on"),
    _gauge("sluice_groups_per_second", "groups/s", "groups trained per second since the last report"),
    _gauge("sluice_rollout_groups", "groups", "groups finished by a rollout actor", "actor"),
    _gauge(
        "sluice_time_seconds", "s", "where a component's time went; wait_* is idle", "component", "activity"
    ),
    _gauge("sluice_weight_version", "version", "weights in use", "component"),
    _gauge("sluice_catalogue_version", "version", "catalogue in use", "component"),
    _seconds("sluice_weight_sync_seconds", "pause of an engine for new weights", "actor"),
    _seconds("sluice_weight_publish_seconds", "time to hand new weights to the board"),
    _seconds("sluice_ranker_latency_seconds", "ranker request to answer", "actor"),
    _counter("sluice_restarts_total", "restarts", "components started again after a failure", "component"),
)


class MetricSet:
    """Reports to the declared metrics; each is created on first use, since creating one needs Ray."""

    def __init__(self, declared: tuple[Metric, ...] = METRICS) -> None:
        self._declared = {metric.name: metric for metric in declared}
        self._live: dict[str, Gauge | Counter | Histogram] = {}
        self._reached: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}

    def set(self, name: str, value: float, **tags: str) -> None:
        """Set a gauge."""
        self._metric(name, Gauge).set(value, tags=tags)

    def set_times(self, component: str, seconds: Mapping[str, float]) -> None:
        """Set where a component's time went, by activity."""
        for activity, spent_s in seconds.items():
            self.set("sluice_time_seconds", spent_s, component=component, activity=activity)

    def add(self, name: str, value: float = 1.0, **tags: str) -> None:
        """Raise a counter by `value`."""
        if value > 0:
            self._metric(name, Counter).inc(value, tags=tags)

    def raise_to(self, name: str, total: float, **tags: str) -> None:
        """Raise a counter to `total`; a total that went back (a restored run) counts from there on."""
        key = (name, tuple(sorted(tags.items())))
        self.add(name, total - self._reached.get(key, 0.0), **tags)
        self._reached[key] = total

    def observe(self, name: str, value: float, **tags: str) -> None:
        """Add an observation to a histogram."""
        self._metric(name, Histogram).observe(value, tags=tags)

    def _metric(self, name: str, kind: type[Kind]) -> Kind:
        metric, asked = self._declared[name], kind.__name__.lower()
        if metric.kind != asked:
            raise TypeError(f"{name} is declared as a {metric.kind}, not a {asked}")
        live = self._live.get(name)
        if live is None:
            buckets: dict[str, Any] = {"boundaries": list(metric.bounds)} if metric.bounds else {}
            description = f"{metric.description} [{metric.unit}]"
            live = self._live[name] = kind(name, description, tag_keys=metric.tags, **buckets)
        assert isinstance(live, kind)
        return live
