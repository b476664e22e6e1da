"""Everything that can be checked before a run in seconds: all of what is wrong is told at once.

files, columns, first rows      logs.py
numbers against the items       sizes.py
policy.base, the engine         base_policy.py
output, room, names             output.py
the user's ranker               ranker.py, in a process of its own
places against the cluster      resources.py
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from sluice.catalog.errors import ClusterError
from sluice.learner.objectives.settings.objective import Objective
from sluice.services.config import RunConfig
from sluice.services.places import plan_run
from sluice.services.preflight.base_policy import check_base, check_engine
from sluice.services.preflight.finding import Finding
from sluice.services.preflight.logs import read_log
from sluice.services.preflight.output import check_output, check_sockets
from sluice.services.preflight.ranker import check_ranker
from sluice.services.preflight.resources import THIS_MACHINE, Machines, find_shortages
from sluice.services.preflight.sizes import check_sizes

_OF_ROLLOUTS = ("rollout.", "ranker")  # settings that a run without rollouts does not use


def check_run(
    config: RunConfig, find_machines: Callable[[bool], Machines] | None, environment: Mapping[str, str]
) -> tuple[Finding, ...]:
    """What is wrong with a run on this machine, and what its user should know.

    Args:
        config: the run's; relative paths are relative to the working directory.
        find_machines: the nodes that the run will have, given whether GPUs are wanted; None: not known yet.
        environment: variables of the process that starts a Ray head.
    """
    findings = list(_find_all(config, find_machines, environment))
    if any(finding.field.startswith(_OF_ROLLOUTS) for finding in findings) and not has_rollouts(
        config.objective
    ):
        findings = [finding for finding in findings if not finding.field.startswith(_OF_ROLLOUTS)]
    return tuple(sorted(dict.fromkeys(findings), key=lambda finding: finding.exit_code == 0))


def _find_all(
    config: RunConfig, find_machines: Callable[[bool], Machines] | None, environment: Mapping[str, str]
) -> Iterator[Finding]:
    log = read_log(config.data)
    yield from log.findings
    if log.items is not None:
        yield from check_sizes(config, log.items, fits_codes=not log.has_codes)
    yield from check_engine(config)
    yield from check_base(config)
    yield from check_output(config, log.size_bytes)
    if has_rollouts(config.objective):  # it takes seconds or minutes, and nobody else asks the ranker
        yield from check_ranker(config)
    if find_machines is None:
        return
    plan = plan_run(config)
    try:
        machines = find_machines(plan.totals.get("GPU", 0) > 0)
    except ClusterError as error:
        yield Finding.of_error("cluster", error)
        return
    if machines.name == THIS_MACHINE:  # a head is going to be started
        yield from check_sockets(environment)
    shortages = list(find_shortages(plan, machines))
    if shortages and not has_rollouts(config.objective):
        shortages = list(find_shortages(replace(plan, bundles=()), machines))
    yield from shortages


def has_rollouts(objective: Objective) -> bool:
    """Whether an objective takes groups: `needs_groups` of what is built from it, without importing torch."""
    baseline = getattr(objective, "baseline", None)
    from_logs = objective.type in ("nll", "reward_weighted_bc")
    return not from_logs and not (baseline is not None and baseline.type == "value_head")
