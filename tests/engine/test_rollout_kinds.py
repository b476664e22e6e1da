"""Every kind of rollout on vLLM against brute-force enumeration, and the learner's view of what it drew."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from sluice.actors.queue.leases import Lease
from sluice.actors.rollout.groups import Prompt, assemble_groups, score_groups
from sluice.catalog.decoding import Decoding
from sluice.catalog.errors import DataError
from sluice.catalog.rollout_group import encode_groups
from sluice.learner.batches.collate import collate_groups
from sluice.learner.policy.packed_weights import pack_weights
from sluice.learner.ranker.output import RankerOutput
from sluice.learner.scoring.shared_prefix import branch_log_probs
from tests.engine.conftest import drain
from tests.rollout_fakes import TinyDataset

pytestmark = pytest.mark.engine

KINDS = [
    Decoding(kind=kind, candidates=12, constrained=constrained, temperature=temperature)
    for kind, temperature in (
        ("sample", 0.7),
        ("beam", 1.0),
        ("stochastic_beam", 1.0),
        ("stochastic_beam", 1.4),
    )
    for constrained in (False, True)
]
kinds = pytest.mark.parametrize(
    "decoding", KINDS, ids=lambda d: f"{'trie' if d.constrained else 'free'}-{d.kind}-{d.temperature}"
)


def stochastic(candidates, **changes):
    return Decoding(kind="stochastic_beam", candidates=candidates, **changes)


def generate(engine, requests, decoding):
    engine.submit(requests, decoding)
    return drain(engine, steps=5000)


def copies(request, count):
    """The same prompt under many names, so with many seeds."""
    return [dataclasses.replace(request, request_id=f"{request.request_id}-{at}") for at in range(count)]


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, atol=1e-5, rtol=0)


def likely(counts, expected):
    """A chi-square test with rare outcomes thrown together."""
    counts, expected = np.asarray(counts), np.asarray(expected, dtype=np.float64)
    common = expected * counts.sum() >= 5
    assert common.sum() >= 4
    observed = np.append(counts[common], counts[~common].sum())
    wanted = np.append(expected[common], expected[~common].sum())
    keep = wanted > 0
    assert (observed[~keep] == 0).all()
    return chisquare(observed[keep], counts.sum() * wanted[keep] / wanted.sum()).pvalue > 1e-3


@kinds
def test_log_probs_are_those_of_enumeration(engine, world, decoding):
    requests = [world.request(f"kinds-{history}", history, [3, 17, 20]) for history in (0, 1, 10, 21, 33)]
    done = generate(engine, requests, decoding)
    for request in requests:
        generation = done[request.request_id]
        assert generation.tokens.shape == generation.log_probs.shape == (12, 3)
        close(generation.log_probs, world.log_probs(request, generation.tokens, decoding))
        if decoding.kind != "sample":
            assert len(np.unique(generation.tokens, axis=0)) == 12
        assert (generation.inclusion_log_probs is not None) == (decoding.kind == "stochastic_beam")
        if decoding.constrained:
            items = world.vocabulary.trie.lookup(generation.tokens)
            assert (items >= 0).all() and not set(items.tolist()) & {3, 17, 20}


@kinds
def test_engine_and_learner_mean_the_same_distribution(engine, world, decoding):
    prompts, requests = [], []
    for lease, length in enumerate((2, 9, 18)):
        rows = np.random.default_rng(lease).integers(0, 40, length).astype(np.int32)
        excluded = np.unique(rows) if decoding.constrained else np.empty(0, dtype=np.int32)
        prompts.append(
            Prompt(
                lease=Lease(lease_id=lease, attempt=1, user=0, position=length),
                history=rows,
                whole_history=rows,
                excluded=excluded,
                target_item=int(np.setdiff1d(np.arange(40), rows)[0]),
            )
        )
        requests.append(
            dataclasses.replace(
                world.request(f"learner-{lease}", 1),
                prompt=world.layout.prompt(world.items, rows),
                excluded=excluded,
            )
        )
    done = generate(engine, requests, decoding)
    generations = [done[request.request_id] for request in requests]
    vocabulary = world.catalogue(engine.catalogue_version)
    drawn = assemble_groups(prompts, generations, [0.0] * 3, vocabulary=vocabulary, distractors=2, seed=0)
    groups = score_groups(drawn, RankerOutput.of(np.zeros((3, 1 + 12 + 2))), ranker_version="r", score_s=0.0)
    batch = collate_groups(
        [encode_groups(group) for group in groups],
        TinyDataset(),  # another catalogue's, but neither popularity nor logged rewards matter here
        vocabulary,
        decoding,
    )
    with torch.no_grad():
        scores = branch_log_probs(
            world.policies[0].model,
            batch.history_BT,
            batch.history_lengths_B,
            torch.cat([batch.target_BL[:, None], batch.candidates_BKL], dim=1),
            batch.allowed_BSLV,
            batch.decoding,
        )
    close(scores.log_probs_BSL[:, 1:].numpy(), batch.behaviour_log_probs_BKL.numpy())
    if decoding.kind == "stochastic_beam":
        expected = [generation.inclusion_log_probs for generation in generations]
        assert batch.inclusion_log_probs_BK.tolist() == np.stack(expected).tolist()
        assert (batch.inclusion_log_probs_BK <= 0).all()
    else:
        assert batch.inclusion_log_probs_BK is None


def included(probabilities, count):
    """Probability of each item to be among the first `count` drawn without replacement, by listing every
    order.
    """
    total = np.zeros(len(probabilities))
    for order in itertools.permutations(range(len(probabilities)), count):
        chance, left = 1.0, 1.0
        for row in order:
            chance *= probabilities[row] / left
            left -= probabilities[row]
        total[list(order)] += chance
    return total


def check_estimator(done, values_of, expected):
    """Over many groups, sum_i f(o_i) pi(o_i) / q(o_i) has the mean E f; `values_of(tokens)` is `[K, F]`."""
    estimates = []
    for generation in done.values():
        weights = np.exp(generation.log_probs.sum(axis=1, dtype=np.float64) - generation.inclusion_log_probs)
        estimates.append(weights @ values_of(generation.tokens))
    estimates = np.stack(estimates)
    error = estimates.std(axis=0, ddof=1) / np.sqrt(len(estimates))
    assert (np.abs(estimates.mean(axis=0) - expected) < 4 * error).all()
    return error


def test_constrained_stochastic_beams_sample_items_without_replacement(engine, world):
    left, decoding, count = (
        [1, 4, 6, 13, 18, 22, 29, 30, 36, 39],
        stochastic(3, constrained=True, temperature=1.5),
        600,
    )
    request = world.request("items", 7, np.setdiff1d(np.arange(40), left))
    probabilities = np.exp(
        world.log_probs(request, world.items[left], decoding).sum(axis=1), dtype=np.float64
    )
    assert probabilities.sum() == pytest.approx(1, abs=1e-5)
    done = generate(engine, copies(request, count), decoding)
    items = np.stack([world.vocabulary.trie.lookup(generation.tokens) for generation in done.values()])
    assert np.isin(items, left).all()
    places = np.searchsorted(left, items)
    assert likely(np.bincount(places[:, 0], minlength=10), probabilities)
    for place, chance in enumerate(included(probabilities, 3)):
        times = (places == place).any(axis=1).sum()
        assert chisquare([times, count - times], [count * chance, count * (1 - chance)]).pvalue > 1e-4
    values = np.stack([np.ones(40), np.random.default_rng(0).normal(size=40)], axis=1)
    error = check_estimator(
        done, lambda tokens: values[world.vocabulary.trie.lookup(tokens)], probabilities @ values[left]
    )
    assert (error < 0.05).all()


def test_free_stochastic_beams_sample_all_sequences_without_replacement(engine, world):
    decoding, count = stochastic(4, temperature=0.8), 400
    request = world.request("everything", 5)
    probabilities = world.free_probabilities(request, decoding)
    assert probabilities.sum() == pytest.approx(1, abs=1e-5)
    done = generate(engine, copies(request, count), decoding)
    tokens = np.stack([generation.tokens for generation in done.values()])
    assert all(len(np.unique(one, axis=0)) == 4 for one in tokens)
    for level, others in enumerate(((1, 2), (0, 2), (0, 1))):
        counts = np.bincount(tokens[:, 0, level], minlength=18)
        assert likely(counts, probabilities.sum(axis=others))
    values = np.random.default_rng(1).normal(size=(18, 18, 18, 2))
    values[..., 0] = 1
    expected = np.einsum("abc,abcf->f", probabilities, values)
    error = check_estimator(done, lambda tokens: values[tuple(tokens.T)], expected)
    assert (error < 0.1).all()


def test_stochastic_beams_depend_on_seed_and_request_alone(engine, world):
    decoding = stochastic(8)
    request = world.request("again", 12)
    company = [world.request(f"company-{history}", history) for history in (0, 3, 11, 21)]
    alone = generate(engine, [request], decoding)["again"]
    together = generate(engine, [*company, request], decoding)["again"]
    other = generate(engine, [dataclasses.replace(request, request_id="other")], decoding)["other"]
    assert (alone.tokens == together.tokens).all() and (alone.tokens != other.tokens).any()
    np.testing.assert_allclose(alone.inclusion_log_probs, together.inclusion_log_probs, atol=1e-4)


def test_kinds_share_a_batch(engine, world):
    requests = [world.request(f"mixed-{at}", 9, [1, 2]) for at in range(len(KINDS))]
    pairs = list(zip(requests, KINDS, strict=True))
    alone = [generate(engine, [request], decoding)[request.request_id] for request, decoding in pairs]
    for request, decoding in pairs:
        engine.submit([request], decoding)
    done = drain(engine)
    for (request, decoding), before in zip(pairs, alone, strict=True):
        generation = done[request.request_id]
        assert (generation.tokens == before.tokens).all()
        close(generation.log_probs, world.log_probs(request, generation.tokens, decoding))


def test_when_k_items_are_left_each_is_certain(engine, world):
    decoding = stochastic(6, constrained=True)
    exact, more = world.request("exact", 4, range(34)), world.request("more", 4, range(33))
    done = generate(engine, [exact, more], decoding)
    assert sorted(world.vocabulary.trie.lookup(done["exact"].tokens).tolist()) == list(range(34, 40))
    assert done["exact"].inclusion_log_probs.tolist() == [0] * 6
    assert (done["more"].inclusion_log_probs < 0).any()
    with pytest.raises(DataError, match="6 distinct candidates wanted and 5 to choose from"):
        engine.submit([world.request("few", 4, range(35))], decoding)
    assert engine.in_flight == 0


def test_a_swap_between_levels_is_in_the_log_probs(engine, world):
    decoding = stochastic(9, temperature=1.2)
    request = world.request("swap", 15)
    engine.submit([request], decoding)
    engine.step()
    engine.load_weights(pack_weights(world.policies[1].model.named_parameters(), 1))
    generation = drain(engine)["swap"]
    assert (generation.version_min, generation.version_max) == (0, 1)
    old, new = (world.log_probs(request, generation.tokens, decoding, policy) for policy in (0, 1))
    close(generation.log_probs, np.concatenate([old[:, :1], new[:, 1:]], axis=1))
