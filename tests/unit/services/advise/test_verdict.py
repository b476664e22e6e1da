"""The sentences that a run ends with, by hand."""

import pytest

from sluice.services.advise import verdict
from sluice.services.advise.advice import closing_sentences


def summary_of(control, start, **more):
    """A run whose best has HR@10 .22, with intervals of what it is compared with."""
    counts = {"examples": 10_439.0, "users": 943.0}
    metrics = {
        name: {"hr@10": value, **counts}
        for name, value in (("start", 0.2), ("control", 0.21), ("best", 0.22))
    }
    return {
        "metrics": metrics,
        "intervals": {"hr@10": {"best-control": control, "best-start": start}},
        **more,
    }


def test_a_run_that_pays_says_so_in_numbers():
    summary = summary_of([0.004, 0.016], [0.01, 0.03])
    assert verdict.pays_sentence(summary) == (
        "The run pays: HR@10 of the best checkpoint is +0.0100 [+0.0040, +0.0160] against the best of the "
        "control and +0.0200 [+0.0100, +0.0300] against the start, on 10,439 test examples of 943 users."
    )


@pytest.mark.parametrize(
    ("control", "start", "begins"),
    [
        ([-0.001, 0.021], [0.01, 0.03], "Nothing shows that the run pays: "),
        ([0.004, 0.016], [-0.01, 0.05], "Nothing shows that the run pays: "),
        ([0, 0], [0, 0], "Nothing shows that the run pays: "),  # the best is the start
        ([-0.02, -0.001], [0.01, 0.03], "The run does not pay: "),
        ([0.004, 0.016], [-0.03, -0.01], "The run does not pay: "),
    ],
)
def test_both_intervals_have_to_lie_above_zero(control, start, begins):
    assert verdict.pays_sentence(summary_of(control, start)).startswith(begins)


def test_a_run_without_a_control_does_not_pay_by_the_start_alone():
    summary = summary_of([0.1, 0.2], [0.01, 0.03])
    del summary["intervals"]["hr@10"]["best-control"]
    sentence = verdict.pays_sentence(summary)
    assert sentence.startswith("Nothing shows that the run pays: ") and "control" not in sentence
    assert verdict.pays_sentence({}) is None


def test_examples_are_counted_as_examples():
    assert verdict.count_examples({"metrics": {"a": {"users": 943.0}}}) == "943 test examples"
    assert verdict.count_examples({}) == "the test examples"


def test_the_sentence_on_breadth_has_its_rule():
    changes = {"hr@1": [0.01, 0.0, 0.02], "hr@50": [-0.02, -0.03, -0.01], "coverage": [0.0, -0.1, 0.1]}
    sentence = verdict.breadth_sentence({"breadth": {"changes": changes, "narrower": True}})
    assert sentence == (
        "The lists got narrower from the start to the best checkpoint: HR@1 +0.0100 [+0.0000, +0.0200], "
        "HR@50 -0.0200 [-0.0300, -0.0100], coverage +0.0000 [-0.1000, +0.1000] (narrower: coverage falls "
        "beyond its interval, or HR@50 does while HR@1 rises)."
    )
    del changes["hr@50"]
    sentence = verdict.breadth_sentence({"breadth": {"changes": changes, "narrower": False}})
    assert sentence.startswith("The lists did not get narrower") and "HR@50 -" not in sentence
    assert verdict.breadth_sentence({"breadth": None}) is None


def test_costs_are_listed_in_seconds():
    costs = {"start": 182.4, "best": 340.0, "sft_all": 1261.0}
    assert verdict.cost_sentence({"cost_s": costs}) == (
        "Training took: pretraining 182 s, post-training 340 s, SFT on all logs 1,261 s."
    )
    assert verdict.cost_sentence({"cost_s": {}}) is None


def weighted(summary):
    """The same with propensities, by which the best is worse than the start."""
    for name, value in (("start", 0.03), ("control", 0.02), ("best", 0.025)):
        summary["metrics"][name] |= {"ips_hr@10": value, "ips_examples": 9_000, "effective_examples": 2_734.1}
    summary["intervals"]["ips_hr@10"] = {"best-control": [0.001, 0.009], "best-start": [-0.009, -0.001]}
    return summary | {
        "weighting": {"clip": 1000.0, "examination": "inverse_sqrt"},
        "judged_by": "ips_hr@10",
        "chosen_by": ["ips_hr@10", "ips_ndcg@10"],
    }


def test_where_there_are_propensities_the_weighted_metric_decides():
    summary = weighted(summary_of([0.004, 0.016], [0.01, 0.03]))
    assert verdict.pays_sentence(summary) == (
        "The run does not pay: weighted HR@10 of the best checkpoint is +0.0050 [+0.0010, +0.0090] against "
        "the best of the control and -0.0050 [-0.0090, -0.0010] against the start, on 10,439 test examples "
        "of 943 users."
    )


def test_the_sentence_on_exposure_says_the_weights_or_how_to_get_them():
    summary = summary_of([0.004, 0.016], [0.01, 0.03])
    assert verdict.exposure_sentence(summary) == (
        "Logged HR, NDCG and MRR are biased to what the logger liked to show: log with which chance each "
        "row's item was shown and at which place of the slate, and name these columns in "
        "data.source.columns.propensity and slate_position."
    )
    summary = weighted(summary)
    assert verdict.exposure_sentence(summary) == (
        "Weighted metrics count an example 1 / (propensity x examination), at most 1,000, with examination "
        "1 / sqrt(slate position): they know as much as 2,734 equally weighted examples, of 9,000 with a "
        "propensity. The run is judged by weighted HR@10; weighted HR@10 of validation chose the best "
        "checkpoint."
    )
    assert verdict.exposure_sentence(summary) in closing_sentences(summary, [])
    summary["weighting"]["examination"] = "none"
    assert "with examination 1: they" in verdict.exposure_sentence(summary)
    assert verdict.exposure_sentence({}) is None


def test_weights_that_know_little_do_not_decide_and_the_sentence_says_so():
    summary = weighted(summary_of([0.004, 0.016], [0.01, 0.03]))
    summary |= {"judged_by": "hr@10", "chosen_by": ["hr@10", "ndcg@10"]}
    ends = "The run is judged by HR@10; HR@10 of validation chose the best checkpoint."
    assert verdict.exposure_sentence(summary).endswith(ends)  # evaluation.select_by is logged
    for row in summary["metrics"].values():
        row["effective_examples"] = 99.9
    assert verdict.pays_sentence(summary).startswith("The run pays: HR@10 of")
    assert verdict.exposure_sentence(summary).endswith(
        "The run is judged by HR@10, since weights that know less than 100 examples do are mostly chance; "
        "HR@10 of validation chose the best checkpoint."
    )


def test_summaries_of_the_release_before_are_judged_by_the_logged_metric():
    summary = weighted(summary_of([0.004, 0.016], [0.01, 0.03]))
    del summary["judged_by"], summary["chosen_by"]
    assert verdict.pays_sentence(summary).startswith("The run pays: HR@10 of")
    assert verdict.chosen_by(summary) == ("hr@10", "ndcg@10")
