"""At the edges: log-probs that disagree by any number of nats, groups that must cost nothing."""

import typing
from dataclasses import replace

import pytest
import torch
from pydantic import TypeAdapter

from sluice.catalog.decoding import Decoding
from sluice.learner.objectives.settings.objective import GroupSettings, Objective
from sluice.learner.objectives.terms.group_term import k3_divergence
from sluice.learner.objectives.terms.ratio import ratio_of
from sluice.learner.settings import LearnerSettings
from sluice.learner.training.objective import build_objective
from sluice.learner.training.step import LearnerStep
from tests.unit.learner.learner_cases import objective_input, random_batch, tiny_policy
from tests.unit.learner.preference_cases import rich_batch, scores_of

KINDS = [member.model_fields["type"].default for member in typing.get_args(typing.get_args(Objective)[0])]
GROUPED = [
    member.model_fields["type"].default
    for member in typing.get_args(typing.get_args(Objective)[0])
    if "grpo" in member.model_fields and issubclass(member.model_fields["grpo"].annotation, GroupSettings)
]
START = {"old_policy": "batch_start"}
TERMS = [
    {},
    {"kl_beta": 0.5},
    {"ratio": "sequence"},
    {"ratio": "gspo"},
    {**START, "correction": {"level": "token"}},
    {**START, "correction": {"level": "token", "high": float("inf")}},
    {**START, "correction": {"level": "sequence", "outside": "mask"}, "ratio": "sequence"},
    {"inclusion_weights": "normalised"},
    {"advantage": "dr_grpo", "inclusion_weights": "normalised"},
    {"advantage": "dr_grpo"},
]


def make(settings):
    return build_objective(TypeAdapter(Objective).validate_python(settings))


def variants():
    """Every objective, and those with a group-relative term with several terms."""
    for kind in KINDS:
        yield {"type": kind}
        if kind in GROUPED:
            fields = TypeAdapter(Objective).validate_python({"type": kind}).grpo.model_dump()
            yield from ({"type": kind, "grpo": term} for term in TERMS[1:] if set(term) <= set(fields))


def extreme(generator, *shape):
    """Log-probs of all sizes, float32."""
    sizes = torch.tensor([0.0, 1e-6, 0.5, 3.0, 30.0, 95.0, 1e4])
    return -sizes[torch.randint(len(sizes), shape, generator=generator)]


