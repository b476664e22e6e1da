"""Strata and the gate's test, on prompts whose truth is planted."""

import numpy as np
import pytest

from sluice.services.study.sections import gate_sentence
from sluice.services.study.start_rollouts import order_agreement
from sluice.services.study.strata import area_under_curve, find_strata, run_gate_tests

USERS, EACH = 60, 5
N = USERS * EACH


def planted(agreement, trust, discriminable=None, difficult=None):
    """Prompts of 60 users, five each; even users are of group A."""
    generator = np.random.default_rng(1)
    everyone = np.full(N, True)
    columns = {
        "user": np.repeat(np.arange(USERS), EACH),
        "deciding_policy_rank": generator.integers(1, 18, N),
        "deciding_ranker_rank": generator.integers(1, 18, N),
        "deciding_difficult": everyone if difficult is None else difficult,
        "deciding_discriminable": everyone if discriminable is None else discriminable,
        "measuring_difficult": everyone,
        "measuring_discriminable": everyone,
        "measuring_agreement": agreement.astype(np.float32),
        "trust": trust.astype(np.float32),
    }
    return columns, np.where(columns["user"] % 2 == 0, "A", "B")


def by_name(tests):
    return {test.gate: test for test in tests}


def test_a_ranker_that_is_right_for_a_half_is_known_by_the_gate_that_sees_it():
    of_a = np.repeat(np.arange(USERS) % 2 == 0, EACH)
    columns, groups = planted(np.where(of_a, 0.6, -0.2), np.where(of_a, 0.9, 0.5))
    tests = run_gate_tests(columns, 0.65, groups)
    gates = by_name(tests)
    assert gates["by user"].admitted == 0.5 and gates["by user"].by_group == {"A": 1.0, "B": 0.0}
    assert gates["by user"].precision[0] == 1 and gates["by user"].auc[0] == 1
    assert gates["by user"].agreement == pytest.approx(0.6)
    assert gates["oracle"].auc == gates["by user"].auc
    # the published gate admits everybody here, so it knows no more than a gate by chance
    assert gates["published"].precision[0] == gates["by chance"].precision[0] == 0.5
    said = gate_sentence("w", tests)
    assert "orders 50% of the prompts" in said and said.endswith("No better than chance: published.")


def test_a_useless_ranker_is_told_by_no_gate():
    generator = np.random.default_rng(0)
    agreement, trust = generator.normal(size=N), generator.uniform(0.4, 0.9, N)
    columns, groups = planted(
        agreement, trust, discriminable=generator.random(N) < 0.3, difficult=generator.random(N) < 0.7
    )
    for test in run_gate_tests(columns, 0.65, groups):
        low, high = test.auc[1:]
        assert low <= 0.5 <= high
    assert gate_sentence("w", run_gate_tests(columns, 0.65, groups)).endswith(
        "No better than chance: published, by user."
    )


def test_a_perfect_ranker_is_right_wherever_a_gate_looks():
    columns, groups = planted(np.full(N, 0.8), np.full(N, 0.9))
    for test in run_gate_tests(columns, 0.65, groups):
        assert test.precision[0] == 1 and np.isnan(test.auc[0])
    said = gate_sentence("w", run_gate_tests(columns, 0.65, groups))
    assert "orders 100% of the prompts" in said and "AUC" not in said
    assert said.endswith("So there is little for a gate to tell apart.")


def test_without_trust_the_gate_by_user_asks_the_published_one():
    columns, _ = planted(np.linspace(-1, 1, N), np.full(N, np.nan), discriminable=np.arange(N) > N / 2)
    assert "by user" not in by_name(run_gate_tests(columns, 0.65, None))
    columns["trust"][0] = 0.9
    gate = by_name(run_gate_tests(columns, 0.65, None))["by user"]
    assert gate.admitted == (np.arange(N) > N / 2).mean() + 1 / N


def test_prompts_without_a_rollout_or_a_truth_are_left_out():
    columns, groups = planted(np.linspace(-1, 1, N), np.full(N, 0.9))
    columns["measuring_agreement"][:100] = np.nan
    columns["deciding_policy_rank"][100:150] = 0
    assert by_name(run_gate_tests(columns, None, groups))["by chance"].precision[0] == 1  # the upper half


def test_strata_hold_what_changed_in_them_and_how_often_the_other_rollout_admits():
    columns, _ = planted(np.zeros(N), np.full(N, np.nan))
    columns["deciding_policy_rank"] = np.resize([1, 4, 5, 17, 0], N)
    columns["deciding_ranker_rank"] = np.resize([4, 4, 4, 16, 1], N)
    columns["measuring_discriminable"] = np.resize([True, False, True, False, True], N)
    change = np.resize([1.0, 0.0, -1.0, 0.25, 9.0], N)
    before, now = np.resize([4, 8, 0, 1, 1], N), np.resize([1, 8, 20, 0, 1], N)
    strata = find_strata(
        columns, head=4, candidates=16, changes={"hr@10": change}, ranks=(before, now), width=20
    )
    found = {(stratum.policy_band, stratum.ranker_band): stratum for stratum in strata}
    assert set(found) == {("1-4", "1-4"), ("5-16", "1-4"), (">16", "5-16")}
    first = found["1-4", "1-4"]
    assert (first.examples, first.users, first.admitted) == (2 * USERS, USERS, 0.5)
    assert first.changes["hr@10"][0] == 0.5 and first.changes["rank"][0] == 1  # the mean of log2(4) and 0
    assert found["5-16", "1-4"].changes["rank"][0] == pytest.approx(np.log2(21 / 20))
    assert found[">16", "5-16"].changes["rank"][0] == pytest.approx(np.log2(1 / 21))


def test_agreement_counts_pairs_of_candidates_that_count():
    scores, chances = np.array([[3.0, 2, 1, np.nan]]), np.array([[0.3, 0.1, 0.2, 0.9]])
    counted = np.array([[True, True, True, False]])
    assert order_agreement(scores, chances, counted)[0] == pytest.approx(1 / 3)
    assert np.isnan(order_agreement(scores, chances, np.array([[True, False, False, False]]))[0])


def test_area_under_the_curve_is_that_of_its_definition():
    generator = np.random.default_rng(3)
    signal, right = generator.integers(0, 5, 80).astype(float), generator.random(80) < 0.4
    pairs = [(a > b) + 0.5 * (a == b) for a in signal[right] for b in signal[~right]]
    assert area_under_curve(signal, right) == pytest.approx(np.mean(pairs))
