"""`sluice ab`: a test of policies on the users of a simulated world, beside the truth and what logs tell."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sluice.catalog.data.dataset import Dataset
from sluice.catalog.data.settings import TableSource
from sluice.catalog.errors import ConfigError
from sluice.catalog.files import to_finite, write_atomically
from sluice.catalog.simulator.truth import Truth
from sluice.services.ab.estimates import KINDS, Estimate, Rounds, estimate_difference, estimate_value
from sluice.services.ab.experiment import describe_test
from sluice.services.ab.logs import is_test_window, judge_visits, read_visits
from sluice.services.ab.page import sentences_of, write_page
from sluice.services.ab.plan import Plan
from sluice.services.ab.serve import Ids, Outcomes, serve_users
from sluice.services.ab.slates import SlateMaker, load_for
from sluice.services.ab.split import order_users
from sluice.services.config import RunConfig
from sluice.services.paths import RunPaths
from sluice.services.progress import Reporter

RESULT = "ab.json"


@dataclass(frozen=True, kw_only=True)
class Question:
    """What `sluice ab` is asked."""

    config: RunConfig  # of the run whose data set it is
    policies: tuple[Path, ...]  # at least two; the first is what the others are compared with
    plan: Plan
    world: Path | None = None  # None: where the config's interactions lie
    output: Path | None = None  # None: ab/ of the run directory
    most_users: int | None = None


def run_test(question: Question, reporter: Reporter) -> dict[str, Any]:
    """Serve every policy, judge, and write `ab.json` and `ab.html`; returns what the JSON has.

    Raises:
        ConfigError: fewer than two policies, one that is no directory, two of one name, a plan that the
            users are too few for, or days of the log that are not of the test part.
        DataError: there is no world, or the data set is not of its log.
        PolicyError: a policy is of another catalogue.
    """
    config, plan = question.config, question.plan
    names = name_policies(question.policies)
    directory = question.world or world_of(config)
    dataset, truth = Dataset.open(RunPaths.of(config).data), Truth.open(directory)
    ids = Ids.of(dataset, truth.world)
    users = order_users(dataset.user_ids, plan.seed)[
        : None if question.most_users is None else max(0, question.most_users)
    ]
    plan.check(len(users), len(names))
    of_test = is_test_window(truth, dataset, plan.log_days)
    for policy in question.policies:
        load_for(policy, dataset)  # the last one's mistake is not to come after the first one was served
    visits = read_visits(directory, truth, dataset, ids, plan.log_days, users)
    outcomes: list[Outcomes] = []
    judged: list[tuple[Rounds, float]] = []
    for name, policy in zip(names, question.policies, strict=True):
        with SlateMaker(config, policy, dataset, truth.world.logger.slate) as maker:
            with reporter.phase(f"serve {name}") as progress:
                served = serve_users(
                    maker, directory, dataset, users, visits=plan.visits, seed=plan.seed, progress=progress
                )
            with reporter.phase(f"log {name}") as progress:
                judged.append(judge_visits(maker, truth, dataset, ids, visits, progress))
        outcomes.append(served)
    told = {
        "world": str(directory),
        "directories": dict(zip(names, map(str, question.policies), strict=True)),
        **describe_test(
            plan,
            names,
            [dataset.user_ids[user] for user in users.tolist()],
            outcomes,
            np.diff(dataset.offsets)[users].astype(np.float64),
        ),
        "off_policy": {
            "of_test": of_test,
            **describe_estimates(names, judged, plan.alpha / (len(names) - 1)),
        },
    }
    result: dict[str, Any] = to_finite(told)
    output = question.output or config.directory / "ab"
    output.mkdir(parents=True, exist_ok=True)
    write_atomically(output / RESULT, json.dumps(result, indent=1, allow_nan=False) + "\n")
    write_page(result, output)
    return result


def show_test(question: Question) -> int:
    """Run the test, and print what it says."""
    with Reporter.for_stream(sys.stdout) as reporter:
        result = run_test(question, reporter)
    for sentence in sentences_of(result):
        print(sentence)
    print(question.output or question.config.directory / "ab")
    return 0


def describe_estimates(
    names: Sequence[str], judged: Sequence[tuple[Rounds, float]], alpha: float
) -> dict[str, Any]:
    """What the log alone says of each policy, and of each but the first against it.

    An estimate is None where the log shows nothing that the policy would have shown.
    """
    told: dict[str, Any] = {"impressions": len(judged[0][0].action), "policies": {}, "differences": {}}
    told["users"] = len(np.unique(judged[0][0].users))
    for name, (rounds, truth) in zip(names, judged, strict=True):
        told["policies"][name] = {
            "truth": truth,
            "effective_sample": rounds.effective_sample,
            "largest_weight": float(rounds.weights.max()),
            "estimates": _intervals(estimate_value(rounds), alpha),
        }
    first, true_first = judged[0]
    for name, (rounds, truth) in zip(names[1:], judged[1:], strict=True):
        told["differences"][name] = {
            "truth": truth - true_first,
            "estimates": _intervals(estimate_difference(first, rounds), alpha),
        }
    return told


def _intervals(estimates: Mapping[str, Estimate], alpha: float) -> dict[str, list[float] | None]:
    """By estimator the value and its interval; None where it is not known."""
    return {
        kind: [estimates[kind].value, *estimates[kind].interval(alpha)] if kind in estimates else None
        for kind in KINDS
    }


def world_of(config: RunConfig) -> Path:
    """The directory of the world whose log the config reads.

    Raises:
        ConfigError: its data are no files.
    """
    source = config.data.source
    if not isinstance(source, TableSource):
        raise ConfigError(
            f"data.source.type is {source.type}: a simulated world has its log as files (type table); give "
            "the config that the world's log was prepared by"
        )
    return Path(source.interactions[0]).parent


def name_policies(policies: Sequence[Path]) -> list[str]:
    """What tells the directories apart: their paths without what they have in common.

    `arms/nll/last` and `arms/user/last` are nll and user.

    Raises:
        ConfigError: fewer than two, one that is no directory, or one twice.
    """
    if len(policies) < 2:
        raise ConfigError("sluice ab compares policies: give at least two directories")
    for policy in policies:
        if not policy.is_dir():
            raise ConfigError(f"the policy {policy} is no directory: give a Hugging Face model directory")
    parts = [list(policy.resolve().parts) for policy in policies]
    if len(set(map(tuple, parts))) < len(parts):
        raise ConfigError("a policy is given twice: the test runs the first one against itself in any case")
    for shorter, end in ((slice(1, None), 0), (slice(None, -1), -1)):
        while len({path[end] for path in parts}) == 1 and min(map(len, parts)) > 1:
            parts = [path[shorter] for path in parts]
    return ["/".join(path) for path in parts]
