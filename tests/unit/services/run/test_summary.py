"""The judgement of a small run in this process: every row by one rule, paired differences, and breadth."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from sluice.catalog.data.dataset import Dataset
from sluice.catalog.errors import RunError
from sluice.learner.evaluation.evaluate import UserResults
from sluice.learner.policy.policy import load_policy, save_policy
from sluice.learner.settings import EvaluationSettings
from sluice.services.config import load_config
from sluice.services.paths import RunPaths
from sluice.services.report.report import write_report
from sluice.services.run import summary
from sluice.services.run.summary import PAIRS, compare_results, judge_policies, same_weights, write_summary

RUN = Path(__file__).parents[3] / "data" / "run-of-0.1"
N = 40


class Catalogue:
    items = 100
    prompt_part = "pretrain"
    propensities = None

    def item_shares(self, part):
        assert part == "pretrain"
        return np.arange(100, dtype=np.float32)[::-1]  # items 0 to 9 are the head


def results(ranks, items):
    return UserResults(
        users=np.repeat(np.arange(N // 2), 2),
        positions=np.tile([7, 8], N // 2),
        ranks=np.asarray(ranks),
        items=np.asarray(items, dtype=np.int32),
        invalid=np.zeros(N, dtype=np.int64),
    )


@pytest.fixture(scope="module")
def compared():
    """The best checkpoint puts more targets first, and shows everybody the same fifty items."""
    start, best = np.random.default_rng(0), np.random.default_rng(1)
    wide = np.stack([start.permutation(100)[:50] for _ in range(N)])
    before = np.where(best.random(N) < 0.5, 30, 2)
    rows = {
        "start": results(before, wide),
        "control": results(before, wide),
        "best": results(np.where(np.arange(N) % 4 < 2, 1, 0), np.tile(np.arange(50), (N, 1))),
    }
    return compare_results(rows, Catalogue(), EvaluationSettings())


def test_differences_are_first_less_second_and_paired(compared):
    metrics, intervals = compared["metrics"], compared["intervals"]["hr@10"]
    assert metrics["best"]["hr@10"] == 0.5
    assert {"best-control", "best-start", "control-start"} == {name for name in intervals if "-" in name}
    low, high = intervals["best-start"]
    assert low <= metrics["best"]["hr@10"] - metrics["start"]["hr@10"] <= high
    assert intervals["control-start"] == [0, 0], "the same ranks, example by example"


def test_the_lists_got_narrower_and_the_figures_say_so(compared):
    metrics, breadth = compared["metrics"], compared["breadth"]
    assert metrics["start"]["coverage"] > 0.9 and metrics["best"]["coverage"] == 0.1
    assert metrics["best"]["head_share"] == 1
    assert metrics["best"]["entropy"] == pytest.approx(np.log(10))
    assert (metrics["best"]["examples"], metrics["best"]["users"]) == (N, N // 2)
    assert breadth["narrower"] is True
    changes = breadth["changes"]
    assert set(changes) == {"hr@1", "hr@50", "coverage"}
    assert changes["hr@1"][0] == 0.5 and changes["hr@1"][1] > 0.1
    assert changes["hr@50"][0] == -0.5  # all targets were within fifty places
    assert changes["coverage"][2] < 0


def test_with_propensities_all_is_compared_by_weights_too():
    """Two thirds of the weight are on examples that only the start gets right."""
    hits = np.arange(N) % 4 < 2
    rows = {
        "start": results(np.where(hits, 0, 1), np.tile(np.arange(50), (N, 1))),
        "best": results(np.where(hits, 1, 0), np.tile(np.arange(50), (N, 1))),
    }
    shown = Catalogue()
    shown.offsets = np.arange(0, 2 * N, 2) - 7  # two examples a user, at positions 7 and 8
    shown.propensities = np.where(hits, 0.5, 0.25).astype(np.float32)
    shown.slate_positions = None
    compared = compare_results(rows, shown, EvaluationSettings())
    assert compared["weighting"] == {"clip": 1000, "examination": "none"}
    best, start = compared["metrics"]["best"], compared["metrics"]["start"]
    assert best["hr@10"] == start["hr@10"] == 0.5
    assert (best["ips_hr@10"], start["ips_hr@10"]) == pytest.approx((1 / 3, 2 / 3))
    assert set(compared["intervals"]) == {"hr@10", "ndcg@10", "ips_hr@10", "ips_ndcg@10"}
    low, high = compared["intervals"]["ips_hr@10"]["best-start"]
    assert -0.9 < low < -1 / 3 < high < 0.25
    clipped = compare_results(rows, shown, EvaluationSettings(propensity_clip=2))
    assert clipped["metrics"]["best"]["ips_hr@10"] == 0.5 and clipped["weighting"]["clip"] == 2
    low, high = clipped["intervals"]["ips_hr@10"]["best-start"]
    assert low + high == pytest.approx(0, abs=0.15)
    assert compared["judged_by"] == "hr@10", "36 effective examples are too few"
    asked = compare_results(rows, shown, EvaluationSettings(select_by="weighted"))
    assert asked["judged_by"] == "ips_hr@10"


def test_without_propensities_nothing_is_weighted(compared):
    assert compared["weighting"] is None and set(compared["intervals"]) == {"hr@10", "ndcg@10"}


def test_every_arm_has_its_pair():
    assert set(PAIRS) >= {
        ("best", "control"),
        ("last", "control_last"),
        ("best", "start"),
        ("last", "start"),
        ("best", "mixture"),
        ("best", "random_gate"),
        ("last", "mixture_last"),
        ("last", "random_gate_last"),
        ("best", "sft_all"),
    }


@pytest.fixture
def judged(tmp_path, monkeypatch):
    """A copy of the run of the release before, with a control and an arm that are its start, judged without
    Ray.
    """
    config = load_config(RUN / "config.yaml", ["evaluation.max_users=5", f"output={tmp_path}"])
    shutil.copytree(RUN, config.directory)
    paths = RunPaths.of(config)
    for name in ("control", "mixture"):
        save_policy(load_policy(paths.policy), paths.arm(name).best)
    save_policy(load_policy(paths.arm("train").last), paths.arm("mixture").last)

    def run_tasks(jobs, _settings, watch):
        assert not {"control", "mixture"} & set(jobs), "the same weights are decoded once"
        for name in jobs:
            watch(name, (1, 1, {}), True)
        return {name: job(lambda *_: None) for name, job in jobs.items()}

    def stratify_users(results, defining, admitted):
        valid = Dataset.open(paths.data).examples("valid")
        for judged in defining:  # on validation, all of it, whatever `evaluation.max_users` says
            assert judged.users.tolist() == valid.users.tolist()
            assert judged.positions.tolist() == valid.positions.tolist()
        return stratify(results, defining, admitted)

    stratify = summary.stratify_users
    monkeypatch.setattr(summary, "stratify_users", stratify_users)
    monkeypatch.setattr(summary, "run_tasks", run_tasks)
    return config, judge_policies(config, lambda *_: None)


def test_a_run_is_judged_whole(judged):
    config, found = judged
    assert set(found["metrics"]) == {
        *("start", "control", "best", "last", "mixture", "mixture_last"),
        *("popularity", "itemknn", "ease", "ranker"),
    }
    dataset = Dataset.open(RunPaths.of(config).data)
    for values in found["metrics"].values():
        assert values["examples"] == len(dataset.examples("test"))
        assert "hr@50" not in values  # ten beams, and as many places for everybody
    assert found["chosen_by"] == ("hr@10", "ndcg@10") and found["judged_by"] == "hr@10"
    assert found["metrics"]["mixture"] == found["metrics"]["start"]
    assert found["metrics"]["mixture_last"] == found["metrics"]["last"] != found["metrics"]["start"]
    assert {"best-control", "best-mixture", "last-mixture_last", "best-ease", "ranker"} <= set(
        found["intervals"]["hr@10"]
    )
    cells = found["stratified"]
    assert sum(cell["examples"] for cell in cells) == len(dataset.examples("test"))
    assert all({"admitted", "best-control", "best-control_interval"} <= set(cell) for cell in cells)
    assert set(found["breadth"]["changes"]) == {"hr@1", "coverage"}


def test_rows_with_the_same_weights_are_decoded_as_the_first(tmp_path):
    files = {
        "start": {"model.safetensors": b"a"},
        "control": {"model.safetensors": b"b"},
        "control_last": {"model.safetensors": b"a"},
        "best": {"model-1.safetensors": b"a", "model-2.safetensors": b"b"},
        "last": {"model-1.safetensors": b"a", "model-2.safetensors": b"c"},
        "mixture": {"model-1.safetensors": b"a", "model-2.safetensors": b"b"},
    }
    for name, contents in files.items():
        (tmp_path / name).mkdir()
        for file, content in contents.items():
            (tmp_path / name / file).write_bytes(content)
    assert same_weights({name: tmp_path / name for name in files}) == {
        "start": "start",
        "control": "control",
        "control_last": "start",
        "best": "best",
        "last": "last",
        "mixture": "best",
    }


def test_the_ranks_are_left_for_others_to_judge(judged):
    config, found = judged
    ranks = pq.read_table(RunPaths.of(config).ranks).to_pydict()
    examples = Dataset.open(RunPaths.of(config).data).examples("test")
    assert ranks["user"] == examples.users.tolist() and ranks["position"] == examples.positions.tolist()
    assert set(ranks) == {"user", "position", *found["metrics"]}
    for row, metrics in found["metrics"].items():
        hits = np.array([0 < rank <= 10 for rank in ranks[row]])
        assert hits.mean() == pytest.approx(metrics["hr@10"]), row


def test_a_ranker_that_raises_in_the_judge_takes_nothing_else_with_it(judged, monkeypatch):
    config, before = judged
    run_here = summary.run_tasks

    def run_tasks(jobs, settings, watch):
        if "ranker" in jobs:
            raise RunError("ranker failed: ZeroDivisionError: no scores today")
        return run_here(jobs, settings, watch)

    monkeypatch.setattr(summary, "run_tasks", run_tasks)
    found = judge_policies(config, lambda *_: None)
    assert found.pop("ranker_error") == (
        "the ranker builtin failed in the judge: ranker failed: ZeroDivisionError: no scores today"
    )
    assert set(before) - set(found) == {"stratified"}
    assert set(before["metrics"]) - set(found["metrics"]) == {"ranker"}
    assert found["metrics"]["best"] == before["metrics"]["best"]
    write_summary(RunPaths.of(config).summary, found)
    page = write_report(RunPaths.of(config).root)
    assert "the ranker itself" not in page.read_text()
