"""The reference policy: what it is after each step, that it leaves the policy alone, and that a checkpoint
keeps it.
"""

import copy

import pytest
import torch
from torch import nn

from sluice.catalog.errors import RunError
from sluice.learner.objectives.grpo import GrpoLoss
from sluice.learner.objectives.settings.objective import GrpoSettings
from sluice.learner.policy.reference import Reference
from sluice.learner.settings import EmaReference, FrozenReference, LearnerSettings, SyncedReference
from sluice.learner.training.checkpoint import read_rank, write_rank
from sluice.learner.training.step import LearnerStep
from tests.unit.learner.learner_cases import in_double, random_batch, tiny_policy


def scalar(value: float) -> nn.Module:
    module = nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        module.weight.fill_(value)
    return module


def followed(settings, values):
    """The reference's value after each step in which the policy's only weight, 1 at the start, becomes the
    next value, and its version.
    """
    policy = scalar(1.0)
    reference = Reference(policy, settings)
    found = []
    for step, value in enumerate(values, start=1):
        with torch.no_grad():
            policy.weight.fill_(value)
        reference.follow(step)
        found.append((reference.values["weight"].item(), reference.version))
    assert policy.weight.item() == values[-1]
    return found


def test_a_frozen_reference_stays():
    assert followed(FrozenReference(), [2.0, 3.0]) == [(1.0, 0), (1.0, 0)]


def test_a_synced_reference_is_the_policy_of_the_last_multiple():
    found = followed(SyncedReference(every=2), [2.0, 3.0, 4.0, 5.0, 6.0])
    assert found == [(1.0, 0), (3.0, 2), (3.0, 2), (5.0, 4), (5.0, 4)]


def test_an_averaged_reference_keeps_its_share():
    # 0.75 * 1 + 0.25 * 3, then 0.75 * 1.5 + 0.25 * 5.5
    assert followed(EmaReference(decay=0.75), [3.0, 5.5]) == [(1.5, 1), (2.5, 2)]


def test_it_may_start_as_something_else_and_only_what_is_trained_counts():
    policy = nn.Sequential(scalar(1.0), scalar(2.0))
    policy[0].requires_grad_(False)
    reference = Reference(
        policy, FrozenReference(), {"0.weight": torch.tensor([[7.0]]), "1.weight": torch.ones(1, 1)}
    )
    assert {name: value.tolist() for name, value in reference.values.items()} == {"1.weight": [[1.0]]}


def test_the_policy_is_back_after_its_turn_even_after_an_error():
    policy = tiny_policy().model
    other = tiny_policy(seed=1).model
    before = copy.deepcopy(policy.state_dict())
    reference = Reference(policy, FrozenReference(), dict(other.named_parameters()))
    with pytest.raises(KeyError), reference.in_place():
        assert all(
            torch.equal(value, other.state_dict()[name]) for name, value in policy.state_dict().items()
        )
        raise KeyError
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in reference.values.items())


def learner_with(reference, model=None):
    settings = LearnerSettings(warmup_steps=0, lr=1e-2, max_grad_norm=1e9, reference=reference, dropout=0.1)
    objective = GrpoLoss(GrpoSettings(kl_beta=0.1))
    return LearnerStep(model or in_double(tiny_policy().model), objective=objective, settings=settings)


def figures_of(learner, seeds):
    updates = [learner.update(random_batch(seed=seed)) for seed in seeds]
    return [
        {name: update[name] for name in ("loss", "kl", "grad_norm", "reference_version")}
        for update in updates
    ]


@pytest.mark.parametrize("reference", [FrozenReference(), SyncedReference(every=2), EmaReference(decay=0.5)])
def test_a_resumed_run_goes_on_with_the_same_reference(reference, tmp_path):
    """The checkpoint lies between two syncs, and the model that resumes starts from the run's start, as a
    worker's.
    """
    torch.manual_seed(0)
    learner = learner_with(reference)
    for seed in range(3):
        learner.update(random_batch(seed=seed))
    write_rank(tmp_path, 0, learner.state_dict())
    policy = copy.deepcopy(learner.model.state_dict())
    expected = figures_of(learner, range(3, 6))
    assert expected[0]["kl"] > 0
    assert expected[0]["reference_version"] == {"frozen": 0, "synced": 2, "ema": 3}[reference.type]

    torch.manual_seed(99)
    again = learner_with(reference)
    again.model.load_state_dict(policy)
    again.load_state_dict(read_rank(tmp_path, 0))
    assert figures_of(again, range(3, 6)) == expected
    assert all(
        torch.equal(value, again.reference.values[name]) for name, value in learner.reference.values.items()
    )


def test_dropout_has_no_part_in_the_reference():
    model = in_double(tiny_policy().model)
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    learner = learner_with(FrozenReference(), model)
    learner.update(random_batch())
    learner.model.train()
    first, second = (learner._reference_log_probs([random_batch()])[0] for _ in range(2))
    assert torch.equal(first, second)


def test_resuming_with_another_kind_of_reference_is_refused():
    state = learner_with(EmaReference()).state_dict()
    with pytest.raises(RunError, match="type ema, and this run has synced: resume with the same"):
        learner_with(SyncedReference()).load_state_dict(state)
