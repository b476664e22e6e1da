"""Every setting of every objective changes what an update does, or is refused by the config.

Objectives, settings and the values to try are read off the settings' classes, so that a new one is covered by
being there. The update is the gradient of the loss on a batch that has everything which any setting asks for,
trust by the places of some users' last items among it.
"""

import itertools
import types
import typing
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from pydantic import BaseModel, ValidationError

from sluice.catalog.decoding import Decoding
from sluice.learner.objectives.settings.effects import check_prefixes
from sluice.learner.objectives.settings.objective import Objective
from sluice.learner.objectives.terms.base import ObjectiveInput
from sluice.learner.rewards.settings import RankerReward
from sluice.learner.training.objective import build_objective
from sluice.learner.trust.meter import TrustMeter
from sluice.services.config import RunConfig
from tests.unit.learner.preference_cases import rich_batch, scores_of
from tests.unit.learner.trust_cases import LogsInMemory, TableRanker, prompts

LEVELS, B, K = 3, 192, 6
# (updates per batch, kind, constrained)
SURROUNDINGS = [
    (2, "sample", False),
    (1, "sample", False),
    (2, "stochastic_beam", False),
    (2, "sample", True),
]
UNION = typing.get_args(typing.get_args(Objective)[0])
OBJECTIVES = {member.model_fields["type"].default: member for member in UNION}
Path = tuple[str | int, ...]


