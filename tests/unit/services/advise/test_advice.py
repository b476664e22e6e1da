"""The advice on recorded runs: which rules hold, what they say, and the settings they name."""

import copy
import json
import re
from pathlib import Path

import pytest

from sluice.catalog.errors import RunError
from sluice.services.advise.advice import advise, closing_sentences, read_run, where_sentence
from sluice.services.advise.figures import read_figures
from sluice.services.advise.rule import holding
from sluice.services.advise.rules import RULES
from sluice.services.config_reference import describe_settings, groups_below

RUNS = Path(__file__).parents[3] / "data" / "advise"


def recorded(name):
    run = json.loads((RUNS / f"{name}.json").read_text())
    return run["summary"], run["lines"]


def names(summary, lines):
    return [rule.name for rule in holding(RULES, read_figures(summary, lines))]


def of_kind(lines, kind):
    return [line for line in lines if line["kind"] == kind]


@pytest.mark.parametrize(
    ("name", "rules"),
    [
        ("ml100k", ["lists got narrower", "still rising"]),
        ("ml100k-seed2", ["lists got narrower", "control as good"]),
        ("ml100k-biased", ["ranker weaker than the start", "lists got narrower", "control as good"]),
        (
            "quickstart",
            # The last validation has the HR@10 of the others, and the highest NDCG@10.
            [
                "gate admits almost none",
                "ranker weaker than the start",
                "KL too tight",
                "control as good",
                "still rising",
            ],
        ),
    ],
)
def test_which_rules_hold_of_the_recorded_runs(name, rules):
    assert names(*recorded(name)) == rules


# What has to change in the recorded run of seed 0 for a rule to hold, and what it then says.
def _hallucinates(summary, lines):
    summary["metrics"]["best"]["hallucination"] = 0.03


def _admits_none(summary, lines):
    summary["gate"]["rate"] = 0.029


def _admits_all(summary, lines):
    summary["gate"]["rate"] = 0.71


def _weak_ranker(summary, lines):
    summary["metrics"]["ranker"]["hr@10"] = 0.16


def _weak_where_admitted(summary, lines):
    for cell in summary["stratified"]:
        cell["best_hr@10"] = cell["control_hr@10"] - 0.01


def _narrower(summary, lines):
    summary["breadth"]["changes"]["coverage"] = [0.01, -0.01, 0.03]
    summary["breadth"]["changes"]["hr@50"] = [-0.02, -0.03, -0.01]


def _collapsed(summary, lines):
    for line in of_kind(lines, "step")[-50:]:
        line["entropy"] = 0.5


def _loose(summary, lines):
    for line in of_kind(lines, "step"):
        line["kl"] = 0.6
    of_kind(lines, "eval")[-1]["hr@10"] = 0.18


def _early(summary, lines):
    for line in of_kind(lines, "eval")[4:]:
        line["hr@10"] = 0.17


def _stale(summary, lines):
    summary["accounting"]["stale"] = summary["accounting"]["issued"] // 10


def _control_as_good(summary):
    summary["intervals"]["hr@10"]["best-control"] = [-0.001, 0.0131]


def _tight(summary, lines):
    _control_as_good(summary)
    for line in of_kind(lines, "step"):
        line["kl"] = 0.009


def _not_followed(summary, lines):
    _control_as_good(summary)
    for line in of_kind(lines, "step")[-50:]:
        line["reward_admitted"] = 1.0


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("hallucination rose", _hallucinates, "from 0.47% to 3.00% (bound: +0.5% and 1.5 times)"),
        ("gate admits almost none", _admits_none, "admitted 2.9% of the prompts (bound: 3%)"),
        ("gate admits almost all", _admits_all, "admitted 71.0% of the prompts (bound: 70%)"),
        ("ranker weaker than the start", _weak_ranker, "an HR@10 of 0.1600, less than the start's 0.1696"),
        ("ranker too weak where admitted", _weak_where_admitted, "best - control -0.0100 of HR@10"),
        ("lists got narrower", _narrower, "HR@50 -0.0200 [-0.0300, -0.0100] (bound"),
        ("policy collapsed", _collapsed, "to 0.50 nats (bound: 50% of the first)"),
        ("KL too loose", _loose, "ended 0.600 nats per token from the reference (bound: 0.5)"),
        ("best far before the last", _early, "best at step 100 of 300, 0.1890, and fell to 0.1700"),
        ("groups are stale", _stale, "10.0% were dropped as stale (bound: 5%)"),
        ("KL too tight", _tight, "only 0.0090 nats per token from the reference (bound: 0.01)"),
        ("reward not followed", _not_followed, "to 1.000 (bound: a rise)"),
    ],
)
def test_each_rule_holds_where_its_figure_crosses_the_bound(name, change, says):
    summary, lines = recorded("ml100k")
    (rule,) = [rule for rule in RULES if rule.name == name]
    before = read_figures(summary, lines)
    assert name == "lists got narrower" or not rule.holds(before)
    change(summary, lines)
    after = read_figures(summary, lines)
    assert rule.holds(after) and says in rule.says(after)


