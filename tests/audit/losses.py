"""Gate, rewards, advantages and loss of AdaGRPO for one prompt at a time, in plain Python, by the formulas of
docs/algorithms.md. Nothing here is shared with the product, which works on tensors.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from statistics import mean, stdev

Tokens = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One of the K candidates of a prompt; lists have a value for each of the L tokens."""

    tokens: Tokens
    item: int  # -1: no item
    score: float  # of the ranker, NaN for no item
    behaviour: Sequence[float]  # log-probs that the engine recorded
    policy: Sequence[float]  # log-probs of the learner
    start: Sequence[float]  # of the learner at the start of the batch
    reference: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A prompt with its ground truth, candidates and distractors."""

    target: Tokens
    target_score: float
    target_start: float  # log-prob of the ground truth at the start of the batch
    target_plain: Sequence[float]  # log-probs of its tokens under the plain policy
    candidates: Sequence[Candidate]
    distractors: Sequence[float]  # scores, NaN: there is none


def places(fraction: float, candidates: int) -> int:
    """A fraction of K, rounded down, in exact arithmetic on the decimal that was written."""
    return math.floor(Fraction(str(fraction)) * candidates)


def distinct(prompt: Prompt) -> list[Candidate]:
    """Candidates other than the ground truth, those with equal tokens once."""
    first = {candidate.tokens: candidate for candidate in reversed(prompt.candidates)}
    return [candidate for tokens, candidate in first.items() if tokens != prompt.target]


def policy_rank(prompt: Prompt, exact_beams: bool) -> int:
    """The ground truth's place by likelihood; a hallucination is a rival."""
    own = prompt.target_start
    if exact_beams:
        hits = [sum(each.behaviour) for each in prompt.candidates if each.tokens == prompt.target]
        if not hits:
            return len(prompt.candidates) + 1
        own = max(hits)
    return 1 + sum(sum(rival.behaviour) > own for rival in distinct(prompt))


def ranker_pool(prompt: Prompt) -> list[float]:
    """Scores of the valid distinct candidates."""
    return [rival.score for rival in distinct(prompt) if rival.item >= 0]


def ranker_rank(prompt: Prompt) -> int:
    """The ground truth's place by score."""
    return 1 + sum(score > prompt.target_score for score in ranker_pool(prompt))


def gate(
    prompt: Prompt, tau: float, rho: float, *, rule: str = "below_head", exact_beams: bool = False
) -> int:
    """D(x) R(x), 0 or 1."""
    candidates = len(prompt.candidates)
    head, bound = places(tau, candidates), places(rho, candidates)
    if policy_rank(prompt, exact_beams) <= head:
        return 0
    if not math.isfinite(prompt.target_score) or ranker_rank(prompt) > head:
        return 0
    distractors = [score for score in prompt.distractors if not math.isnan(score)]
    pool = [prompt.target_score, *ranker_pool(prompt), *distractors]
    for score in distractors:
        rank = 1 + sum(other > score for other in pool)
        met = rank > bound if rule == "below_head" else rank > len(pool) - bound
        if not met:
            return 0
    return 1


def rewards(prompt: Prompt, invalid_margin: float) -> list[float]:
    """The ranker's raw scores; a hallucination gets the lowest of them less the margin."""
    valid = [each.score for each in prompt.candidates if each.item >= 0]
    if not valid:
        return [0.0] * len(prompt.candidates)
    return [each.score if each.item >= 0 else min(valid) - invalid_margin for each in prompt.candidates]


def advantages(values: Sequence[float], kind: str) -> list[float]:
    """By kind: grpo, dr_grpo or rloo."""
    if max(values) == min(values):
        return [0.0] * len(values)
    if kind == "rloo":
        total = sum(values)
        return [value - (total - value) / (len(values) - 1) for value in values]
    middle = mean(values)
    scale = stdev(values) + 1e-4 if kind == "grpo" else 1.0
    return [(value - middle) / scale for value in values]


def clipped(ratio: float, advantage: float, low: float, high: float) -> float:
    """min(rho A, clip(rho) A)."""
    return min(ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage)


def k3(policy: float, reference: float) -> float:
    """exp(d) - d - 1 with d = log pi_ref - log pi."""
    difference = reference - policy
    return math.exp(difference) - difference - 1


def grpo(
    prompt: Prompt,
    *,
    kind: str,
    kl_beta: float,
    clips: tuple[float, float],
    old_policy: str = "behaviour",
    invalid_margin: float = 1.0,
) -> float:
    """L_GRPO of one prompt, a mean over candidates and tokens; 0 where no candidate has an advantage."""
    gains = advantages(rewards(prompt, invalid_margin), kind)
    if not any(gains):
        return 0.0
    total, terms = 0.0, 0
    for candidate, gain in zip(prompt.candidates, gains, strict=True):
        old = candidate.behaviour if old_policy == "behaviour" else candidate.start
        for now, before, reference in zip(candidate.policy, old, candidate.reference, strict=True):
            total += clipped(math.exp(now - before), gain, *clips) - kl_beta * k3(now, reference)
            terms += 1
    return -total / terms


def nll(prompt: Prompt) -> float:
    """A sum over the tokens of the ground truth."""
    return -sum(prompt.target_plain)


def loss(prompts: Sequence[Prompt], weight: float, gates: Sequence[float], **group: object) -> float:
    """mean of [ NLL + weight * gate * L_GRPO ]."""
    terms = [
        nll(prompt) + (weight * value * grpo(prompt, **group) if value else 0.0)  # type: ignore[arg-type]
        for prompt, value in zip(prompts, gates, strict=True)
    ]
    return sum(terms) / len(terms)
