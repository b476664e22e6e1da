import copy
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sluice.catalog.decoding import Decoding
from sluice.catalog.errors import RunError
from sluice.learner.batches.batch import LoggedBatch
from sluice.learner.gate.settings import GateSettings
from sluice.learner.objectives.adagrpo import AdaGrpoLoss
from sluice.learner.objectives.grpo import GrpoLoss
from sluice.learner.objectives.nll import NllLoss
from sluice.learner.objectives.settings.objective import AdaGrpoObjective, GrpoSettings
from sluice.learner.scoring.shared_prefix import BranchScorer
from sluice.learner.settings import LearnerSettings
from sluice.learner.training.checkpoint import read_rank, write_rank
from sluice.learner.training.micro_batches import micro_batches
from sluice.learner.training.objective import build_objective
from sluice.learner.training.optimizer import lr_factor
from sluice.learner.training.step import LearnerStep
from tests.unit.learner.learner_cases import in_double, objective_input, random_batch, tiny_policy

SETTINGS = LearnerSettings(prompts_per_step=4, warmup_steps=0, lr=1e-2, max_grad_norm=1e9)
NO_KL = GrpoSettings(kl_beta=0)


def half_open(**grpo):
    """A gate that admits every other prompt of `half_trusted`."""
    return AdaGrpoLoss(1.0, GrpoSettings(**grpo), GateSettings(parts="discriminability"))


def half_trusted(prompts=4, **changes):
    """The ranker puts GT first everywhere, and every other prompt's distractor before it."""
    distractors = torch.where(torch.arange(prompts) % 2 == 0, -100.0, 100.0)
    values = {"target_scores_B": torch.full((prompts,), 50.0), "distractor_scores_BJ": distractors[:, None]}
    return random_batch(prompts=prompts, **(values | changes))


def learner_of(objective, settings=SETTINGS, model=None, **parts):
    model = in_double(tiny_policy().model) if model is None else model
    if objective.needs_reference:
        parts.setdefault("reference", in_double(tiny_policy(seed=1).model))
    return LearnerStep(model, objective=objective, settings=settings, **parts)


def weights_of(learner):
    return {name: value.detach().clone() for name, value in learner.model.named_parameters()}


def captured_gradients(learner):
    """The gradients that each optimizer step is given, filled in as the learner runs."""
    steps = []

    def capture(optimizer, _args, _kwargs):
        steps.append([parameter.grad.clone() for parameter in learner.model.parameters()])

    learner.optimizer.register_step_pre_hook(capture)
    return steps


def differ(first, second):
    return max((first[name] - second[name]).abs().max().item() for name in first)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("constrained", [False, True])
def test_micro_batches_give_the_gradient_and_metrics_of_the_full_batch(size, constrained):
    batch = half_trusted(constrained=constrained, temperature=0.8)
    found = {}
    for prompts in (None, size):
        learner = learner_of(half_open(), SETTINGS.model_copy(update={"micro_batch_prompts": prompts}))
        steps = captured_gradients(learner)
        found[prompts] = learner.update(batch), steps[0]
    assert found[None][0]["gate_rate"] == 0.5
    for full, parts in zip(found[None][1], found[size][1], strict=True):
        torch.testing.assert_close(parts, full, atol=1e-10, rtol=1e-10)
    assert found[size][0] == pytest.approx(found[None][0], abs=1e-10)


def test_no_step_waits_for_plans_of_cudnn():
    torch.backends.cuda.enable_cudnn_sdp(True)
    learner_of(half_open(kl_beta=0))
    assert not torch.backends.cuda.cudnn_sdp_enabled()


def test_updates_on_one_batch_keep_the_log_probs_of_its_start():
    batch = half_trusted()
    settings = SETTINGS.model_copy(update={"updates_per_batch": 3, "micro_batch_prompts": 3})
    learner = learner_of(half_open(old_policy="batch_start", kl_beta=0.1), settings)
    model = copy.deepcopy(learner.model)
    reference = BranchScorer(in_double(tiny_policy(seed=1).model))
    metrics = learner.update(batch)

    objective = half_open(old_policy="batch_start", kl_beta=0.1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0)
    inputs = (batch.history_BT, batch.history_lengths_B, objective.select_branches(batch).branches_BSL)
    with torch.no_grad():
        start, fixed = BranchScorer(model)(*inputs), reference(*inputs).log_probs_BSL
    ratios = []
    for _ in range(3):
        terms = objective(objective_input(batch, BranchScorer(model)(*inputs), start, fixed))
        ratios.append((terms.metrics["ratio_mean"][0] / terms.metrics["ratio_mean"][1]).item())
        optimizer.zero_grad()
        terms.loss.backward()
        optimizer.step()
    assert ratios[0] == 1 and abs(ratios[2] - 1) > 1e-4
    assert metrics["ratio_mean"] == pytest.approx(sum(ratios) / 3, abs=1e-8)
    assert differ(weights_of(learner), dict(model.named_parameters())) < 1e-6