@pytest.mark.parametrize("settings", list(variants()), ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_loss_and_gradient_are_finite_for_finite_inputs(settings, seed):
    generator = torch.Generator().manual_seed(seed)
    batch = rich_batch(prompts=32, candidates=4, seed=seed)
    with_inclusion = "inclusion_weights" in settings.get("grpo", {})
    batch = replace(
        batch,
        behaviour_log_probs_BKL=extreme(generator, 32, 4, 3),
        candidate_scores_BK=batch.candidate_scores_BK * 10.0 ** torch.randint(0, 10, (32, 1)),
        inclusion_log_probs_BK=extreme(generator, 32, 4) if with_inclusion else None,
    )
    branches, target = extreme(generator, 32, 5, 3).requires_grad_(), extreme(generator, 32, 3)
    values = (1e3 * torch.randn(32, 5, 3, generator=generator)).requires_grad_()
    scores = scores_of(branches, values, target.requires_grad_())
    start = scores_of(extreme(generator, 32, 5, 3), 1e3 * torch.randn(32, 5, 3, generator=generator))
    loss = make(settings)(objective_input(batch, scores, start, extreme(generator, 32, 5, 3))).loss
    assert loss.isfinite()
    for gradient in torch.autograd.grad(loss, [branches, target, values], allow_unused=True):
        assert gradient is None or gradient.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_that_engine_and_learner_disagree_about_does_not_end_the_run(kind):
    settings = {"type": kind} | ({"pairs": {"type": "self_generated"}} if kind in ("dpo", "ipo") else {})
    step = LearnerStep(
        tiny_policy().model, objective=make(settings), settings=LearnerSettings(warmup_steps=0)
    )
    batch = rich_batch(prompts=3, candidates=4)
    found = batch.behaviour_log_probs_BKL.clone()
    found[1, 2, 1] = -95.0
    norm = step.update(replace(batch, behaviour_log_probs_BKL=found))["grad_norm"]
    assert 0 < norm < float("inf")


def test_a_ratio_is_exact_within_the_bound_and_constant_beyond():
    log_ratio = torch.tensor([-95.0, -20.0, -1.0, 0.0, 2.0, 20.0, 95.0], dtype=torch.float64).requires_grad_()
    ratio = ratio_of(log_ratio)
    expected = [2.0611536e-9, 2.0611536e-9, 0.36787944, 1.0, 7.3890561, 485165195.4, 485165195.4]
    assert ratio.tolist() == pytest.approx(expected, rel=1e-7)
    (gradient,) = torch.autograd.grad(ratio.sum(), log_ratio)
    assert gradient[[0, 6]].tolist() == [0, 0]
    assert gradient[2:5].tolist() == pytest.approx(expected[2:5], rel=1e-7)


def test_the_divergence_is_bounded_above_and_linear_far_below():
    log_probs = torch.tensor([-100.0, -1.0, -0.5], requires_grad=True)
    divergence = k3_divergence(log_probs, torch.tensor([0.0, -1.0, -100.5]))
    assert divergence.tolist() == pytest.approx([485165195.4 - 21, 0, 99])
    (gradient,) = torch.autograd.grad(divergence.sum(), log_probs)
    assert gradient.tolist() == pytest.approx([0, 0, 1])


def wild(batch, rows):
    """Log-probs [B, S, L] of the learner, of its start and of the reference, impossible in some rows."""
    generator = torch.Generator().manual_seed(9)
    shape = (batch.prompts, batch.candidates_BKL.shape[1] + 1, 3)
    made = [-2 * torch.rand(*shape, generator=generator) - 0.5 for _ in range(3)]
    for log_probs, value in zip(made, (torch.nan, -95.0, 0.0), strict=True):
        log_probs[rows, 1:] = value
    return made


@pytest.mark.parametrize("term", TERMS, ids=str)
@pytest.mark.parametrize("kind", ["hard", "random"])
def test_a_refused_group_costs_exactly_nothing(term, kind):
    gate = {"mode": "random", "random_rate": 0.0} if kind == "random" else {"tau": 0.5}
    objective = make({"type": "adagrpo", "weight": 4.0, "grpo": term, "gate": gate})
    batch = random_batch(prompts=24, candidates=4)
    # The ranker says nothing of the ground truth of every other prompt, so that the hard gate refuses it.
    refused = torch.arange(24) % 2 == 0 if kind == "hard" else torch.ones(24, dtype=torch.bool)
    target_scores_B = torch.where(refused, torch.nan, 9.0)
    behaviour = batch.behaviour_log_probs_BKL.clone()
    behaviour[~refused] += 3.0  # the policy finds their ground truth last
    behaviour[refused] = -1e4
    inclusion = {"inclusion_log_probs_BK": behaviour.sum(dim=-1) + 1.0} if "inclusion_weights" in term else {}
    decoding = Decoding(candidates=4, kind="stochastic_beam" if inclusion else "sample")
    batch = replace(
        batch,
        behaviour_log_probs_BKL=behaviour,
        target_scores_B=target_scores_B,
        decoding=decoding,
        **inclusion,
    )
    log_probs, start, reference = wild(batch, refused)
    leaf, target = log_probs.requires_grad_(), (-torch.rand(24, 3) - 0.5).requires_grad_()
    inputs = objective_input(batch, scores_of(leaf, target_BL=target), scores_of(start), reference)
    terms = objective(inputs)
    nll = -target.sum(dim=-1)
    if kind == "random":
        assert torch.equal(terms.loss, nll.mean())
    assert terms.loss.isfinite()
    own, of_target = torch.autograd.grad(terms.loss, [leaf, target])
    assert torch.equal(own[refused], torch.zeros_like(own[refused]))
    assert torch.equal(of_target, torch.autograd.grad(nll.mean(), target)[0])
    if kind == "hard":
        assert terms.metrics["gate_rate"][0] > 0 and own[~refused].abs().max() > 0


@pytest.mark.parametrize("term", TERMS, ids=str)
@pytest.mark.parametrize("kind", GROUPED)
def test_a_group_without_advantage_costs_exactly_nothing(kind, term):
    settings = TypeAdapter(Objective).validate_python({"type": kind})
    term = {name: value for name, value in term.items() if name in type(settings.grpo).model_fields}
    if "inclusion_weights" in term:  # unbiased weights without a division keep a group of equal rewards
        term |= {"inclusion_weights": "normalised"}
    objective = make({"type": kind, "grpo": term})
    batch = rich_batch(prompts=6, candidates=4)
    equal = torch.arange(6) % 2 == 0
    items = torch.where(equal[:, None], 77, batch.candidate_items_BK)
    tokens = torch.where(equal[:, None, None], batch.history_BT[:1, 1:4], batch.candidates_BKL)
    scores = torch.where(equal[:, None], 1.5, batch.candidate_scores_BK)
    items[~equal, 1] = batch.target_items_B[~equal]  # a hit, for the rewards that look for one
    tokens[~equal, 1], scores[~equal, 1] = batch.target_BL[~equal], 2.5
    inclusion = (
        {"inclusion_log_probs_BK": batch.behaviour_log_probs_BKL.sum(dim=-1) + 1.0}
        if "inclusion_weights" in term
        else {}
    )
    batch = replace(
        batch, candidate_items_BK=items, candidates_BKL=tokens, candidate_scores_BK=scores, **inclusion
    )
    log_probs, start, reference = wild(batch, equal)
    leaf, target = log_probs.requires_grad_(), (-torch.rand(6, 3) - 0.5).requires_grad_()
    inputs = objective_input(batch, scores_of(leaf, target_BL=target), scores_of(start), reference)
    loss = objective(inputs).loss
    assert loss.isfinite()
    (gradient,) = torch.autograd.grad(loss, [leaf])
    assert torch.equal(gradient[equal], torch.zeros_like(gradient[equal]))
    if kind != "adagrpo":  # whose gate looks at more than the rewards
        assert gradient[~equal].abs().max() > 0
    nothing = objective(objective_input(*alone(batch, leaf, start, reference, equal)))
    grpo = nothing.metrics["grpo"]
    assert grpo[0].item() == 0 and grpo[1].item() == equal.sum()


def alone(batch, log_probs, start, reference, rows):
    """The inputs of these prompts alone."""
    tensors = {name: value[rows] for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
    return (
        replace(batch, **tensors),
        scores_of(log_probs[rows].detach(), target_BL=torch.full((int(rows.sum()), 3), -1.0)),
        scores_of(start[rows]),
        reference[rows],
    )
