"""An optimizer step on a GPU: the one of the CPU, without waiting for the device before the gradient."""

import copy
import warnings
from contextlib import contextmanager

import pytest
import torch

from sluice.learner.policy.packed_weights import pack_weights
from tests.unit.learner.learner_cases import in_double, tiny_policy
from tests.unit.learner.training.test_device_waits import CASES, gradient
from tests.unit.learner.training.test_step import (
    SETTINGS,
    differ,
    half_open,
    half_trusted,
    learner_of,
    weights_of,
)


@contextmanager
def waits_are_errors():
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@contextmanager
def counted_waits():
    """The warnings of what waits for the device, filled in as the context runs."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            waits = []
            yield waits
        waits += [str(one.filename) for one in caught if "synchronizing CUDA operation" in str(one.message)]
    finally:
        torch.cuda.set_sync_debug_mode("default")


def on_gpu(settings=SETTINGS, **grpo):
    return learner_of(half_open(**grpo), settings, model=in_double(tiny_policy().model).cuda())


@pytest.mark.parametrize("constrained", [False, True])
def test_updates_are_those_of_the_cpu(constrained):
    settings = SETTINGS.model_copy(
        update={"updates_per_batch": 2, "micro_batch_prompts": 3, "max_grad_norm": 1.0}
    )
    here, there = learner_of(half_open(kl_beta=0.1), settings), on_gpu(settings, kl_beta=0.1)
    for seed in range(3):
        batch = half_trusted(constrained=constrained, temperature=0.8, seed=seed)
        assert there.update(batch) == pytest.approx(here.update(batch), rel=1e-5, abs=1e-6, nan_ok=True)
    moved = {name: value.cpu() for name, value in weights_of(there).items()}
    assert differ(moved, weights_of(here)) < 1e-5
    assert (
        pack_weights(there.model.named_parameters(), 1).checksums == pack_weights(moved.items(), 1).checksums
    )


@pytest.mark.parametrize("name", CASES)
def test_nothing_before_the_gradient_waits_for_the_gpu(name):
    _, backward = gradient(name, torch.device("cuda"))
    backward()  # the first one loads kernels
    with waits_are_errors():
        backward()


def test_an_update_waits_for_its_metrics_alone():
    settings = SETTINGS.model_copy(update={"micro_batch_prompts": 2})
    learner, batch = on_gpu(settings), half_trusted()
    learner.update(batch)
    with counted_waits() as waits:
        learner.update(batch)
    assert len(waits) == 1, waits


def test_half_precision_leaves_the_weights_in_full():
    learner = learner_of(
        half_open(), SETTINGS.model_copy(update={"precision": "bfloat16"}), model=tiny_policy().model.cuda()
    )
    full = learner_of(half_open(), model=tiny_policy().model.cuda())
    batch = half_trusted()
    half_loss, full_loss = (one.update(batch)["loss"] for one in (learner, full))
    assert half_loss == pytest.approx(full_loss, rel=2e-2) and half_loss != full_loss
    assert all(parameter.dtype == torch.float32 for parameter in learner.model.parameters())


def test_a_resumed_step_goes_on_as_if_it_had_not_stopped():
    learner = on_gpu()
    learner.update(half_trusted())
    again = on_gpu()
    again.model.load_state_dict(learner.model.state_dict())
    again.load_state_dict(copy.deepcopy(learner.state_dict()))
    for one in (learner, again):
        one.update(half_trusted(seed=1))
    assert differ(weights_of(learner), weights_of(again)) == 0
