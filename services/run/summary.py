"""The final judgement: every policy, the baselines and the ranker on the test examples, by the same code, in
`summary.json`.
"""

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sluice.catalog.data.dataset import Dataset
from sluice.catalog.errors import SluiceError
from sluice.catalog.files import sha256_of, write_atomically
from sluice.learner.evaluation.baselines import judge_baselines, judge_scores
from sluice.learner.evaluation.breadth import coverage_change, is_narrower
from sluice.learner.evaluation.evaluate import UserResults
from sluice.learner.evaluation.exposure import (
    WEIGHTED,
    choosing_metrics,
    decides_weighted,
    describe_weights,
    weigh_examples,
)
from sluice.learner.evaluation.stratified import RANKER_WIDTH, gate_at_start, stratify_users
from sluice.learner.full_catalogue import score_all_items
from sluice.learner.ranker.contract import Ranker, ask_score
from sluice.learner.ranker.load import load_ranker
from sluice.learner.ranking_metrics import bootstrap_intervals, bootstrap_mean, per_user
from sluice.learner.settings import EvaluationSettings
from sluice.learner.training.objective import build_objective
from sluice.services.config import RunConfig
from sluice.services.paths import RunPaths
from sluice.services.progress import Progress
from sluice.services.run.arms import ROLLED_OUT, SFT_ALL
from sluice.services.run.metrics_file import last_metrics
from sluice.services.run.tasks import State, run_tasks
from sluice.services.run.trust import measure_trust
from sluice.services.stages.evaluate import evaluate_run
from sluice.services.stages.fit_ranker import read_quality

# The differences, first less second, where the run has both.
PAIRS = (
    ("best", "control"),
    ("last", "control_last"),
    ("best", "start"),
    ("last", "start"),
    *(("best", name) for name in (*ROLLED_OUT, SFT_ALL)),
    *(("last", f"{name}_last") for name in ROLLED_OUT),
    ("control", "start"),
    ("best", "itemknn"),
    ("best", "ease"),
)
_BATCH = 64  # examples that the ranker scores the catalogue for at a time


def judge_policies(
    config: RunConfig, progress: Callable[[int, int, dict[str, float]], None]
) -> dict[str, Any]:
    """`metrics`, `intervals`, `breadth` and `stratified`, of every policy that the run left, the baselines
    and the ranker on the test examples; `ranker`, what its fitting found on validation; and `chosen_by`, the
    metrics of validation that chose the best checkpoint.

    A ranker that fails here takes nothing else with it: `ranker_error` says why, and what it was asked for is
    left out.
    """
    paths = RunPaths.of(config)
    dataset = Dataset.open(paths.data)
    has_ranker = build_objective(config.objective).needs_groups
    places = {name: place for name, place in policies_of(paths).items() if place.exists()}
    decoded_as = same_weights(places)
    jobs = {
        name: functools.partial(evaluate_run, config, places[name], "test")
        for name in dict.fromkeys(decoded_as.values())
    }
    if has_ranker:
        jobs["valid"] = functools.partial(evaluate_run, config, paths.policy, "valid", whole=True)
    ended = []

    def watch(name: str, _state: State, has_ended: bool) -> None:
        if has_ended:
            ended.append(name)
        progress(len(ended), len(jobs) + 1, {})

    results = run_tasks(jobs, config.cluster, watch)
    on_validation = results.pop("valid", None)
    results = {name: results[of] for name, of in decoded_as.items()}
    examples, width = dataset.examples("test"), config.evaluation.beam_width
    results |= judge_baselines(dataset, examples, width)
    summary: dict[str, Any] = {}
    if has_ranker:
        try:
            of_ranker = _ask_ranker(config, results["start"])
        except SluiceError as error:
            summary["ranker_error"] = f"the ranker {config.ranker.use} failed in the judge: {error}"
        else:
            results["ranker"] = of_ranker.on_test
            summary["stratified"] = stratify_users(
                results, (on_validation, of_ranker.on_validation), of_ranker.admitted
            )
    summary |= compare_results(results, dataset, config.evaluation)
    write_ranks(paths.ranks, results)
    summary["ranker"] = read_quality(paths)
    validation = last_metrics(paths.arm("train").metrics, "eval")
    if validation is not None:
        summary["chosen_by"] = choosing_metrics(validation, config.evaluation)
    progress(len(jobs) + 1, len(jobs) + 1, {})
    return summary


def policies_of(paths: RunPaths) -> dict[str, Path]:
    """Where the policies of a run lie, by the name of their row."""
    control, train = paths.arm("control"), paths.arm("train")
    return {
        "start": paths.policy,
        "control": control.best,
        "control_last": control.last,
        "best": train.best,
        "last": train.last,
        **{name: paths.arm(name).best for name in ROLLED_OUT},
        **{f"{name}_last": paths.arm(name).last for name in ROLLED_OUT},
        SFT_ALL: paths.sft_all,
    }


