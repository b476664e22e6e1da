"""Two learner workers (gloo, two processes) equal one with the whole batch: DDP and FSDP, every part of the
step.
"""

import multiprocessing
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from sluice.catalog.data.dataset import Examples
from sluice.catalog.errors import PolicyError
from sluice.learner import reduction
from sluice.learner.objectives.grpo import GrpoLoss
from sluice.learner.objectives.nll import NllLoss
from sluice.learner.objectives.settings.objective import GrpoSettings
from sluice.learner.objectives.terms.base import Objective, Terms
from sluice.learner.policy.lora import add_adapters
from sluice.learner.policy.packed_weights import pack_one_by_one
from sluice.learner.policy.policy import Policy
from sluice.learner.policy.sharding import shard_scorer
from sluice.learner.reduction import mean_of, reduce_means
from sluice.learner.scoring.shared_prefix import BranchScorer, BranchScores
from sluice.learner.settings import EmaReference, LearnerSettings, LoraSettings
from sluice.learner.training import micro_batches
from sluice.learner.training.checkpoint import read_rank, write_rank
from sluice.learner.training.micro_batches import loss_weights, on_every_parameter
from sluice.learner.training.step import LearnerStep
from sluice.learner.training.validation import equal_share
from tests.unit.learner.learner_cases import in_double, random_batch, tiny_policy

CPU = torch.device("cpu")
SETTINGS = LearnerSettings(prompts_per_step=8, warmup_steps=0, lr=1e-2, max_grad_norm=0.5)
LORA = LoraSettings(rank=3, alpha=6.0)


class ItemsOnly(Objective):
    """The mean log-prob of the candidates that are items: another number of them in every part."""

    needs_values = True  # and the values are in no loss

    def normaliser(self, batch):
        return batch.valid_BK.sum().double()

    def __call__(self, inputs):
        batch = inputs.groups
        log_probs_BK = inputs.scores.log_probs_BSL[:, 1:].sum(dim=-1)
        loss = torch.where(batch.valid_BK, log_probs_BK, 0.0).sum() / self.normaliser(batch).clamp(min=1)
        return Terms(loss=loss, metrics={"nll": mean_of(log_probs_BK, batch.valid_BK)})


class LongOnly(Objective):
    """No loss at all, and no gradient, on parts whose histories are short, as of preferences without a
    pair.
    """

    def __call__(self, inputs):
        batch, log_probs_B = inputs.batch, inputs.scores.target_log_probs_BL.sum(dim=-1)
        long_B = batch.history_lengths_B > 7
        loss = torch.zeros((), dtype=torch.float64)
        if long_B.any():
            loss = log_probs_B[long_B].sum() / batch.prompts
        return Terms(loss=loss, metrics={"nll": mean_of(log_probs_B)})


def batch_of(seed=0):
    """Eight prompts, of which the second half has one item left among all its candidates."""
    batch = random_batch(prompts=8, seed=seed)
    batch.candidate_items_BK[4:] = -1
    batch.candidate_items_BK[5, 0] = 3
    batch.candidate_scores_BK[batch.candidate_items_BK < 0] = float("nan")
    return batch


def half_of(batch, rank):
    values = {
        name: value[rank * 4 : rank * 4 + 4] if isinstance(value, torch.Tensor) else value
        for name, value in vars(batch).items()
    }
    return type(batch)(**values)


def grpo():
    return GrpoLoss(GrpoSettings(kl_beta=0.1, old_policy="batch_start"))


CASES = {
    "float32": (grpo, {"micro_batch_prompts": 3}),  # multiplied by oneDNN, which float64 is not
    "grpo": (grpo, {"micro_batch_prompts": 3, "updates_per_batch": 2, "reference": EmaReference(decay=0.5)}),
    "mass": (ItemsOnly, {"micro_batch_prompts": 3}),
    "partly": (LongOnly, {"micro_batch_prompts": 2}),
    "lora": (grpo, {"micro_batch_prompts": 3, "lora": LORA}),
}


def learner_of(case, wrap=None, **changes):
    objective, settings = CASES[case]
    settings = SETTINGS.model_copy(update=settings | changes)
    model = tiny_policy().model
    if case != "float32":
        model = in_double(model)
    if settings.lora is not None:
        add_adapters(model, settings.lora, tiny_policy().layout, seed=0)
    reference = in_double(tiny_policy(seed=1).model) if case == "grpo" else None
    return LearnerStep(model, objective=objective(), settings=settings, reference=reference, wrap=wrap)


