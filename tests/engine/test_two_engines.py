"""The tree engine and the vLLM engine held to each other: same policy, same requests, same answers."""

import dataclasses

import numpy as np
import pytest
from scipy.stats import chi2_contingency, ks_2samp

from sluice.actors.engines.tree import TreeEngine
from sluice.actors.settings import TreeEngineSettings
from sluice.catalog.decoding import Decoding
from sluice.learner.policy.packed_weights import pack_weights
from tests.engine.conftest import MAX_PROMPT, drain

pytestmark = pytest.mark.engine

HISTORIES = (0, 1, 10, 11, 21, 33)
EXCLUDED = (2, 9, 33)


@pytest.fixture
def tree(world):
    return TreeEngine(
        policy_dir=world.directory,
        vocabulary=world.vocabulary,
        decoding=Decoding(candidates=16),
        engine=TreeEngineSettings(prompts_per_step=4),
        seed=7,
        max_prompt_tokens=MAX_PROMPT,
    )


def requests_of(world, name):
    return [world.request(f"{name}-{history}", history, EXCLUDED) for history in HISTORIES]


def generate(engine, requests, decoding):
    engine.submit(requests, decoding)
    return drain(engine)


def swap(world, *engines):
    for engine in engines:
        engine.load_weights(pack_weights(world.policies[1].model.named_parameters(), 1))


@pytest.mark.parametrize("policy", [0, 1])
@pytest.mark.parametrize("constrained", [True, False])
def test_beams_are_the_same(engine, tree, world, constrained, policy):
    if policy:
        swap(world, engine, tree)
    decoding = Decoding(kind="beam", candidates=20, constrained=constrained)
    requests = requests_of(world, "beams")
    by_vllm, by_tree = (generate(one, requests, decoding) for one in (engine, tree))
    for request in requests:
        one, other = by_vllm[request.request_id], by_tree[request.request_id]
        assert (one.tokens == other.tokens).all()
        np.testing.assert_allclose(one.log_probs, other.log_probs, atol=1e-4, rtol=0)
        assert (
            (one.version_min, one.version_max) == (other.version_min, other.version_max) == (policy, policy)
        )


@pytest.mark.parametrize("constrained", [True, False])
@pytest.mark.parametrize("top_p", [1.0, 0.6])
def test_a_sampled_token_has_the_same_log_prob(engine, tree, world, constrained, top_p):
    decoding = Decoding(candidates=64, temperature=1.3, top_p=top_p, constrained=constrained)
    requests = requests_of(world, "samples")
    by_vllm, by_tree = (generate(one, requests, decoding) for one in (engine, tree))
    common = 0
    for request in requests:
        known = {}
        for done in (by_vllm, by_tree):
            one = done[request.request_id]
            for tokens, log_probs in zip(one.tokens.tolist(), one.log_probs, strict=True):
                for level in range(3):  # the distribution depends on the tokens before it
                    prefix = tuple(tokens[: level + 1])
                    common += prefix in known
                    assert known.setdefault(prefix, log_probs[level]) == pytest.approx(
                        log_probs[level], abs=1e-4
                    )
    assert common > 500  # of 2 x 6 x 64 x 3 tokens


@pytest.mark.parametrize("constrained", [True, False])
def test_frequencies_are_those_of_one_distribution(engine, tree, world, constrained):
    decoding = Decoding(candidates=500, temperature=1.2, constrained=constrained)
    first = world.request("frequency", 7, EXCLUDED)
    requests = [dataclasses.replace(first, request_id=f"frequency-{at}") for at in range(8)]
    counts = []
    for one in (engine, tree):
        done = generate(one, requests, decoding)
        tokens = np.concatenate([done[request.request_id].tokens for request in requests])
        size = world.layout.vocab_size
        counts.append(np.bincount(tokens @ np.asarray([size * size, size, 1]), minlength=size**3))
    assert homogeneous(counts, common=10)


def homogeneous(counts, common):
    """Two rows of counts are of one distribution, by a chi-square test with rare outcomes thrown together."""
    table = np.stack(counts)
    often = table.sum(axis=0) >= 20
    assert often.sum() >= common
    pooled = np.concatenate([table[:, often], table[:, ~often].sum(axis=1, keepdims=True)], axis=1)
    return chi2_contingency(pooled[:, pooled.sum(axis=0) > 0]).pvalue > 1e-3


def test_stochastic_beams_are_of_one_distribution(engine, tree, world):
    decoding = Decoding(kind="stochastic_beam", candidates=3, temperature=1.5, constrained=True)
    left = [1, 4, 6, 13, 18, 22, 29, 30, 36, 39]
    first = world.request("distinct", 7, np.setdiff1d(np.arange(40), left))
    requests = [dataclasses.replace(first, request_id=f"distinct-{at}") for at in range(600)]
    known, pairs, thresholds = {}, [], []
    for one in (engine, tree):
        done = [generation for _, generation in sorted(generate(one, requests, decoding).items())]
        items = np.stack([world.vocabulary.trie.lookup(generation.tokens) for generation in done])
        assert np.isin(items, left).all() and (np.diff(np.sort(items, axis=1)) > 0).all()
        for row, log_probs in zip(
            items.flat, np.concatenate([generation.log_probs for generation in done]), strict=True
        ):
            np.testing.assert_allclose(log_probs, known.setdefault(row, log_probs), atol=1e-4, rtol=0)
        places = np.searchsorted(left, items)
        pairs.append(np.bincount(places[:, 0] * 10 + places[:, 1], minlength=100))  # in the order of drawing
        thresholds.append([threshold(generation) for generation in done])
    assert len(known) >= 8
    assert homogeneous(pairs, common=8)
    assert ks_2samp(*thresholds).pvalue > 1e-3


def threshold(generation):
    """kappa of q = 1 - exp(-exp(l - kappa)), by the candidate of the least q, the furthest from rounding to
    1.
    """
    place = generation.inclusion_log_probs.argmin()
    q = np.exp(generation.inclusion_log_probs[place], dtype=np.float64)
    return generation.log_probs[place].sum(dtype=np.float64) - np.log(-np.log1p(-q))