def same_weights(places: Mapping[str, Path]) -> dict[str, str]:
    """The first row with the same weights, of every row: the best checkpoint is often the last or the start,
    and one decoding tells of both.
    """
    first: dict[tuple[str, ...], str] = {}
    return {
        name: first.setdefault(tuple(map(sha256_of, sorted(place.glob("*.safetensors")))), name)
        for name, place in places.items()
    }


def compare_results(
    results: Mapping[str, UserResults], dataset: Dataset, settings: EvaluationSettings
) -> dict[str, Any]:
    """`metrics` of every row, `intervals` of rows and paired differences, how the `breadth` of the lists
    changed from the start to the best checkpoint, how examples were weighted: `weighting`, None without
    propensities, and which HR@10 the run is judged by: `judged_by`.

    All rows are of the same examples.
    """
    start = results["start"]
    for result in results.values():
        assert np.array_equal(result.users, start.users) and np.array_equal(result.positions, start.positions)
    ranks = {name: result.ranks for name, result in results.items()}
    weights = weigh_examples(dataset, start.users, start.positions, settings)
    counted = {"": None} if weights is None else {"": None, WEIGHTED: weights}
    metrics = {name: result.summary(dataset, settings) for name, result in results.items()}
    return {
        "metrics": metrics,
        "intervals": {
            before + metric: bootstrap_intervals(ranks, start.users, metric, PAIRS, of_kind)
            for before, of_kind in counted.items()
            for metric in ("hr@10", "ndcg@10")
        },
        "judged_by": WEIGHTED * decides_weighted(metrics["start"], settings) + "hr@10",
        "weighting": None if weights is None else describe_weights(dataset, settings),
        "breadth": _breadth(start, results["best"], dataset.items) if "best" in results else None,
    }


def _breadth(before: UserResults, after: UserResults, items: int) -> dict[str, Any]:
    """The changes (difference, low, high) of HR@1, HR@50 and coverage, and whether the lists got narrower."""
    values = [per_user(result.ranks, result.width) for result in (before, after)]
    changes: dict[str, tuple[float, float, float]] = {}
    for name in ("hr@1", "hr@50"):
        if name in values[0]:
            change = values[1][name] - values[0][name]
            changes[name] = (float(change.mean()), *bootstrap_mean(change, before.users))
    changes["coverage"] = coverage_change(before.top_items, after.top_items, before.users, items)
    return {
        "changes": {name: list(change) for name, change in changes.items()},
        "narrower": is_narrower(changes),
    }


@dataclass(frozen=True, kw_only=True)
class _OfRanker:
    on_test: UserResults
    on_validation: UserResults
    admitted: np.ndarray | None  # bool [n], of the test examples by the gate at the start


def _ask_ranker(config: RunConfig, start: UserResults) -> _OfRanker:
    """In a process of its own, since a ranker is the user's code."""
    job = functools.partial(judge_ranker, config, start)
    answer: _OfRanker = run_tasks({"ranker": job}, config.cluster, lambda *_: None)["ranker"]
    return answer


def judge_ranker(config: RunConfig, start: UserResults, progress: Progress) -> _OfRanker:
    """The ranker's own lists, and whom the gate would admit by it after `start`, the start's results.

    Raises:
        RankerError: it cannot be loaded, or raised.
    """
    del progress
    paths = RunPaths.of(config)
    dataset = Dataset.open(paths.data)
    ranker, width = load_ranker(config.ranker, paths.ranker, dataset), config.evaluation.beam_width
    score = score_all_items(functools.partial(ask_score, ranker), dataset.items)
    return _OfRanker(
        on_test=judge_scores(dataset, dataset.examples("test"), score, width, _BATCH),
        on_validation=judge_scores(dataset, dataset.examples("valid"), score, RANKER_WIDTH, _BATCH),
        admitted=_admitted(config, dataset, start, ranker),
    )


def _admitted(config: RunConfig, dataset: Dataset, start: UserResults, ranker: Ranker) -> np.ndarray | None:
    trust = measure_trust(config, RunPaths.of(config), dataset, ranker)
    settings = getattr(config.objective, "gate", None)
    if settings is None:
        return None
    return gate_at_start(start, dataset, ranker, settings, config.rollout.distractors, trust)


def write_ranks(path: Path, results: Mapping[str, UserResults]) -> None:
    """A Parquet file of the rank of every test example's target in every row's list, 0 where it is not in it.

    Columns: `user` and `position`, and one of each row.
    """
    start = results["start"]
    columns = {"user": start.users, "position": start.positions}
    columns |= {name: result.ranks for name, result in results.items()}
    pq.write_table(pa.table({name: pa.array(values, pa.int32()) for name, values in columns.items()}), path)


def write_summary(path: Path, summary: dict[str, Any]) -> None:
    """Write it whole or not at all."""
    write_atomically(path, json.dumps(summary, indent=1))