def trained(learner, batches):
    """Metrics of each step and the plain weights after it."""
    metrics = [learner.update(batch) for batch in batches]
    weights = learner.plain_weights()
    names = [name for name, _, _ in weights.shapes()]
    return metrics, dict(zip(names, [value.clone() for value in weights.tensors()], strict=True))


def sharded(scorer):
    return shard_scorer(scorer, CPU)


def join(rank, directory):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{directory}/meet", rank=rank, world_size=2
    )


def ddp_worker(rank, directory):
    join(rank, directory)
    found = {}
    for case in CASES:
        learner = learner_of(case, DistributedDataParallel)
        found[case] = trained(learner, [half_of(batch_of(seed), rank) for seed in range(3)])
    torch.save(found, f"{directory}/rank{rank}.pt")
    torch.distributed.destroy_process_group()


def fsdp_worker(rank, directory):
    """The same, and a checkpoint after two of three steps, taken up by a fresh learner."""
    join(rank, directory)
    halves = [half_of(batch_of(seed), rank) for seed in range(3)]
    found = {}
    for case in CASES:
        learner = learner_of(case, sharded)
        shares = {name: parameter.to_local().numel() for name, parameter in learner.model.named_parameters()}
        first = [learner.update(half) for half in halves[:2]]
        write_rank(Path(directory), rank, learner.state_dict())
        last, weights = trained(learner, halves[2:])
        state = read_rank(Path(directory), rank)
        again = learner_of(case, sharded)
        again.load_state_dict(state)
        resumed, resumed_weights = trained(again, halves[2:])
        assert all(torch.equal(value, resumed_weights[name]) for name, value in weights.items())
        assert [one["grad_norm"] for one in resumed] == [one["grad_norm"] for one in last]
        found[case] = first + last, weights
    sources = sharded_policy(learner, rank)
    torch.save({"found": found, "shares": shares, **sources}, f"{directory}/rank{rank}.pt")
    torch.distributed.destroy_process_group()


def sharded_policy(learner, rank):
    """What rank 0 packs and saves of a sharded policy, and what a use of the model by itself computes."""
    weights = learner.plain_weights()
    batch = batch_of()
    scored = learner.run(
        lambda: learner.model.get_decoder()(batch.history_BT, use_cache=False).last_hidden_state
    )
    if rank > 0:
        weights.join_gathering()
        weights.join_gathering()
        return {"hidden": scored.detach()}
    packed = pack_one_by_one(weights.shapes(), weights.tensors(), version=1)
    policy = weights.policy(like=Policy(model=learner.model, tokenizer=None, layout=None))
    return {"hidden": scored.detach(), "packed": dict(packed.tensors()), "saved": policy.model.state_dict()}


def run_two(worker, directory):
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=worker, args=(rank, str(directory))) for rank in range(2)]
    for process in workers:
        process.start()
    for process in workers:
        process.join(timeout=240)
        if process.is_alive():
            process.kill()
        assert process.exitcode == 0
    return [torch.load(directory / f"rank{rank}.pt") for rank in range(2)]


def assert_equals_one_worker(case, results):
    learner = learner_of(case, micro_batch_prompts=None)
    metrics, weights = trained(learner, [batch_of(seed) for seed in range(3)])
    # Adam divides by what it has seen of a gradient, so single weights of float32 differ by more than their
    # rounding.
    metric_atol, weight_atol = (1e-4, 1e-4) if case == "float32" else (1e-8, 1e-10)
    for found_metrics, found_weights in results:
        for found, expected in zip(found_metrics, metrics, strict=True):
            assert found == pytest.approx(expected, abs=metric_atol, nan_ok=True)
        assert list(found_weights) == list(weights)
        for name, value in found_weights.items():
            torch.testing.assert_close(value, weights[name], atol=weight_atol, rtol=0)
    return learner


def test_two_ddp_workers_equal_one_worker_with_the_whole_batch(tmp_path):
    results = run_two(ddp_worker, tmp_path)
    for case in CASES:
        assert_equals_one_worker(case, [found[case] for found in results])
        weights = [found[case][1] for found in results]
        assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_two_fsdp_workers_equal_one_worker_with_the_whole_batch(tmp_path):
    first, second = run_two(fsdp_worker, tmp_path)
    for case in CASES:
        learner = assert_equals_one_worker(case, [first["found"][case], second["found"][case]])
    for name, parameter in learner.model.named_parameters():
        assert first["shares"][name] + second["shares"][name] == parameter.numel()
    hidden = learner.model.get_decoder()(batch_of().history_BT, use_cache=False).last_hidden_state
    for found in (first, second):
        torch.testing.assert_close(found["hidden"], hidden.detach(), atol=1e-9, rtol=0)
    assert "packed" not in second
    for name, value in first["found"][case][1].items():
        assert torch.equal(first["packed"][name], value) and torch.equal(first["saved"][name], value)


