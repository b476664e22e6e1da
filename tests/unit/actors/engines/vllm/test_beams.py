"""Beams against enumeration: a small table of conditional probabilities instead of a policy."""

import numpy as np
import pytest
from scipy.stats import chisquare

from sluice.actors.engines.vllm.beams import Beams, StochasticBeams
from sluice.catalog.errors import RunError

# P(first token), P(second | first): five whole sequences, one first token impossible, one second token too.
FIRST = np.asarray([0.5, 0.3, 0.0, 0.2])
SECOND = np.asarray(
    [
        [0.7, 0.0, 0.3, 0.0],
        [0.0, 1.0, 0.0, 0.0],
        [0.0, 0.0, 0.0, 0.0],
        [0.9, 0.0, 0.0, 0.1],
    ]
)
SEQUENCES = [(0, 0), (0, 2), (1, 1), (3, 0), (3, 3)]
PROBABILITIES = np.asarray([0.35, 0.15, 0.3, 0.18, 0.02])
VALUES = np.asarray([1.0, -2.0, 0.5, 3.0, 40.0])  # f, large where the policy seldom looks


def log(probabilities):
    with np.errstate(divide="ignore"):
        return np.log(probabilities).astype(np.float32)


def search(beams):
    beams.grow(log(FIRST)[None])
    beams.grow(log(SECOND)[beams.tokens_Wl[:, 0]])
    return beams.candidates()


def sample(candidates, seed):
    return search(StochasticBeams(candidates, np.random.default_rng(seed)))


def rows(candidates):
    return [SEQUENCES.index(tuple(tokens)) for tokens in candidates.tokens_KL.tolist()]


def without_replacement(order):
    """Probability of drawing these sequences in this order."""
    left, chance = 1.0, 1.0
    for row in order:
        chance *= PROBABILITIES[row] / left
        left -= PROBABILITIES[row]
    return chance


def matches(counts, expected):
    counts, expected = np.asarray(counts, dtype=float), np.asarray(expected)
    assert expected.min() * counts.sum() >= 5
    return chisquare(counts, counts.sum() * expected / expected.sum()).pvalue > 1e-3


def test_exact_beams_are_the_likeliest_in_order():
    found = search(Beams(4))
    assert rows(found) == [0, 2, 3, 1]
    np.testing.assert_allclose(
        np.exp(found.log_probs_KL), [[0.5, 0.7], [0.3, 1], [0.2, 0.9], [0.5, 0.3]], rtol=1e-6
    )
    assert found.inclusion_log_probs_K is None
    assert (found.tokens_KL.dtype, found.log_probs_KL.dtype) == (np.int64, np.float32)


def test_a_narrow_exact_beam_forgets_what_fell_out():
    # Of the first tokens only 0 (0.5) and 1 (0.3) stay, so (3, 0) with 0.18 is never seen.
    assert rows(search(Beams(2))) == [0, 2]
    assert search(Beams(2)).tokens_KL.tolist() == [[0, 0], [1, 1]]


def test_grow_says_which_beam_was_continued():
    beams = Beams(3)
    assert beams.grow(log(FIRST)[None]).tolist() == [0, 0, 0]
    assert beams.tokens_Wl.tolist() == [[0], [1], [3]]
    assert beams.grow(log(SECOND)[[0, 1, 3]]).tolist() == [0, 1, 2]


def test_impossible_tokens_are_never_beams():
    assert sorted(rows(search(Beams(5)))) == [0, 1, 2, 3, 4]
    with pytest.raises(RunError, match="found 5 sequences of a probability above zero and 6 are wanted"):
        search(Beams(6))
    with pytest.raises(RunError, match="found 5 sequences"):
        sample(6, seed=0)


def test_a_stochastic_sample_is_distinct_and_has_its_log_probs():
    for seed in range(200):
        found = sample(3, seed)
        drawn = rows(found)
        assert len(set(drawn)) == 3
        np.testing.assert_allclose(found.log_probs_KL.sum(axis=1), np.log(PROBABILITIES[drawn]), atol=1e-5)
        assert found.inclusion_log_probs_K.shape == (3,) and found.inclusion_log_probs_K.dtype == np.float32
        assert (found.inclusion_log_probs_K < 0).all()


def test_one_sequence_more_than_the_sample_is_kept_for_its_threshold():
    beams = StochasticBeams(2, np.random.default_rng(0))
    assert beams.width == 3
    search(beams)
    assert beams.tokens_Wl.shape == (3, 2)


def test_the_sample_depends_on_the_generator_alone():
    assert rows(sample(3, 5)) == rows(sample(3, 5))
    assert len({tuple(rows(sample(3, seed))) for seed in range(20)}) > 5


def test_ordered_samples_have_the_probabilities_of_drawing_without_replacement():
    orders = [(i, j) for i in range(5) for j in range(5) if i != j]
    drawn = [tuple(rows(sample(2, seed))) for seed in range(6000)]
    assert matches([drawn.count(order) for order in orders], [without_replacement(order) for order in orders])
    assert matches(np.bincount([first for first, _ in drawn], minlength=5), PROBABILITIES)


def test_a_sequence_is_drawn_as_often_as_enumeration_says():
    orders = [(i, j) for i in range(5) for j in range(5) if i != j]
    included = [sum(without_replacement(order) for order in orders if row in order) for row in range(5)]
    assert sum(included) == pytest.approx(2)
    drawn = np.asarray([rows(sample(2, seed)) for seed in range(6000, 12000)])
    for row in range(5):
        count = (drawn == row).any(axis=1).sum()
        assert matches([count, 6000 - count], [included[row], 1 - included[row]])


@pytest.mark.parametrize("candidates", [1, 2, 3, 4])
def test_the_weighted_sum_is_unbiased(candidates):
    def estimate(seed):
        found = sample(candidates, 100 * seed + candidates)
        weights = np.exp(found.log_probs_KL.sum(axis=1) - found.inclusion_log_probs_K)
        return [(weights * VALUES[rows(found)]).sum(), weights.sum()]

    estimates = np.asarray([estimate(seed) for seed in range(8000)])
    error = estimates.std(axis=0, ddof=1) / np.sqrt(len(estimates))
    expected = [(PROBABILITIES * VALUES).sum(), 1.0]
    assert (np.abs(estimates.mean(axis=0) - expected) < 4 * error).all()
    assert (error < [0.15, 0.02]).all()  # narrow enough to see a wrong threshold


def test_when_the_sample_is_everything_each_sequence_is_certain():
    found = sample(5, seed=3)
    assert sorted(rows(found)) == [0, 1, 2, 3, 4]
    assert found.inclusion_log_probs_K.tolist() == [0] * 5