@cache
def batch_of(kind, constrained):
    """Prompts with and without hits, rewards, hallucinations, equal groups and repeated candidates."""
    generator = torch.Generator().manual_seed(7)
    batch = rich_batch(prompts=B, candidates=K)
    items_BK = batch.candidate_items_BK.clone()
    tokens_BKL = batch.candidates_BKL.clone()
    if kind != "sample":  # every member another item, which ends otherwise than any ground truth
        places, last = torch.arange(K), torch.full((K,), 10)
        tokens_BKL = torch.stack([3 + places % 4, 7 + places // 4, last], dim=-1).repeat(B, 1, 1)
        alike = torch.stack([torch.full((K,), 3), 7 + places // 5, 10 + places % 5], dim=-1)
        tokens_BKL[3::8] = alike  # with one first token, so that the rewards may be equal
        batch = replace(batch, target_BL=batch.target_BL.clone().clamp(min=torch.tensor([3, 7, 11])))
    items_BK[::2, 1], tokens_BKL[::2, 1] = batch.target_items_B[::2], batch.target_BL[::2]
    if kind == "sample":
        tokens_BKL[::5, 0, 0] = batch.history_BT[::5, 1]
        items_BK[1::4, 2], tokens_BKL[1::4, 2] = items_BK[1::4, 0], tokens_BKL[1::4, 0]
    if constrained:
        items_BK[:, -1] = 4000
    scores_BK = torch.randn(items_BK.shape, generator=generator)
    values_BK = 1 + 4 * torch.rand(items_BK.shape, generator=generator)
    same = (items_BK, scores_BK, values_BK, *((tokens_BKL,) if kind == "sample" else ()))
    for of_candidates in same:  # groups of equal rewards
        of_candidates[3::8] = of_candidates[3::8, :1]
    valid_BK, rewards_B = items_BK >= 0, batch.logged_rewards_B.clone()
    rewards_B[0], rewards_B[2] = 9.0, -5.0
    shares_BK = torch.rand(items_BK.shape, generator=generator)
    inclusion_BK = batch.behaviour_log_probs_BKL.sum(dim=-1) + 1.2 + 1.2 * shares_BK
    doubles = {
        "candidate_scores_BK": scores_BK.masked_fill(~valid_BK, torch.nan),
        "target_scores_B": torch.randn(B, generator=generator) + 1,
        "candidate_spread_BK": 0.3 * shares_BK,
        "target_spread_B": batch.target_spread_B,
        "candidate_values_BK": values_BK.masked_fill(~valid_BK, torch.nan),
        "candidate_popularity_BK": (values_BK / 100).masked_fill(~valid_BK, torch.nan),
        "logged_rewards_B": rewards_B,
        "distractor_scores_BJ": torch.randn(B, 2, generator=generator) - 1,
        "behaviour_log_probs_BKL": batch.behaviour_log_probs_BKL,
        "inclusion_log_probs_BK": inclusion_BK if kind == "stochastic_beam" else None,
    }
    return replace(
        batch,
        candidate_items_BK=items_BK,
        candidates_BKL=tokens_BKL,
        decoding=Decoding(kind=kind, candidates=K, constrained=constrained),
        **{name: None if value is None else value.double() for name, value in doubles.items()},
    )


@cache
def trust_of(settings):
    """The trust of B users whose items a ranker places about where the cut is; some have few items."""
    generator = np.random.default_rng(2)
    lengths = np.where(generator.random(B) < 0.5, generator.integers(1, 6, B), generator.integers(6, 51, B))
    own = [600 + generator.integers(100, size=length) for length in lengths]
    crowd = np.tile(np.arange(1000), 20)  # what others take, each item as often
    logs, ranker = LogsInMemory(*own, crowd, items=1000), TableRanker(np.arange(1000))
    meter = TrustMeter(logs, (ranker, ranker), settings, until="fresh")
    return torch.from_numpy(meter.measure(prompts(*enumerate(lengths.tolist()))))


def update(values, surroundings):
    """The gradient that an update would follow, over all scores of the batch."""
    updates, kind, constrained = surroundings
    batch = batch_of(kind, constrained)
    if (trust := getattr(getattr(values, "gate", None), "trust", None)) is not None:
        batch = replace(batch, trust_B=trust_of(trust))
    generator = torch.Generator().manual_seed(3)

    def log_probs(*shape):
        return (-3 * torch.rand(*shape, generator=generator, dtype=torch.float64) - 0.5).requires_grad_()

    branches = log_probs(B, K + 1, LEVELS).detach()
    branches[:, 0] -= 1.0  # so that the policy does not find the ground truth yet
    branches.requires_grad_()
    target, heads = log_probs(B, LEVELS), log_probs(B, K + 1, LEVELS)
    scores = scores_of(branches, heads, target)
    start = scores.detach()
    if updates > 1:
        moved, further = (0.5 * log_probs(B, K + 1, LEVELS).detach() + 1 for _ in range(2))
        start = scores_of(branches.detach() + moved, heads.detach() + further)
    reference = log_probs(B, K + 1, LEVELS).detach()
    loss = build_objective(values)(
        ObjectiveInput(batch=batch, scores=scores, start=start, reference_BSL=reference)
    ).loss
    gradients = torch.autograd.grad(loss, [branches, target, heads], allow_unused=True)
    return torch.cat([torch.zeros(1, dtype=torch.float64) if g is None else g.flatten() for g in gradients])


def accepted(values, surroundings):
    """The objective, or None where the config refuses it."""
    updates, kind, constrained = surroundings
    try:
        config = RunConfig(
            name="x",
            objective=values,
            learner={"updates_per_batch": updates},
            rollout={"decode": {"kind": kind, "candidates": K, "constrained": constrained}},
        )
        check_prefixes(config.objective, LEVELS)
    except (ValidationError, ValueError) as error:
        assert str(error)
        return None
    return config.objective


def alternatives(annotation, value):
    """Other values of a setting, by its type; a class stands for a group of settings to go into."""
    if typing.get_origin(annotation) is typing.Annotated:
        return alternatives(typing.get_args(annotation)[0], value)
    options = typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.Literal:
        return [option for option in options if option != value]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        models = [option for option in options if isinstance(option, type) and issubclass(option, BaseModel)]
        if types.NoneType in options and models:  # a group of settings that may be left out
            return [None if value else m().model_dump() for m in models]
        if models:
            return [m().model_dump() for m in models if m.model_fields["type"].default != value["type"]]
        rest = [option for option in options if option is not types.NoneType]
        nothing = [None] if value is not None and len(rest) < len(options) else []
        return [*nothing, *(other for option in rest for other in alternatives(option, value))]
    if annotation not in NUMBERS:
        raise AssertionError(f"no other values are known of a setting of type {annotation}: add them here")
    return NUMBERS[annotation](value)


NUMBERS = {
    bool: lambda value: [not value],
    int: lambda value: [1, 2] if value is None else [value + 1, value * 3 + 6],
    float: lambda value: [0.3, 0.6] if value is None else [value * 2, value / 2] if value else [0.5, 2.0],
}


def components(annotation, value):
    """Lists with each member of a list's union beside what stands there."""
    member = typing.get_args(annotation)[0]
    models = typing.get_args(typing.get_args(member)[0])
    ranker = RankerReward(transform="sigmoid", weight=3.0).model_dump()
    for model in models:
        new = model().model_dump()
        if new["type"] not in {old["type"] for old in value}:
            yield [*value, new]
            yield [ranker, new]


def leaves(model, values, path: Path = ()):
    """(path, annotation, value) of every setting below a model, as `values` has them."""
    for name, field in model.model_fields.items():
        annotation, value = field.annotation, values[name]
        if typing.get_origin(annotation) is typing.Annotated:
            annotation = typing.get_args(annotation)[0]
        if typing.get_origin(annotation) is tuple:
            yield (*path, name), annotation, value
            for place, item in enumerate(value):
                yield from leaves(_member(annotation, item), item, (*path, name, place))
        elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from leaves(annotation, value, (*path, name))
        elif isinstance(value, dict):
            yield (*path, name), annotation, value
            yield from leaves(_member(annotation, value), value, (*path, name))
        elif name != "type":
            yield (*path, name), annotation, value


def _member(annotation, value):
    members = [option for option in typing.get_args(annotation) if option is not types.NoneType]
    if len(members) == 1 and "type" not in members[0].model_fields:  # a group that may be left out
        return members[0]
    members = [annotation]
    while not all(isinstance(member, type) and issubclass(member, BaseModel) for member in members):
        members = [m for member in members for m in (typing.get_args(member) or [member]) if m is not ...]
        members = [
            m for m in members if typing.get_args(m) or (isinstance(m, type) and issubclass(m, BaseModel))
        ]
    (found,) = [member for member in members if member.model_fields["type"].default == value["type"]]
    return found


def with_value(values, path, value):
    """A copy of nested settings with another value in one place."""
    head, *rest = path
    new = value if not rest else with_value(values[head], rest, value)
    if isinstance(values, dict):
        return values | {head: new}
    return [new if place == head else old for place, old in enumerate(values)]


def tries(annotation, value):
    if typing.get_origin(annotation) is tuple:
        return list(components(annotation, value))
    return alternatives(annotation, value)


def is_mode(annotation):
    """A setting on which it may depend what others do: a choice, a switch, a list."""
    origin = typing.get_origin(annotation)
    return (
        origin in (typing.Literal, tuple)
        or annotation is bool
        or (
            origin in (typing.Union, types.UnionType)
            and any(isinstance(o, type) and issubclass(o, BaseModel) for o in typing.get_args(annotation))
        )
    )


def shared_with_earlier(objective):
    """The groups of settings that an objective before this one has, which has been through all of them."""
    fields = [member.model_fields for member in UNION[: UNION.index(objective)]]
    earlier = {name: field.annotation for members in fields for name, field in members.items()}
    return {n for n, field in objective.model_fields.items() if earlier.get(n) is field.annotation}


def contexts(objective, surroundings):
    """Settings under which to try the others: the defaults, and each mode with what else it takes."""
    default = objective().model_dump()
    yield default
    if surroundings == SURROUNDINGS[-1]:  # as the first, but for what hallucinations do
        return
    changes = [
        (path, other, is_mode(annotation))
        for path, annotation, value in leaves(objective, default)
        for other in tries(annotation, value)
        if path[0] not in shared_with_earlier(objective)
    ]
    for path, other, mode in changes:
        if not mode:
            continue
        alone = with_value(default, path, other)
        further = [(p, o) for p, o, _ in changes if p[: len(path)] != path and path[: len(p)] != p]
        more = itertools.chain([()], ((c,) for c in further), itertools.combinations(further, 2))
        for extra in more:
            values = alone
            for place, value in extra:
                values = with_value(values, place, value)
            if accepted(values, surroundings) is not None:
                yield values
                break


def idle_settings(objective, surroundings, seen):
    """The accepted values that change nothing; `seen` collects the settings that do change something."""
    idle, done = [], set()
    for values in contexts(objective, surroundings):
        base = accepted(values, surroundings)
        if base is None:
            continue
        before = update(base, surroundings)
        for path, annotation, value in leaves(objective, values):
            for other in tries(annotation, value):
                changed = with_value(values, path, other)
                if (key := repr(changed)) in done:
                    continue
                done.add(key)
                now = accepted(changed, surroundings)
                if now is None:
                    continue
                after = update(now, surroundings)
                if after.shape == before.shape and (after - before).norm() <= 1e-9 * before.norm():
                    idle.append((".".join(map(str, path)), value, other, values))
                else:
                    seen.add(tuple(p for p in path if isinstance(p, str)))
    return idle


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_setting_changes_the_update_or_is_refused(name):
    objective, seen = OBJECTIVES[name], set()
    for surroundings in SURROUNDINGS:
        assert idle_settings(objective, surroundings, seen) == [], surroundings
    paths = [path for path, *_ in leaves(objective, objective().model_dump())]
    every = {path for path in paths if path[0] not in shared_with_earlier(objective)}
    assert {tuple(part for part in path if isinstance(part, str)) for path in every} <= seen