def test_the_batch_start_is_no_part_of_the_gradient():
    learner = learner_of(GrpoLoss(GrpoSettings(kl_beta=0, old_policy="batch_start")))
    steps = captured_gradients(learner)
    metrics = learner.update(random_batch())
    assert metrics["ratio_mean"] == 1
    assert max(gradient.abs().max() for gradient in steps[0]) > 1e-3


def test_the_reference_stays_and_the_kl_starts_at_zero():
    learner = learner_of(half_open(kl_beta=0.1), reference=in_double(tiny_policy().model))
    before = {name: value.clone() for name, value in learner.reference.values.items()}
    kls = [learner.update(half_trusted(seed=seed))["kl"] for seed in range(3)]
    assert kls[0] == 0 and kls[2] > 1e-6
    assert set(before) == set(weights_of(learner))
    assert all(torch.equal(value, before[name]) for name, value in learner.reference.values.items())


def test_the_reference_starts_as_the_policy_and_is_dropped_when_the_objective_needs_none():
    learner = LearnerStep(in_double(tiny_policy().model), objective=half_open(kl_beta=0.1), settings=SETTINGS)
    assert learner.update(half_trusted())["kl"] == 0
    assert learner.update(half_trusted())["kl"] > 0
    for objective in (NllLoss(), half_open(kl_beta=0)):
        assert learner_of(objective, reference=tiny_policy().model).reference is None


def test_nll_needs_no_rollouts_and_learns():
    groups = random_batch()
    batch = LoggedBatch(
        history_BT=groups.history_BT, history_lengths_B=groups.history_lengths_B, target_BL=groups.target_BL
    )
    learner = learner_of(NllLoss(), model=tiny_policy().model)
    losses = [learner.update(batch)["nll"] for _ in range(30)]
    assert losses[0] == pytest.approx(3 * 2.70805, abs=0.1)  # 3 log 15: nothing is known
    assert losses[-1] < 0.5 * losses[0]


def test_grpo_raises_the_likelihood_of_the_rewarded_and_lowers_that_of_the_others():
    batch = random_batch(candidates=2, candidate_items_BK=torch.tensor([[1, 2]] * 4))
    batch = type(batch)(**{**vars(batch), "candidate_scores_BK": torch.tensor([[1.0, 0.0]] * 4)})
    objective = GrpoLoss(GrpoSettings(kl_beta=0, old_policy="batch_start"))
    learner = learner_of(objective, SETTINGS.model_copy(update={"lr": 1e-3}), model=tiny_policy().model)
    inputs = (batch.history_BT, batch.history_lengths_B, batch.candidates_BKL)
    before = BranchScorer(learner.model)(*inputs).log_probs_BSL.sum(-1).detach()
    for _ in range(5):
        learner.update(batch)
    moved = BranchScorer(learner.model)(*inputs).log_probs_BSL.sum(-1).detach() - before
    assert (moved[:, 0] > 0.01).all() and (moved[:, 1] < -0.01).all()


def test_gradient_norm_is_reported_before_and_clipped_after():
    norms = {}
    for bound in (1e9, 0.5):
        learner = learner_of(half_open(kl_beta=0), SETTINGS.model_copy(update={"max_grad_norm": bound}))
        steps = captured_gradients(learner)
        metrics = learner.update(half_trusted())
        norms[bound] = (
            metrics["grad_norm"],
            torch.cat([gradient.flatten() for gradient in steps[0]]).norm().item(),
        )
    assert norms[1e9][0] == pytest.approx(norms[1e9][1]) == norms[0.5][0]
    assert norms[0.5][0] > 0.5 and norms[0.5][1] == pytest.approx(0.5, rel=1e-4)