def test_bounds_are_exclusive():
    summary, lines = recorded("ml100k")
    summary["gate"]["rate"] = 0.03
    assert "gate admits almost none" not in names(summary, lines)
    summary["gate"]["rate"] = 0.7
    assert "gate admits almost all" not in names(summary, lines)
    start = summary["metrics"]["start"]["hallucination"]
    summary["metrics"]["best"]["hallucination"] = 1.6 * start  # many times, but less than half a percent
    assert "hallucination rose" not in names(summary, lines)


def test_three_sentences_and_what_else_there_is():
    advice = advise(*recorded("ml100k"))
    pays, where, following = advice.sentences
    assert pays.startswith("The run pays: HR@10 of the best checkpoint is +0.0078 [+0.0025, +0.0131]")
    assert "1-10 and 1-10: +0.0165 [-0.0169, +0.0471] on 363 examples" in where
    assert ", and harmed where" in where and "extremes of 6 strata" in where
    assert following.startswith(
        "Next: raise objective.grpo.kl_beta, or lower objective.weight, since the lists"
    )
    (further,) = advice.further
    assert further.startswith("raise learner.steps, since validation HR@10 was best at the last step 300")
    assert advice.lines()[-1] == f"Also: {further}"


def test_a_stratum_that_may_be_unharmed_is_not_called_harmed():
    where = advise(*recorded("ml100k-seed2")).sentences[1]
    assert ", and least where" in where and "-0.0259 [-0.0693, +0.0220]" in where


def test_strata_count_by_what_the_gate_admits_of_them():
    cells = [
        {"admitted": admitted, "examples": examples, "control_hr@10": 0.1, "best_hr@10": best}
        for admitted, examples, best in ((0.5, 200, 0.2), (0.1, 1000, 0.0), (0.0, 5000, 0.0))
    ]
    assert read_figures({"stratified": cells}, []).admitted_change == pytest.approx(0.0)
    assert read_figures({"stratified": cells[:1]}, []).admitted_change == pytest.approx(0.1)
    assert read_figures({"stratified": cells[2:]}, []).admitted_change is None


def test_a_run_closes_with_the_same_sentences():
    summary, lines = recorded("ml100k")
    closing = closing_sentences(summary, lines)
    assert closing[:3] == list(advise(summary, lines).sentences)
    assert closing[3].startswith("The lists got narrower") and closing[4].startswith("Logged HR")
    assert closing[5].startswith("Training took:")


def test_without_anything_that_holds_the_next_is_another_seed():
    summary, lines = recorded("ml100k")
    summary["breadth"]["narrower"] = False
    of_kind(lines, "eval")[-1]["hr@10"] = 0.1945
    of_kind(lines, "eval")[-2]["hr@10"] = 0.195
    assert advise(summary, lines).sentences[2].startswith("Next: no rule asks for a change")


def test_strata_that_do_not_differ_are_not_ranked():
    cells = copy.deepcopy(recorded("ml100k")[0]["stratified"])
    for cell in cells:
        cell["best_hr@10"] = cell["control_hr@10"]
    assert where_sentence(cells).startswith("Reward changed HR@10 nowhere")
    best = max(cells, key=lambda cell: cell["examples"])
    best["best_hr@10"], best["best-control_interval"] = best["control_hr@10"] + 0.1, [0.02, 0.2]
    assert where_sentence(cells).startswith("Reward helped most where")
    assert where_sentence([cell | {"best-control_interval": None} for cell in cells]) is None


def test_an_unfinished_run_is_refused_and_nothing_is_said_of_nothing(tmp_path):
    with pytest.raises(RunError, match=r"has no summary\.json: give the directory of a finished run"):
        read_run(tmp_path)
    assert advise({}, []).lines() == []


def test_a_mean_over_nothing_is_no_figure():
    lines = [{"kind": "step", "step": 1, "reward_admitted": float("nan"), "kl": None, "staleness": 1.0}]
    figures = read_figures({}, lines)
    assert figures.first_reward is None and figures.kl is None and figures.staleness == 1


def test_every_setting_that_a_rule_names_exists():
    known = {
        entry.path.replace("[]", "") for group in groups_below(describe_settings()) for entry in group.entries
    }
    named = {word for rule in RULES for word in re.findall(r"[a-z_]+(?:\.[a-z_]+)+", rule.change)}
    assert len(named) > 10 and named <= known, named - known


def test_every_rule_has_a_name_of_its_own():
    assert len({rule.name for rule in RULES}) == len(RULES)


def test_the_best_validation_is_that_of_the_best_checkpoint():
    """By the metrics that chose it: of equals the second, then the earlier."""
    rows = (
        (0, 0.2, 0.1, 0.01, 0.3),
        (5, 0.3, 0.1, 0.02, 0.1),
        (10, 0.1, 0.1, 0.02, 0.2),
        (15, 0.1, 0.1, 0.02, 0.2),
    )
    names = ("step", "hr@10", "ndcg@10", "ips_hr@10", "ips_ndcg@10")
    lines = [{"kind": "eval", **dict(zip(names, row, strict=True))} for row in rows]
    logged = read_figures({}, lines)
    assert (logged.best_step, logged.best_valid_hr, logged.chosen_by) == (5, 0.3, "HR@10")
    weighted = read_figures({"chosen_by": ["ips_hr@10", "ips_ndcg@10"]}, lines)
    assert (weighted.best_step, weighted.best_valid_hr) == (10, 0.02)
    assert weighted.last_valid_hr == 0.02 and weighted.chosen_by == "weighted HR@10"
