"""Tree decoding against an exhaustive walk over all token sequences, one plain row each."""

import itertools

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from sluice.actors.engines.vllm.beams import StochasticBeams
from sluice.learner.decoding.draw import random_streams
from sluice.learner.decoding.tree import TreeDecoder
from tests.unit.learner.learner_cases import LEVEL_SIZES
from tests.unit.learner.tree_cases import (
    HISTORIES,
    ITEMS,
    beam,
    models,
    next_log_probs,
    padded,
    sample,
    stochastic_beam,
    token_log_probs,
    vocabulary,
)

MODELS = models()
VOCAB = 3 + sum(LEVEL_SIZES)
EXCLUDED = [np.array([0, 1, 2]), np.array([], dtype=np.int64), np.array([4, 4, 7])]


@pytest.fixture(params=["qwen3", "llama", "phi"])
def model(request):
    return MODELS[request.param]()


@pytest.fixture
def decoder(model):
    return TreeDecoder(model, vocabulary())


def left(row, excluded=None):
    """Rows of the items that a prompt may produce."""
    return [item for item in range(len(ITEMS)) if excluded is None or item not in excluded[row]]


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, atol=1e-4, rtol=0)


def numbers(prompts=3, seed=0):
    return random_streams([bytes([row, seed]) * 8 for row in range(prompts)])


def test_constrained_beams_are_the_best_items_in_order(model, decoder):
    tokens = vocabulary().item_tokens
    beams = decoder.beams(decoder.prefill(*padded(filler=9)), beam(candidates=len(ITEMS)))
    for row, history in enumerate(HISTORIES):
        scores = token_log_probs(model, history, tokens)
        order = np.argsort(-scores.sum(axis=1))
        assert (beams.tokens_BWL[row] == tokens[order]).all()
        close(beams.log_probs_BWL[row], scores[order])
        close(beams.log_probs_BW[row], scores[order].sum(axis=1))


def test_free_beams_equal_an_exhaustive_search(model, decoder):
    beams = decoder.beams(decoder.prefill(*padded()), beam(candidates=VOCAB**2, constrained=False))
    everything = list(itertools.product(range(VOCAB), repeat=3))
    scores = token_log_probs(model, HISTORIES[0], everything)
    best = np.argsort(-scores.sum(axis=1))[: VOCAB**2]
    assert beams.tokens_BWL[0, :20].tolist() == [list(everything[index]) for index in best[:20]]
    close(beams.log_probs_BW[0], scores[best].sum(axis=1))


def textbook(model, history, width, allowed):
    """Beam search over log-probs renormalised over what is allowed, one prefix at a time."""
    beams = [((), 0.0)]
    for _ in range(3):
        grown = []
        for prefix, total in beams:
            log_p = next_log_probs(model, history, [prefix], allowed)[0]
            grown += [
                ((*prefix, token), total + log_p[token])
                for token in np.flatnonzero(np.isfinite(log_p)).tolist()
            ]
        beams = sorted(grown, key=lambda beam: -beam[1])[:width]
    return np.asarray([prefix for prefix, _ in beams]), np.asarray([total for _, total in beams])


@pytest.mark.parametrize("constrained", [True, False])
@pytest.mark.parametrize("width", [2, 3])
def test_narrow_renormalised_beams_follow_the_textbook(model, decoder, constrained, width):
    excluded = EXCLUDED if constrained else None
    prefix = decoder.prefill(*padded())
    beams = decoder.beams(
        prefix, beam(candidates=width, constrained=constrained), excluded=excluded, renormalise=True
    )
    for row, history in enumerate(HISTORIES):
        allowed = vocabulary().item_tokens[left(row, excluded)].tolist() if constrained else None
        tokens, totals = textbook(model, history, width, allowed)
        assert (beams.tokens_BWL[row] == tokens).all()
        close(beams.log_probs_BW[row], totals)