def test_a_gradient_that_is_not_finite_is_an_error_and_no_step():
    batch = random_batch()
    batch.candidate_scores_BK[0, 0] = torch.nan  # an item that the ranker did not score
    learner = learner_of(GrpoLoss(NO_KL))
    before = weights_of(learner)
    with pytest.raises(RunError, match=r"learner step 0 is nan.*learner\.lr 0\.01"):
        learner.update(batch)
    assert differ(before, weights_of(learner)) == 0
    assert all(parameter.grad is None for parameter in learner.model.parameters())
    moments = [value for state in learner.optimizer.state.values() for value in state.values()]
    assert moments and not any(value.any() for value in moments)


def test_a_step_after_one_that_was_not_taken_is_as_if_it_had_not_been():
    broken, batch = random_batch(), random_batch()
    broken.candidate_scores_BK[0, 0] = torch.nan
    one, other = learner_of(GrpoLoss(NO_KL)), learner_of(GrpoLoss(NO_KL))
    with pytest.raises(RunError):
        one.update(broken)
    assert one.update(batch) == pytest.approx(other.update(batch), rel=0, abs=0, nan_ok=True)
    assert differ(weights_of(one), weights_of(other)) == 0


class HostReads(TorchDispatchMode):
    """Counts what makes the host wait for a number of a device: `item()`, and tests such as `if tensor:`."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


def test_a_step_reads_no_number_of_the_device_before_its_metrics():
    learner = learner_of(GrpoLoss(NO_KL), SETTINGS.model_copy(update={"updates_per_batch": 3}))
    with HostReads() as reads:
        learner.update(random_batch())
    assert reads.count == 1  # the longest history, of the batch that still is the host's


def test_a_mean_over_nothing_is_nan():
    batch = random_batch(distractor_scores_BJ=torch.full((4, 2), 100.0))
    learner = learner_of(AdaGrpoLoss(1.0, NO_KL, GateSettings()))
    metrics = learner.update(batch)
    assert metrics["gate_rate"] == 0 and metrics["reward_admitted"] != metrics["reward_admitted"]
    assert metrics["loss"] == pytest.approx(metrics["nll"])


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        ("constant", [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("cosine", [0.25, 0.5, 0.75, 1.0, 1.0, 0.8535534, 0.5, 0.1464466, 0.0]),
    ],
)
def test_lr_factor(schedule, factors):
    settings = LearnerSettings(warmup_steps=4, steps=8, schedule=schedule)
    assert [lr_factor(step, settings) for step in range(9)] == pytest.approx(factors, abs=1e-7)


def test_the_schedule_counts_batches():
    settings = SETTINGS.model_copy(update={"warmup_steps": 4, "updates_per_batch": 2})
    learner = learner_of(NllLoss(), settings)
    assert [learner.update(random_batch())["lr"] for _ in range(6)] == pytest.approx(
        [0.0025, 0.005, 0.0075, 0.01, 0.01, 0.01]
    )
    assert learner.step == 6


def test_only_matrices_decay():
    learner = learner_of(NllLoss(), SETTINGS.model_copy(update={"weight_decay": 0.5}))
    decays = {
        id(parameter): group["weight_decay"]
        for group in learner.optimizer.param_groups
        for parameter in group["params"]
    }
    assert len(decays) == len(list(learner.model.parameters()))
    for name, parameter in learner.model.named_parameters():
        assert decays[id(parameter)] == (0.0 if "norm" in name else 0.5), name


def noisy_policy():
    model = tiny_policy().model
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    return model


def test_dropout_of_the_base_is_off_unless_asked_for():
    batch = random_batch()
    for dropout, same in ((0.0, True), (0.1, False)):
        losses = {
            learner_of(
                NllLoss(), SETTINGS.model_copy(update={"dropout": dropout, "lr": 1e-30}), model=noisy_policy()
            ).update(batch)["loss"]
            for _ in range(3)
        }
        assert (len(losses) == 1) is same


def scored_branches(learner):
    """(branches per prompt, whether with dropout) of each forward, filled in as the learner runs."""
    forwards = []

    def note(_module, inputs, _output):
        forwards.append((inputs[2].shape[1], learner.model.training))

    learner._scorer.register_forward_hook(note)
    return forwards


def gate_of(**gate):
    return AdaGrpoLoss(1.0, NO_KL, GateSettings(**({"tau": 0.5} | gate)))


@pytest.mark.parametrize("constrained", [False, True])
@pytest.mark.parametrize("prompts_at_once", [None, 5])
def test_the_gate_is_decided_without_dropout(constrained, prompts_at_once):
    batch = random_batch(prompts=12, constrained=constrained)
    batch = replace(batch, behaviour_log_probs_BKL=batch.behaviour_log_probs_BKL * 0.9)
    settings = SETTINGS.model_copy(update={"micro_batch_prompts": prompts_at_once})
    ranks = []
    for dropout in (0.0, 0.5, 0.5):
        learner = learner_of(
            gate_of(), settings.model_copy(update={"dropout": dropout}), model=in_double(noisy_policy())
        )
        learner.model.train()  # whatever mode it was left in
        forwards = scored_branches(learner)
        metrics = learner.update(batch)
        ranks.append((metrics["policy_rank"], metrics["difficulty"]))
        parts = 1 if prompts_at_once is None else 3
        assert forwards == ([(1, False)] * parts if dropout else []) + [(5, dropout > 0)] * parts
    assert ranks[0] == ranks[1] == ranks[2] and 1 < ranks[0][0] < 5


@pytest.mark.parametrize(
    ("objective", "kind"),
    [
        (NllLoss(), "sample"),
        (GrpoLoss(NO_KL), "sample"),
        (gate_of(parts="discriminability"), "sample"),
        (AdaGrpoLoss(1.0, NO_KL, GateSettings(mode="random", random_rate=0.5)), "sample"),
        (gate_of(), "beam"),
    ],
)
def test_there_is_no_further_forward_where_no_gate_looks_at_the_policy(objective, kind):
    learner = learner_of(objective, SETTINGS.model_copy(update={"dropout": 0.5}))
    forwards = scored_branches(learner)
    learner.update(random_batch(decoding=Decoding(kind=kind, candidates=4)))
    assert len(forwards) == 1


def test_resuming_continues_as_if_nothing_had_happened(tmp_path):
    settings = SETTINGS.model_copy(update={"dropout": 0.1, "warmup_steps": 5})
    torch.manual_seed(0)
    learner = learner_of(half_open(kl_beta=0), settings, model=noisy_policy())
    for seed in range(2):
        learner.update(half_trusted(seed=seed))
    write_rank(tmp_path, 0, learner.state_dict())
    model = copy.deepcopy(learner.model)
    expected = [learner.update(half_trusted(seed=seed)) for seed in range(2, 4)]

    torch.manual_seed(99)
    again = learner_of(half_open(kl_beta=0), settings, model=model)
    again.load_state_dict(read_rank(tmp_path, 0))
    assert again.step == 2
    assert [again.update(half_trusted(seed=seed)) for seed in range(2, 4)] == expected
    assert differ(weights_of(learner), weights_of(again)) == 0


def test_a_resumed_learner_takes_rate_schedule_and_decay_of_its_settings():
    torch.manual_seed(0)
    learner = learner_of(half_open(kl_beta=0), SETTINGS, model=noisy_policy())
    for seed in range(2):
        learner.update(half_trusted(seed=seed))
    changes = {"lr": 4e-3, "weight_decay": 0.25, "schedule": "cosine", "steps": 4}
    again = learner_of(half_open(kl_beta=0), SETTINGS.model_copy(update=changes), model=noisy_policy())
    again.load_state_dict(learner.state_dict())
    assert [group["weight_decay"] for group in again.optimizer.param_groups] == [0.25, 0.0]
    rates = [again.update(half_trusted(seed=seed))["lr"] for seed in range(2, 4)]
    # half a cosine over four steps, at its third and fourth: (1 + cos(pi / 2)) / 2 and
    # (1 + cos(3 pi / 4)) / 2
    assert rates == pytest.approx([2e-3, 4e-3 * 0.1464466], rel=1e-5)


@pytest.mark.parametrize("kl_beta", [0, 0.1])
def test_bfloat16_computes_close_to_float32_and_keeps_everything_else_in_it(kl_beta):
    found = {}
    for precision in ("float32", "bfloat16"):
        settings = SETTINGS.model_copy(update={"precision": precision})
        model = tiny_policy(hidden_size=32).model
        learner = learner_of(
            half_open(kl_beta=kl_beta), settings, model=model, reference=tiny_policy(1, 32).model
        )
        steps = captured_gradients(learner)
        kinds = set()
        hook = model.model.layers[0].mlp.down_proj.register_forward_hook(
            lambda *call, kinds=kinds: kinds.add(call[2].dtype)
        )
        metrics = learner.update(half_trusted())
        hook.remove()
        assert kinds == {getattr(torch, precision)}
        state = [value for values in learner.optimizer.state.values() for value in values.values()]
        kept = [
            *model.parameters(),
            *steps[0],
            *state,
            *(learner.reference.values.values() if kl_beta else ()),
        ]
        assert {value.dtype for value in kept} == {torch.float32}
        found[precision] = metrics, torch.cat([gradient.flatten() for gradient in steps[0]])
    (exact, exact_gradient), (half, half_gradient) = found.values()
    assert half["loss"] == pytest.approx(exact["loss"], rel=1e-2) and half["loss"] != exact["loss"]
    assert (half_gradient - exact_gradient).norm() < 0.03 * exact_gradient.norm()


def test_losses_are_float32_under_bfloat16():
    kinds = []

    class Watched(NllLoss):
        def __call__(self, inputs):
            terms = super().__call__(inputs)
            log_probs_BSL = inputs.scores.log_probs_BSL
            kinds.extend([log_probs_BSL.dtype, terms.loss.dtype, torch.is_autocast_enabled("cpu")])
            return terms

    settings = SETTINGS.model_copy(update={"precision": "bfloat16"})
    learner_of(Watched(), settings, model=tiny_policy().model).update(random_batch())
    assert kinds == [torch.float32, torch.float32, False]


def test_float32_is_the_computation_without_autocast_to_the_bit():
    batch = half_trusted()
    learner = learner_of(half_open(kl_beta=0), model=tiny_policy().model)
    model = copy.deepcopy(learner.model)
    steps = captured_gradients(learner)
    learner.update(batch)
    part = micro_batches(batch, None, torch.device("cpu"))[0]
    objective = half_open(kl_beta=0)
    branches_BSL = objective.select_branches(part).branches_BSL
    scores = BranchScorer(model)(part.history_BT, part.history_lengths_B, branches_BSL)
    objective(objective_input(part, scores, scores.detach(), None)).loss.backward()
    assert all(torch.equal(p.grad, found) for p, found in zip(model.parameters(), steps[0], strict=True))


def test_default_settings_build_a_learner_that_trains():
    learner = learner_of(build_objective(AdaGrpoObjective()), LearnerSettings(), model=tiny_policy().model)
    expected = {
        "loss", "nll", "grpo", "kl", "gate_rate", "difficulty", "discriminability", "ratio_mean",
        "clip_share", "entropy", "reward_admitted", "reward_refused", "invalid_share", "hit_share",
        "mismatch", "lr", "grad_norm",
    }  # fmt: skip
    assert expected <= set(learner.update(half_trusted()))


def averaging(decay=0.75):
    return SETTINGS.model_copy(update={"average_decay": decay, "steps": 4})


def test_the_average_is_that_of_the_weights_after_every_step():
    learner = learner_of(half_open(kl_beta=0), averaging())
    expected = weights_of(learner)
    for seed in range(3):
        learner.update(half_trusted(seed=seed))
        expected = {name: 0.75 * value + 0.25 * weights_of(learner)[name] for name, value in expected.items()}
    trained = weights_of(learner)
    with learner.averaged():
        torch.testing.assert_close(weights_of(learner), expected)
        saved = learner.plain_weights().policy(like=tiny_policy())
    assert differ(weights_of(learner), trained) == 0
    # What was read while the average was in place does not change with the model.
    torch.testing.assert_close(dict(saved.model.named_parameters()), expected, check_dtype=False)
    assert not learner.in_policy_directory


def test_without_an_average_the_last_weights_are_judged():
    learner = learner_of(half_open(kl_beta=0))
    learner.update(half_trusted())
    trained = weights_of(learner)
    with learner.averaged():
        assert differ(weights_of(learner), trained) == 0
    assert learner.in_policy_directory


def test_a_resumed_learner_goes_on_with_weights_and_average(tmp_path):
    learner = learner_of(half_open(kl_beta=0), averaging())
    learner.update(half_trusted(seed=0))
    write_rank(tmp_path, 0, learner.state_dict())
    learner.update(half_trusted(seed=1))

    # The policy of a checkpoint is the average, so the weights themselves come from the worker's part.
    again = learner_of(half_open(kl_beta=0), averaging(), model=in_double(tiny_policy(seed=5).model))
    again.load_state_dict(read_rank(tmp_path, 0))
    again.update(half_trusted(seed=1))
    assert differ(weights_of(learner), weights_of(again)) == 0
    with learner.averaged(), again.averaged():
        assert differ(weights_of(learner), weights_of(again)) == 0
