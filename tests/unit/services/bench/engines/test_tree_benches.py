"""The comparisons that the benches of the tree engine stand on can fail."""

import dataclasses

import numpy as np
import pytest

from sluice.actors.engines.engine import Generation
from sluice.catalog.errors import RunError
from sluice.learner.decoding.tree import Candidates
from sluice.services.bench.engines import beam, engines

RNG = np.random.default_rng(0)
TOKENS = np.asarray([[[3, 5], [4, 6]], [[3, 6], [4, 5]]])
LOG_PROBS = np.asarray([[[-1.0, -1.0], [-2.0, -1.0]], [[-1.0, -1.0], [-1.5, -1.0]]], dtype=np.float32)


def test_beams_must_be_the_same_but_for_ties():
    ours, scores = Candidates(tokens_BWL=TOKENS, log_probs_BWL=LOG_PROBS), LOG_PROBS.sum(axis=2)
    beam._check_equal(ours, TOKENS, scores)
    with pytest.raises(RunError, match=r"differ by up to 0\.01 nats"):
        beam._check_equal(ours, TOKENS, scores + np.asarray([0, 0.01], dtype=np.float32))
    with pytest.raises(RunError, match="prompt 1: tree beam 0 is another sequence"):
        beam._check_equal(ours, np.stack([TOKENS[0], TOKENS[1, ::-1]]), scores)
    tied = Candidates(tokens_BWL=TOKENS, log_probs_BWL=np.full_like(LOG_PROBS, -1.0))
    beam._check_equal(tied, TOKENS[:, ::-1], np.full_like(scores, -2.0))


def generations(shift=0.0, tilt=0.0):
    """Two prompts with 400 candidates each, over two tokens of probability 0.4 and 0.6, more or less."""
    made = []
    for name in "ab":
        tokens = 3 + (RNG.random((400, 2)) < 0.6 + tilt)
        log_probs = np.log(np.where(tokens == 3, 0.4, 0.6)) + shift
        made.append(
            Generation(request_id=name, tokens=tokens, log_probs=log_probs, version_min=0, version_max=0)
        )
    return made


def test_engines_must_give_the_same_log_probs_and_frequencies():
    engines._check_equal("same", "sample", generations(), generations())
    with pytest.raises(RunError, match=r"one: the engines differ by 0\.01 nats"):
        engines._check_equal("one", "sample", generations(), generations(shift=0.01))
    with pytest.raises(RunError, match="two: first tokens of the two engines differ"):
        engines._check_equal("two", "sample", generations(), generations(tilt=0.2))
    strangers = [dataclasses.replace(one, tokens=one.tokens + 9) for one in generations()]
    with pytest.raises(RunError, match="three: first tokens"):
        engines._check_equal("three", "sample", generations(), strangers)


def test_engines_must_find_the_same_beams():
    ours, other = generations(), generations()
    turned = [
        dataclasses.replace(one, tokens=one.tokens[::-1], log_probs=one.log_probs[::-1]) for one in ours
    ]
    engines._check_equal("four", "beam", ours, turned)
    with pytest.raises(RunError, match="five: the beams of the engines differ by"):
        engines._check_equal("five", "beam", ours, other)