@pytest.mark.parametrize("renormalise", [True, False])
def test_excluded_items_are_left_out_of_their_own_prompt_only(model, decoder, renormalise):
    tokens = vocabulary().item_tokens
    beams = decoder.beams(
        decoder.prefill(*padded()), beam(candidates=8), excluded=EXCLUDED, renormalise=renormalise
    )
    for row, history in enumerate(HISTORIES):
        items = left(row, EXCLUDED)
        finite = np.isfinite(beams.log_probs_BW[row])
        assert finite.tolist() == [True] * len(items) + [False] * (8 - len(items))
        assert set(vocabulary().trie.lookup(beams.tokens_BWL[row][finite]).tolist()) == set(items)
        assert not np.isnan(beams.log_probs_BWL).any()
        allowed = tokens[items].tolist() if renormalise else None
        close(
            beams.log_probs_BWL[row][finite],
            token_log_probs(model, history, beams.tokens_BWL[row][finite], allowed),
        )


def test_a_prefix_can_be_decoded_again(decoder):
    prefix = decoder.prefill(*padded())
    first = decoder.beams(prefix, beam(candidates=4))
    decoder.beams(prefix, beam(candidates=6, constrained=False))
    decoder.sample(prefix, sample(candidates=5), numbers())
    again = decoder.beams(prefix, beam(candidates=4))
    assert (first.tokens_BWL == again.tokens_BWL).all()
    assert first.log_probs_BW == pytest.approx(again.log_probs_BW, abs=1e-6)


@pytest.mark.parametrize("constrained", [True, False])
def test_samples_carry_the_log_probs_they_were_drawn_with(model, decoder, constrained):
    excluded = EXCLUDED if constrained else None
    drawn = decoder.sample(
        decoder.prefill(*padded()),
        sample(candidates=30, temperature=1.7, constrained=constrained),
        numbers(),
        excluded=excluded,
    )
    assert drawn.tokens_BWL.shape == (3, 30, 3) and drawn.tokens_BWL.dtype == np.int64
    assert drawn.log_probs_BWL.dtype == np.float32
    for row, history in enumerate(HISTORIES):
        allowed = vocabulary().item_tokens[left(row, excluded)].tolist() if constrained else None
        close(drawn.log_probs_BWL[row], token_log_probs(model, history, drawn.tokens_BWL[row], allowed, 1.7))
        if constrained:
            assert set(vocabulary().trie.lookup(drawn.tokens_BWL[row]).tolist()) <= set(left(row, excluded))


def test_top_p_comes_after_the_temperature_and_renormalises(model, decoder):
    prefix = decoder.prefill(*padded())
    drawn = decoder.sample(
        prefix, sample(candidates=200, temperature=2.0, top_p=0.7, constrained=False), numbers()
    )
    log_p = next_log_probs(model, HISTORIES[0], [()], temperature=2.0)[0]
    order = np.argsort(-log_p)
    before = np.cumsum(np.exp(log_p[order])) - np.exp(log_p[order])
    nucleus = order[before < 0.7]
    assert set(drawn.tokens_BWL[0, :, 0].tolist()) <= set(nucleus.tolist())
    close(
        drawn.log_probs_BWL[0, :, 0],
        (log_p - np.log(np.exp(log_p[nucleus]).sum()))[drawn.tokens_BWL[0, :, 0]],
    )
    held = decoder.sample(prefix, sample(candidates=50, top_p=1e-6), numbers())
    best = decoder.beams(prefix, beam(candidates=1), renormalise=True).tokens_BWL[:, 0]
    assert (held.tokens_BWL[:, :, 0] == best[:, None, 0]).all()
    assert (held.log_probs_BWL == 0).all()


