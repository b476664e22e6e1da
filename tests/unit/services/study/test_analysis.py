"""Planted differences are found, and nothing is found where there is none."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sluice.services.study.analysis import Findings
from sluice.services.study.page import write_page
from sluice.services.study.results import ROW, cells_of, prompts_directory
from sluice.services.study.sections import choosing_sentence, read_prompts
from sluice.services.study.settings import load_study
from sluice.services.study.start_rollouts import PROMPTS
from tests.unit.services.study.conftest import write_study

USERS, EACH = 200, 3
_BY_USER = "objective.gate={parts: trust, trust: {}}"


def plant(study, hits, truth=None, valid=None, checkpoint="last", weights=None):
    """Leave examples of which a share of `hits[arm]` is at rank 1, the same examples first for all arms."""
    users = np.repeat(np.arange(USERS), EACH)
    order = np.random.default_rng(0).permutation(len(users))
    for cell in cells_of(study):
        if cell.arm not in hits:
            continue
        cell.directory.mkdir(parents=True, exist_ok=True)
        for split, shares in (("test", hits), ("valid", valid or hits)):
            ranks = np.where(np.argsort(order) < shares[cell.arm] * len(users), 1, 0)
            columns = {"user": users, "position": np.tile(np.arange(EACH), USERS), "rank": ranks}
            if weights is not None:
                columns["weight"] = weights
            if truth:
                columns["true_ctr"] = truth[cell.arm] + 0.01 * (users % 2)
                columns["group"] = np.where(users % 2, "odd", "even")
            pq.write_table(pa.table(columns), cell.directory / f"{checkpoint}-{split}.parquet")
        (cell.directory / ROW).write_text(
            '{"cost": {"seconds": 1.0, "gate_rate": null}, "origin": {"commit": "abc"}, '
            '"checkpoints": {"last": {"hr@10": 0.5, "hallucination": 0}, "best": {"hr@10": 0.5}}}'
        )


@pytest.fixture
def study(tmp_path):
    return load_study(write_study(tmp_path))


HITS = {"start": 0.3, "nll": 0.3, "mixture": 0.25, "heavy": 0.4, "gate": 0.5}


def test_differences_are_first_less_second_with_their_intervals(study):
    plant(study, HITS)
    found = {(d.first, d.second, d.metric): d for d in Findings(study).differences("tiny")}
    gate = found["gate", "nll", "hr@10"]
    assert gate.mean == pytest.approx(0.2) and 0.15 < gate.low < 0.2 < gate.high < 0.25
    assert gate.relative == pytest.approx(0.2 / 0.3) and gate.p < 1e-6
    assert found["mixture", "nll", "hr@10"].high < 0
    level = found["start", "nll", "hr@10"]
    assert (level.mean, level.low, level.high, level.p) == (0, 0, 0, 1)


def test_p_values_are_corrected_for_all_comparisons_of_a_metric(study):
    plant(study, {"start": 0.3, "nll": 0.3, "mixture": 0.31, "heavy": 0.3, "gate": 0.3})
    found = {(d.first, d.second): d for d in Findings(study).differences("tiny") if d.metric == "hr@10"}
    alone = study.model_copy(
        update={
            "against": ("nll",),
            "best_of": {},
            "arms": {name: study.arms[name] for name in ("nll", "mixture")},
        }
    )
    by_itself = {(d.first, d.second): d for d in Findings(alone).differences("tiny") if d.metric == "hr@10"}
    several, few = found["mixture", "nll"].p, by_itself["mixture", "nll"].p
    assert 0 < few < several <= 1


def test_the_best_of_several_is_chosen_on_validation(study):
    plant(study, HITS, valid=HITS | {"mixture": 0.6, "heavy": 0.1})
    assert Findings(study).rows("tiny")["best-mixture"] == "mixture"


def test_the_truth_chooses_where_it_is_known_and_tells_groups_apart(study):
    truth = {"start": 0.2, "nll": 0.2, "mixture": 0.3, "heavy": 0.1, "gate": 0.4}
    plant(study, HITS, truth=truth)
    findings = Findings(study)
    assert findings.rows("tiny")["best-mixture"] == "mixture"
    of = {(d.first, d.second, d.group): d for d in findings.differences("tiny") if d.metric == "true_ctr"}
    assert of["gate", "nll", "odd"].mean == pytest.approx(0.2)
    assert of["gate", "nll", "odd"].second_mean == pytest.approx(0.21)
    assert of["gate", "nll", "even"].second_mean == pytest.approx(0.2)
    assert of["gate", "nll", None].second_mean == pytest.approx(0.205)


def test_the_other_checkpoint_is_compared_when_asked_for(study):
    plant(study, HITS)
    plant(study, HITS | {"gate": 0.1}, checkpoint="best")
    best = study.model_copy(update={"checkpoint": "best"})
    change = {
        c: next(d.mean for d in Findings(s).differences("tiny") if (d.first, d.second) == ("gate", "nll"))
        for c, s in (("last", study), ("best", best))
    }
    assert change["last"] == pytest.approx(0.2) and change["best"] == pytest.approx(-0.2)


def test_weighted_differences_count_each_example_by_its_weight(study):
    weights = np.random.default_rng(1).uniform(0, 9, USERS * EACH)
    weights[:30] = 0
    plant(study, HITS, weights=weights)
    findings = Findings(study)
    found = {(d.first, d.second, d.metric): d for d in findings.differences("tiny")}
    gate, nll = (findings.pooled("tiny", arm).ranks == 1 for arm in ("gate", "nll"))
    both = np.concatenate([weights, weights])  # two seeds
    weighted = found["gate", "nll", "ips_hr@10"]
    expected = (gate.astype(float) - nll) @ both / both.sum()
    assert weighted.mean == pytest.approx(expected) and weighted.low < expected < weighted.high
    assert weighted.mean != pytest.approx(found["gate", "nll", "hr@10"].mean)
    assert weighted.second_mean == pytest.approx(nll @ both / both.sum()) and weighted.p < 1e-6


def test_the_page_says_which_metric_orders_the_policies_as_the_truth_does(study):
    """The better a policy truly is, the more it hits of what was rarely shown, and the less of the rest."""
    rare = np.arange(USERS * EACH) % 10 == 0
    arms = ("start", "nll", "mixture", "heavy", "gate")
    truth = {arm: 0.1 + 0.05 * place for place, arm in enumerate(arms)}
    plant(study, dict.fromkeys(arms, 0.5), truth)
    assert choosing_sentence("tiny", Findings(study)) is None  # no weights
    plant(study, dict.fromkeys(arms, 0.5), truth, weights=np.where(rare, 100.0, 1.0))
    for cell in cells_of(study):
        if cell.arm in arms:
            better, number = arms.index(cell.arm), np.arange(USERS * EACH) // 10
            hit = np.where(rare, number < 10 * better, number < 50 - 10 * better)
            path = cell.directory / "last-test.parquet"
            table = pq.read_table(path).drop_columns("rank").append_column("rank", pa.array(hit.astype(int)))
            pq.write_table(table, path)
    assert choosing_sentence("tiny", Findings(study)) == (
        "tiny: over 5 policies true click-through has the rank correlation -1.00 with logged HR@10, and "
        "+1.00 with HR@10 weighted by inverse propensity."
    )


def test_prompts_are_joined_to_the_examples_that_arms_were_judged_on(study):
    """A judge may look at some users alone; the prompts are of all, and in an order of their own."""
    plant(study, HITS)
    findings = Findings(study)
    pooled = findings.pooled("tiny", "gate")
    assert pooled.ends.tolist() == [USERS * EACH, 2 * USERS * EACH]
    for seed in study.seeds:
        user, position = np.divmod(np.random.default_rng(seed).permutation((USERS + 9) * EACH), EACH)
        directory = prompts_directory(study, "tiny", seed)
        directory.mkdir(parents=True)
        table = {"user": user, "position": position, "mark": 1000 * seed + 10 * user + position}
        pq.write_table(pa.table(table), directory / PROMPTS)
    joined = read_prompts(study, "tiny", pooled)
    seeds = np.repeat(study.seeds, USERS * EACH)
    assert joined["mark"].tolist() == (1000 * seeds + 10 * pooled.users + pooled.positions).tolist()


def test_the_page_says_what_is_best_and_what_is_missing(study):
    plant(study, HITS)
    page = write_page(study).read_text()
    assert "tiny: gate is better than nll: HR@10 +0.2000" in page
    assert "best-mixture (heavy)" in page
    assert "2 rows are not done with all seeds yet" in page  # random, trust
    told = (study.directory / "report.md").read_text()
    assert "| gate - nll | HR@10 | +0.2000 |" in told


def test_the_page_tells_groups_apart_and_praises_no_oracle(tmp_path):
    world = {
        "sets": {"tiny": {"config": str(tmp_path / "run.yaml"), "world": "configs/worlds/half-wrong.yaml"}}
    }
    arms = {"nll": {"objective": {"type": "nll"}}, "gate": {}, "oracle": {"oracle": True, "set": [_BY_USER]}}
    study = load_study(write_study(tmp_path, **world, arms=arms, against=["nll"], best_of={}))
    hits = {"start": 0.3, "nll": 0.3, "gate": 0.3, "oracle": 0.3}
    plant(study, hits, truth={"start": 0.2, "nll": 0.2, "gate": 0.4, "oracle": 0.5})
    page = write_page(study)
    told = page.with_suffix(".md").read_text()
    assert told.startswith("- tiny: gate is better than nll: true click-through +0.2000")
    assert "corrected p below 0.001" in told
    assert "| row | HR@10 | of even | of odd |" in told  # the planted rows have no means of their own
    assert "| gate | 0.5000 | 0.4000 | 0.4100 |" in told
