"""What a result says in sentences: each verdict, its sign and when it fell."""

import pytest

from sluice.services.ab.page import sentences_of, write_page
from tests.unit.services.ab.test_experiment import told_of

OFF_POLICY = {
    "of_test": True,
    "impressions": 5000,
    "users": 300,
    "policies": {
        name: {
            "truth": 0.1,
            "effective_sample": size,
            "largest_weight": 9.0,
            "estimates": {"IPS": [0.11, 0.09, 0.13]},
        }
        for name, size in (("p0", 812.0), ("p1", 640.0))
    },
    "differences": {"p1": {"truth": 0.02, "estimates": {"IPS": [0.015, -0.01, 0.04]}}},
}


def result_of(*rates):
    told = told_of(*rates)
    return {**told, "world": "w", "directories": {"p0": "a", "p1": "b"}, "off_policy": OFF_POLICY}


@pytest.mark.parametrize(
    ("rate", "says"),
    [(0.13, "p1 is better than p0: +"), (0.07, "p1 is worse than p0: -"), (0.10, "not told apart")],
)
def test_the_verdict_is_said_with_the_truth(rate, says):
    result = result_of(0.10, rate)
    said = next(sentence for sentence in sentences_of(result) if sentence.startswith("A/B"))
    after = result["tests"][0]["clicks"]["decided_after"]
    assert says in said and said.endswith(f"The truth is {rate - 0.10:+.4f}.")
    assert ("told after" in said) == (after is not None)
    if after:
        assert f"told after {after:,} of 4,000 users" in said


def test_a_test_that_finds_something_in_nothing_says_so():
    result = result_of(0.10, 0.13)
    quiet = next(sentences_of(result))
    assert "p0 against itself" in quiet and "nothing is found, as it must be" in quiet
    loud = next(sentences_of({**result, "aa": {**result["aa"], "verdict": "better"}}))
    assert "something is found where there is nothing" in loud


def test_the_log_and_the_bandit_are_said():
    said = list(sentences_of(result_of(0.10, 0.13)))
    assert "p1 less p0: IPS +0.0150 [-0.0100, +0.0400]; the truth of these is +0.0200" in said[-2]
    assert "Effective sample: 812 and 640 impressions" in said[-2]
    assert said[-1].startswith("Thompson sampling: p1, which is truly best, served ")


def test_what_is_not_known_is_said(tmp_path):
    result = result_of(0.0, 0.10)
    unknown = {"truth": 0.02, "estimates": {"IPS": None}}
    result["off_policy"] = {**OFF_POLICY, "of_test": False, "differences": {"p1": unknown}}
    said = list(sentences_of(result))
    assert said[1] == "Size: not known: no clicks of p0, to which a change is relative."
    assert "in relation not known" in said[2]
    assert "the policies may have learned from the days of the log" in said[-3]
    assert "p1 less p0: IPS not known; the truth of these is +0.0200" in said[-2]
    assert "<td>not known</td>" in write_page(result, tmp_path).read_text()


def test_the_page_has_a_row_for_each_figure(tmp_path):
    page = write_page(result_of(0.10, 0.13), tmp_path).read_text()
    for text in (
        "p1 - p0, clicks",
        "p1 - p0, dwell",
        "A/A: p0 less itself",
        "p1 less p0",
        "+0.0150 [-0.0100",
    ):
        assert text in page
    assert '<span class="better">better</span>, told after' in page