@pytest.mark.parametrize("constrained", [True, False])
def test_frequencies_match_the_probabilities(constrained):
    model = MODELS["qwen3"]()
    decoder = TreeDecoder(model, vocabulary())
    excluded = [np.array([1]), np.array([], dtype=np.int64), np.array([2])] if constrained else None
    drawn = decoder.sample(
        decoder.prefill(*padded()),
        sample(candidates=4000, temperature=3.0, constrained=constrained),
        numbers(),
        excluded=excluded,
    )
    candidates = vocabulary().item_tokens if constrained else list(itertools.product(range(VOCAB), repeat=3))
    for row, history in enumerate(HISTORIES):
        items = left(row, excluded) if constrained else list(range(len(candidates)))
        rows = [list(candidates[item]) for item in items]
        log_p = token_log_probs(model, history, rows, rows if constrained else None, 3.0).sum(axis=1)
        place = {tuple(tokens): index for index, tokens in enumerate(rows)}
        counts = np.bincount(
            [place[tuple(one)] for one in drawn.tokens_BWL[row].tolist()], minlength=len(rows)
        )
        expected = 4000 * np.exp(log_p)
        assert expected.sum() == pytest.approx(4000, rel=1e-4)
        common = expected >= 5
        assert common.sum() >= (4 if constrained else 30)
        observed = np.append(counts[common], counts[~common].sum())
        wanted = np.append(expected[common], max(expected[~common].sum(), 1e-9))
        kept = wanted > 1e-3
        assert (
            chisquare(observed[kept], wanted[kept] * observed[kept].sum() / wanted[kept].sum()).pvalue > 1e-3
        )


def test_what_a_prompt_gets_does_not_depend_on_its_company(decoder):
    together = decoder.sample(decoder.prefill(*padded()), sample(candidates=20), numbers(), excluded=EXCLUDED)
    for row, history in enumerate(HISTORIES):
        prefix = decoder.prefill(*padded([history]))
        alone = decoder.sample(
            prefix, sample(candidates=20), numbers()[row : row + 1], excluded=EXCLUDED[row : row + 1]
        )
        assert (alone.tokens_BWL[0] == together.tokens_BWL[row]).all()
        close(alone.log_probs_BWL[0], together.log_probs_BWL[row])


def test_a_branch_is_computed_once_however_many_candidates_are_on_it(decoder):
    counted = []
    forward = decoder._forward

    def count(tokens, *rest):
        counted.append(len(tokens))
        return forward(tokens, *rest)

    prefix = decoder.prefill(*padded(HISTORIES[:1]))
    decoder._forward = count
    drawn = decoder.sample(prefix, sample(candidates=500), numbers(1))
    tokens = drawn.tokens_BWL[0]
    assert counted == [len(np.unique(tokens[:, :1], axis=0)), len(np.unique(tokens[:, :2], axis=0))]


def test_free_decoding_takes_no_exclusions(decoder):
    prefix = decoder.prefill(*padded())
    with pytest.raises(ValueError, match="constrained decoding only"):
        decoder.beams(prefix, beam(candidates=2, constrained=False), excluded=[np.array([0])] * 3)
    with pytest.raises(ValueError, match="constrained decoding only"):
        decoder.sample(
            prefix, sample(candidates=2, constrained=False), numbers(), excluded=[np.array([0])] * 3
        )


@pytest.mark.parametrize("constrained", [True, False])
def test_heads_that_are_no_plain_linear_layer_are_called(decoder, model, constrained):
    class Adapted(type(decoder._head)):
        pass

    prefix = decoder.prefill(*padded())
    plain = decoder.beams(prefix, beam(candidates=3, constrained=constrained), renormalise=True)
    decoder._head = Adapted(*reversed(decoder._head.weight.shape), bias=False)
    decoder._head.weight = model.get_output_embeddings().weight
    if model.get_output_embeddings().bias is not None:
        decoder._head.bias = model.get_output_embeddings().bias
    adapted = decoder.beams(prefix, beam(candidates=3, constrained=constrained), renormalise=True)
    assert (adapted.tokens_BWL == plain.tokens_BWL).all()
    close(adapted.log_probs_BWL, plain.log_probs_BWL)


def test_stochastic_beams_are_distinct_and_carry_their_log_probs(model, decoder):
    drawn = decoder.stochastic_beams(
        decoder.prefill(*padded()),
        stochastic_beam(candidates=4, temperature=2.0),
        numbers(),
        excluded=EXCLUDED,
    )
    for row, history in enumerate(HISTORIES):
        items = vocabulary().trie.lookup(drawn.tokens_BWL[row])
        assert len(set(items.tolist())) == 4 and set(items.tolist()) <= set(left(row, EXCLUDED))
        allowed = vocabulary().item_tokens[left(row, EXCLUDED)].tolist()
        close(drawn.log_probs_BWL[row], token_log_probs(model, history, drawn.tokens_BWL[row], allowed, 2.0))
    assert (drawn.inclusion_log_probs_BW < 0).all() and drawn.inclusion_log_probs_BW.shape == (3, 4)
    free = decoder.stochastic_beams(
        decoder.prefill(*padded()), stochastic_beam(candidates=6, constrained=False), numbers()
    )
    assert all(len(np.unique(one, axis=0)) == 6 for one in free.tokens_BWL)
    close(free.log_probs_BWL[0], token_log_probs(model, HISTORIES[0], free.tokens_BWL[0]))