@pytest.fixture
def alone(tmp_path):
    """A process group of this process alone: every exchange happens, with nobody."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("case", ["grpo", "partly", "lora"])
def test_a_sharded_learner_equals_a_plain_one(alone, case):
    learner = learner_of(case, sharded)
    found = [trained(learner, [batch_of(seed) for seed in range(2)])]
    hidden = learner.run(
        lambda: learner.model.get_decoder()(batch_of().history_BT, use_cache=False).last_hidden_state
    )
    torch.distributed.destroy_process_group()
    plain = learner_of(case)
    expected = trained(plain, [batch_of(seed) for seed in range(2)])
    assert found[0][0] == [pytest.approx(one, abs=1e-8, nan_ok=True) for one in expected[0]]
    for name, value in found[0][1].items():
        torch.testing.assert_close(value, expected[1][name], atol=1e-10, rtol=0)
    same = plain.model.get_decoder()(batch_of().history_BT, use_cache=False).last_hidden_state
    torch.testing.assert_close(hidden, same, atol=1e-9, rtol=0)


def test_a_worker_holds_one_layer_whole_at_a_time(alone):
    learner = learner_of("grpo", sharded)
    units = [name for name, part in learner._scorer.named_modules() if isinstance(part, FSDPModule)]
    assert units == ["", "scorer.model.model.layers.0", "scorer.model.model.layers.1"]


def test_the_other_workers_mass_and_metrics_count(monkeypatch):
    for module in (micro_batches, reduction):
        monkeypatch.setattr(module, "is_distributed", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: tensor.add_(5))
    parts = [half_of(batch_of(), rank) for rank in range(2)]
    assert loss_weights(ItemsOnly(), parts).tolist() == pytest.approx([12 * 2 / 18, 1 * 2 / 18])
    assert reduce_means({"a": torch.tensor([7.0, 1.0])}) == {"a": 2.0}


def test_a_policy_without_a_list_of_layers_is_not_sharded():
    model = tiny_policy().model
    del model.model.layers
    with pytest.raises(
        PolicyError, match=r"has no list of layers named `layers`; set learner.sharding to ddp"
    ):
        shard_scorer(BranchScorer(model), CPU)


def test_one_worker_has_nobody_to_share_with():
    with pytest.raises(ValidationError, match=r"workers is 1: raise workers, or set sharding to ddp"):
        LearnerSettings(sharding="fsdp")
    assert LearnerSettings(sharding="fsdp", workers=2).sharding == "fsdp"


def test_parts_count_by_their_normaliser():
    parts = [half_of(batch_of(), rank) for rank in range(2)]
    normalisers = [float(ItemsOnly().normaliser(part)) for part in parts]
    assert normalisers == [12, 1]
    assert loss_weights(ItemsOnly(), parts).tolist() == pytest.approx([12 / 13, 1 / 13])
    assert loss_weights(NllLoss(), parts).tolist() == [0.5, 0.5]
    for part in parts:
        part.candidate_items_BK.fill_(-1)
    assert loss_weights(ItemsOnly(), parts).tolist() == [0, 0]


def test_a_loss_without_a_gradient_gets_a_zero_one(monkeypatch):
    def scores_of(x):
        return BranchScores(torch.stack([x[0], torch.tensor(-torch.inf)]), x[:1], x.detach(), x[1:])

    x = torch.tensor([1.0, 2.0], requires_grad=True)
    loss = on_every_parameter(torch.tensor(3.0), scores_of(x))
    loss.backward()
    assert loss == 3 and x.grad.tolist() == [0, 0]

    y = torch.tensor([1.0, 2.0], requires_grad=True)
    for together, reached in ((False, None), (True, 0.0)):
        monkeypatch.setattr(micro_batches, "is_distributed", lambda together=together: together)
        value = torch.zeros((), requires_grad=True)
        on_every_parameter(3 * y[0], scores_of(torch.stack([y[0].detach(), value]))).backward()
        assert value.grad == reached
    assert y.grad.tolist() == [6, 0]


def test_shares_of_the_users_have_one_size():
    examples = Examples(users=torch.arange(10, 15).numpy(), positions=torch.arange(5).numpy())
    shares = [equal_share(examples, rank, 3) for rank in range(3)]
    assert [share.users.tolist() for share in shares] == [[10, 13], [11, 14], [12, 10]]
    assert shares[2].positions.tolist() == [2, 0]
    assert equal_share(examples, 0, 1).users.tolist() == [10, 11, 12, 13, 14]
