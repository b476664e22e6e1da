"""Nothing of a step waits for the device before the gradient is there, whatever the objective."""

import pytest
import torch
from torch.overrides import TorchFunctionMode

from sluice.learner.objectives.nll import NllLoss
from sluice.learner.scoring.shared_prefix import BranchScorer
from sluice.learner.training.micro_batches import loss_weights, micro_batches, on_every_parameter
from tests.unit.learner.learner_cases import objective_input, tiny_policy
from tests.unit.learner.training import test_group_objectives_step as of_groups
from tests.unit.learner.training import test_preference_step as of_preferences
from tests.unit.learner.training.test_step import half_open, half_trusted

CASES = {
    "nll": (NllLoss, half_trusted),
    "adagrpo": (lambda: half_open(kl_beta=0.1), half_trusted),
    "constrained": (lambda: half_open(kl_beta=0.1), lambda: half_trusted(constrained=True, temperature=0.8)),
    **{
        name: (lambda name=name: of_groups.objective_of(name), lambda name=name: of_groups.batch_for(name))
        for name in of_groups.OBJECTIVES
    },
    **{
        name: (lambda objective=objective: objective, of_preferences.uneven_batch)
        for name, objective in of_preferences.OBJECTIVES.items()
    },
}


def gradient(name, device):
    """A policy on `device` with the gradient of one update, by way of what `LearnerStep.update` does until
    then.
    """
    objective, batch = (make() for make in CASES[name])
    policy = tiny_policy()
    head = torch.nn.Linear(policy.model.config.hidden_size, 1) if objective.needs_values else None
    scorer = BranchScorer(policy.model, head).to(device)

    def backward():
        parts = micro_batches(batch, 3, device)
        for weight, part in zip(loss_weights(objective, parts), parts, strict=True):
            inputs, lengths = objective.select_branches(part), part.history_lengths_B.tolist()
            scores = scorer(
                part.history_BT, lengths, inputs.branches_BSL, inputs.allowed_BSLV, inputs.decoding
            )
            start = scores.detach()
            terms = objective(
                objective_input(
                    part, scores, start, start.log_probs_BSL if objective.needs_reference else None
                )
            )
            (on_every_parameter(terms.loss, scores) * weight).backward()

    return scorer, backward


class NoCopyIsWaitedFor(TorchFunctionMode):
    """Refuses what copies numbers of the host to the device and waits: `new_tensor` above all, and a plain
    `to`.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and made.device.type == "meta":
            name = getattr(function, "__name__", "")
            assert name not in ("tensor", "as_tensor", "new_tensor"), (
                f"{name} waits for the copy of its numbers"
            )
            moved = name in ("to", "cuda") and args[0].device.type == "cpu"
            assert not moved or (kwargs or {}).get("non_blocking", False), f"{name} waits for its copy"
        return made


@pytest.mark.parametrize("name", CASES)
def test_nothing_before_the_gradient_waits_for_the_device(name):
    """The meta device has no data: whatever asks for some, as for a number or for the places of a mask,
    fails.
    """
    scorer, backward = gradient(name, torch.device("meta"))
    with NoCopyIsWaitedFor():
        backward()
    trained = [parameter for key, parameter in scorer.named_parameters() if not key.startswith("value_head")]
    assert all(parameter.grad.device.type == "meta" for parameter in trained)