def test_stochastic_beams_are_those_of_a_search_prompt_by_prompt(model, decoder):
    """Free decoding takes the same random numbers as `sluice.actors.engines.vllm.beams`."""
    drawn = decoder.stochastic_beams(
        decoder.prefill(*padded()),
        stochastic_beam(candidates=4, temperature=2.0, constrained=False),
        numbers(),
    )
    for row, (history, stream) in enumerate(zip(HISTORIES, numbers(), strict=True)):
        beams = StochasticBeams(4, stream)
        for _ in range(3):
            beams.grow(next_log_probs(model, history, beams.tokens_Wl.tolist(), temperature=2.0))
        found = beams.candidates()
        assert (drawn.tokens_BWL[row] == found.tokens_KL).all()
        close(drawn.log_probs_BWL[row], found.log_probs_KL)
        close(drawn.inclusion_log_probs_BW[row], found.inclusion_log_probs_K)


def test_when_every_item_is_drawn_each_was_certain(decoder):
    drawn = decoder.stochastic_beams(decoder.prefill(*padded()), stochastic_beam(candidates=8), numbers())
    assert (np.sort(vocabulary().trie.lookup(drawn.tokens_BWL), axis=1) == np.arange(8)).all()
    assert (drawn.inclusion_log_probs_BW == 0).all()


def test_stochastic_beams_sample_without_replacement_and_weigh_without_bias():
    """Ordered pairs against p(a) p(b) / (1 - p(a)), and E[sum f p / q] against E[f], over 6,000 groups."""
    model, groups, batch = MODELS["qwen3"](), 6000, 500
    decoder = TreeDecoder(model, vocabulary())
    excluded, history = np.array([1, 6]), HISTORIES[1]
    items = [item for item in range(8) if item not in excluded]
    tokens = vocabulary().item_tokens[items].tolist()
    p = np.exp(token_log_probs(model, history, tokens, tokens, 4.0).sum(axis=1))
    prefix = decoder.prefill(*padded([history] * batch))
    counts, estimates = np.zeros((6, 6)), []
    for seed in range(groups // batch):
        random = random_streams([f"{seed:08}{row:08}".encode() for row in range(batch)])
        drawn = decoder.stochastic_beams(
            prefix, stochastic_beam(candidates=2, temperature=4.0), random, excluded=[excluded] * batch
        )
        place = np.searchsorted(items, vocabulary().trie.lookup(drawn.tokens_BWL))
        np.add.at(counts, (place[:, 0], place[:, 1]), 1)
        weight = np.exp(drawn.log_probs_BW.astype(np.float64) - drawn.inclusion_log_probs_BW)
        estimates.append(np.stack([(weight * (place == item)).sum(axis=1) for item in range(6)], axis=1))
    pairs = np.outer(p, p) / (1 - p)[:, None]
    np.fill_diagonal(pairs, 0)
    assert pairs.sum() == pytest.approx(1, abs=1e-4) and np.trace(counts) == 0
    observed, wanted = counts[pairs > 0], groups * pairs[pairs > 0]
    assert len(wanted) == 30 and wanted.min() > 5
    assert chisquare(observed, wanted * groups / wanted.sum()).pvalue > 1e-3
    estimates = np.concatenate(estimates)
    off = np.abs(estimates.mean(axis=0) - p) / (estimates.std(axis=0) / np.sqrt(groups))
    assert off.max() < 4  # standard errors


def test_no_decoding_waits_for_plans_of_cudnn(model):
    torch.backends.cuda.enable_cudnn_sdp(True)
    TreeDecoder(model, vocabulary())
    assert not torch.backends.cuda.cudnn_sdp_enabled()
