"""The final judgement: every policy and both baselines on the test users, by the same code, in
`summary.json`.
"""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sluice.catalog.data.dataset import Dataset, Examples
from sluice.catalog.files import write_atomically
from sluice.learner.evaluation.baselines import fit_baselines
from sluice.learner.evaluation.evaluate import TOP, UserResults
from sluice.learner.evaluation.stratified import gate_at_start, stratify_users
from sluice.learner.ranker.contract import Ranker
from sluice.learner.ranker.load import load_ranker
from sluice.learner.ranking_metrics import bootstrap_intervals, rank_of
from sluice.learner.training.objective import build_objective
from sluice.services.config import RunConfig
from sluice.services.paths import RunPaths
from sluice.services.run.tasks import State, run_tasks
from sluice.services.stages.evaluate import evaluate_run
from sluice.services.stages.fit_ranker import read_quality

PAIRS = (
    ("best", "control"),
    ("best", "start"),
    ("last", "control"),
    ("control", "start"),
    ("best", "itemknn"),
)


def judge_policies(
    config: RunConfig, progress: Callable[[int, int, dict[str, float]], None]
) -> dict[str, Any]:
    """`metrics`, `bootstrap_intervals` and `stratified`, of every policy that the run left and both baselines
    on the test users; and `ranker`, what its fitting found on validation.
    """
    paths = RunPaths.of(config)
    places = {
        "start": paths.policy,
        "control": paths.control,
        "control_last": paths.control_last,
        "best": paths.best,
        "last": paths.last,
    }
    places = {name: place for name, place in places.items() if place.exists()}
    jobs = {name: functools.partial(evaluate_run, config, place, "test") for name, place in places.items()}
    ended = []

    def watch(name: str, _state: State, has_ended: bool) -> None:
        if has_ended:
            ended.append(name)
        progress(len(ended), len(places) + 1, {})

    results = run_tasks(jobs, config.cluster, watch)
    dataset = Dataset.open(paths.data)
    results |= judge_baselines(dataset)
    ranks = {name: result.ranks for name, result in results.items()}
    summary: dict[str, Any] = {
        "metrics": {name: result.summary(dataset.items) for name, result in results.items()},
        "intervals": {
            metric: bootstrap_intervals(ranks, results["start"].users, metric, PAIRS)
            for metric in ("hr@10", "ndcg@10")
        },
    }
    if build_objective(config.objective).needs_groups:
        ranker = load_ranker(config.ranker, paths.ranker, dataset)
        ranked = judge_scores(
            dataset, dataset.examples("test"), _full_catalogue(ranker, dataset.items), batch=64
        )
        summary["metrics"]["ranker"] = ranked.summary(dataset.items)
        settings, admitted = getattr(config.objective, "gate", None), None
        if settings is not None:
            admitted = gate_at_start(results["start"], dataset, ranker, settings, config.rollout.distractors)
        summary["stratified"] = stratify_users(results, ranked, config.evaluation.beam_width, admitted)
    summary["ranker"] = read_quality(paths)
    progress(len(places) + 1, len(places) + 1, {})
    return summary


def _full_catalogue(ranker: Ranker, items: int) -> Callable[[list[np.ndarray]], np.ndarray]:
    everything = np.arange(items, dtype=np.int32)[None]
    return lambda histories: ranker.score(histories, np.repeat(everything, len(histories), axis=0))


def judge_scores(
    dataset: Dataset, examples: Examples, score: Callable[[list[np.ndarray]], np.ndarray], batch: int = 256
) -> UserResults:
    """Full-catalogue ranking by `score(histories) -> [B, N]`, seen items left out when the data set says
    so.
    """
    ranks, tops = [], []
    for start in range(0, len(examples.users), batch):
        pairs = list(
            zip(
                examples.users[start : start + batch].tolist(),
                examples.positions[start : start + batch].tolist(),
                strict=True,
            )
        )
        scores = np.array(score([dataset.history(*pair, None) for pair in pairs]), dtype=np.float32)
        if dataset.settings.exclude_seen:
            for row, pair in enumerate(pairs):
                scores[row, dataset.seen(*pair)] = -np.inf
        order = np.argsort(-scores, axis=1, kind="stable")
        ranks.append(rank_of(np.asarray([dataset.target(*pair) for pair in pairs]), order))
        tops.append(order[:, :TOP].astype(np.int32))
    return UserResults(
        users=examples.users,
        ranks=np.concatenate(ranks),
        top_items=np.concatenate(tops),
        invalid=np.zeros(len(examples.users), dtype=np.int64),
    )


def judge_baselines(dataset: Dataset) -> dict[str, UserResults]:
    """The baselines on the test users."""
    examples = dataset.examples("test")
    return {name: judge_scores(dataset, examples, score) for name, score in fit_baselines(dataset).items()}


def write_summary(path: Path, summary: dict[str, Any]) -> None:
    """Write it whole or not at all."""
    write_atomically(path, json.dumps(summary, indent=1))
