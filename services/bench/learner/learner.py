"""`sluice bench learner`: prompts per second of the optimizer step, shared-prefix against one row per branch.

A step is forward, NLL + GRPO, backward, clipping and AdamW, on the same batch and from the same parameters;
before anything is reported the sides' first losses are compared. The shared-prefix side is
`LearnerStep.update` itself; the others are in `learner_sides`. The model is the default fresh policy (Qwen3
architecture, 4 layers, d = 128, 4 heads, feed-forward 384) with four code levels of 256, 1,027 tokens in all;
float32. Items have L = 4 tokens. The lengths of a batch's B histories are the middles of B equal parts of
T/2..3T/2, so they are mixed and their mean is T; with B = 1 the history has T tokens. Every side works in
micro-batches of at most `TOKENS` padded tokens, in order of length.

Figures are medians of `repeats` steps in alternating order, of three if quick. `peak_share` and
`peak_share_ratio` beside the rows are the lowest of theirs. On a GPU the model is
`sluice.services.bench.support.device.GPU_POLICY`, and prompts and tokens per forward are `ON_GPU` times as
many. Fields of a row:

    speedup              shared_prefix_prompts_per_s / per_sequence_prompts_per_s
    speedup_over_trl     shared_prefix_prompts_per_s / trl_prompts_per_s
    floor_share          speedup / (P / F), with P = (K+1)(T+L) positions per prompt of one row per branch and
                         F = T + (K+1)L those of the floor, where each history and each branch token is
                         computed once. Above 1: less than the floor was computed (a branch's last token is
                         not fed, most of the last layer is not needed for histories), or other costs than
                         positions were saved
    peak_share           FLOP/s of the shared-prefix step / the matmul peak measured beside it
    plain_peak_share     the same of a plain next-token step of the model on full rows of T+L tokens
    peak_share_ratio     peak_share / plain_peak_share

FLOPs count the products that are needed, three times a forward's (one for the forward, two for the backward),
with two FLOPs per multiply-add. In a forward each token costs the layers' weights, q and o: 2 D H d, k and v:
2 D G d, MLP: 3 D D_ff multiply-adds; each pair of a query and a key it sees costs 2 H d; each predicted
distribution D V. In the last layer of the shared prefix only k and v count for tokens that predict nothing.
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from sluice.catalog.decoding import Decoding
from sluice.catalog.errors import RunError
from sluice.learner.batches.batch import GroupBatch
from sluice.learner.kernels.onednn import use_onednn_matmul
from sluice.learner.objectives.settings.objective import GrpoSettings, MixtureObjective
from sluice.learner.policy.policy import build_policy, move_model
from sluice.learner.settings import LearnerSettings
from sluice.learner.training.objective import build_objective
from sluice.learner.training.step import LearnerStep
from sluice.services.bench.harness import (
    BenchOptions,
    matmul_gflops,
    median_seconds,
    print_note,
    time_alternately,
)
from sluice.services.bench.learner.learner_sides import PlainSide, RowSide, left_padded, right_padded
from sluice.services.bench.support import device

LEVELS, CODES = 4, 256
TOKENS = 2048  # padded tokens per forward, on a CPU
ON_GPU = 32  # times as many of these, and of prompts, on a GPU
# (K, T) -> prompts of a step
PROMPTS = {
    (4, 50): 32,
    (4, 200): 16,
    (4, 800): 4,
    (16, 50): 16,
    (16, 200): 8,
    (16, 800): 2,
    (64, 50): 8,
    (64, 200): 4,
    (64, 800): 1,
}
QUICK = ((16, 50), (16, 200))


def run(options: BenchOptions) -> dict[str, Any]:
    """Every pair of K and T, or those of `QUICK` with half as many prompts."""
    rows = []
    for candidates, history in QUICK if options.quick else PROMPTS:
        rows.append(_measure(candidates, history, options))
        print_note(", ".join(f"{name} {value:.4g}" for name, value in rows[-1].items()))
    return {
        "rows": rows,
        **{name: min(row[name] for row in rows) for name in ("peak_share", "peak_share_ratio")},
    }


def _measure(candidates: int, history: int, options: BenchOptions) -> dict[str, float]:
    prompts, tokens = (
        prompts_per_step(candidates, history) // (2 if options.quick else 1),
        tokens_per_forward(),
    )
    positions = (candidates + 1) * (history + LEVELS)
    repeats = min(options.repeats, 3) if options.quick else options.repeats
    policy = build_policy(device.policy_settings(), (CODES,) * LEVELS, 2 * history, options.seed)
    model = move_model(policy.model, device.bench_device())
    use_onednn_matmul(model)  # for all sides: the learner's step does so by itself
    batch = make_batch(prompts, candidates, history, options.seed)
    losses: dict[str, list[float]] = {}

    def recorded(name: str, step: Callable[[], float]) -> Callable[[], None]:
        return lambda: losses.setdefault(name, []).append(step())

    shape = (max(1, tokens // (history + LEVELS)), history + LEVELS)
    plain_tokens = torch.randint(3, model.config.vocab_size, shape, device=device.bench_device())
    sides = {name: recorded(name, step) for name, step in timed_steps(model, batch).items()}
    sides["plain"] = recorded(
        "plain", PlainSide(copy.deepcopy(model), plain_tokens, lr=LearnerSettings().lr).step
    )
    peak = _peak()
    seconds = median_seconds(time_alternately(sides, repeats))
    peak = max(peak, _peak()) * 1e9
    _check_equal({name: losses[name][0] for name in ("shared_prefix", "per_sequence", "trl")})

    rate = {name: prompts / seconds[name] for name in ("shared_prefix", "per_sequence", "trl")}
    speedup = rate["shared_prefix"] / rate["per_sequence"]
    floor = history + (candidates + 1) * LEVELS
    lengths = batch.history_lengths_B.tolist()
    peak_share = shared_prefix_flops(model.config, lengths, candidates + 1) / seconds["shared_prefix"] / peak
    plain_peak_share = plain_flops(model.config, *plain_tokens.shape) / seconds["plain"] / peak
    return {
        "K": candidates,
        "T": history,
        **{f"{name}_prompts_per_s": value for name, value in rate.items()},
        "speedup": speedup,
        "speedup_over_trl": rate["shared_prefix"] / rate["trl"],
        "floor_share": speedup * floor / positions,
        "peak_share": peak_share,
        "plain_peak_share": plain_peak_share,
        "peak_share_ratio": peak_share / plain_peak_share,
        "prompts": prompts,
        "repeats": repeats,
    }


def make_batch(prompts: int, candidates: int, history: int, seed: int) -> GroupBatch:
    """Random tokens and scores, histories of mixed lengths; see the module."""
    generator = torch.Generator().manual_seed(seed)
    lengths_B = (history // 2 + history * (torch.arange(prompts) + 0.5) / prompts).long()
    lengths_B = lengths_B[torch.randperm(prompts, generator=generator)]
    offsets_L = 3 + CODES * torch.arange(LEVELS)

    def items(*shape: int) -> torch.Tensor:
        return offsets_L + torch.randint(CODES, (*shape, LEVELS), generator=generator)

    return GroupBatch(
        history_BT=torch.randint(3, 3 + CODES * LEVELS, (prompts, int(lengths_B.max())), generator=generator),
        history_lengths_B=lengths_B,
        target_BL=items(prompts),
        candidates_BKL=items(prompts, candidates),
        behaviour_log_probs_BKL=-5 - 2 * torch.rand(prompts, candidates, LEVELS, generator=generator),
        candidate_items_BK=torch.arange(prompts * candidates).view(prompts, candidates),
        target_items_B=torch.full((prompts,), prompts * candidates),
        candidate_scores_BK=torch.randn(prompts, candidates, generator=generator),
        target_scores_B=torch.randn(prompts, generator=generator),
        distractor_scores_BJ=torch.randn(prompts, 2, generator=generator),
        allowed_BSLV=None,
        decoding=Decoding(candidates=candidates),
    )


def learner_step(model: PreTrainedModel, batch: GroupBatch, **changes: Any) -> LearnerStep:
    """The learner, which trains `model` in place, with micro-batches of about `TOKENS` tokens for batches
    like this.
    """
    prompts, candidates = batch.candidates_BKL.shape[:2]
    tokens = int(batch.history_lengths_B.sum()) / prompts + (candidates + 1) * (LEVELS - 1)
    settings = LearnerSettings(
        micro_batch_prompts=max(1, int(tokens_per_forward() / tokens)), warmup_steps=0, **changes
    )
    return LearnerStep(
        model, objective=build_objective(MixtureObjective(grpo=GrpoSettings(kl_beta=0))), settings=settings
    )


def timed_steps(model: PreTrainedModel, batch: GroupBatch) -> dict[str, Callable[[], float]]:
    """One step on `batch` by each way, on copies of `model`; each returns the loss before the step."""
    learner = learner_step(copy.deepcopy(model), batch)
    settings = learner.settings
    by_rows = {
        name: RowSide(
            copy.deepcopy(model),
            score,
            lr=settings.lr,
            max_grad_norm=settings.max_grad_norm,
            tokens=tokens_per_forward(),
        )
        for name, score in (("per_sequence", right_padded), ("trl", left_padded))
    }
    return {
        "shared_prefix": lambda: learner.update(batch)["loss"],
        **{name: partial(side.step, batch) for name, side in by_rows.items()},
    }


def prompts_per_step(candidates: int, history: int) -> int:
    """Prompts of a step."""
    return PROMPTS[candidates, history] * (ON_GPU if device.on_gpu() else 1)


def tokens_per_forward() -> int:
    """Padded tokens that a micro-batch may have."""
    return TOKENS * (ON_GPU if device.on_gpu() else 1)


def _peak() -> float:
    return matmul_gflops(8192, device="cuda") if device.on_gpu() else matmul_gflops()


def _check_equal(losses: dict[str, float]) -> None:
    expected = losses["per_sequence"]
    for name, loss in losses.items():
        if not abs(loss - expected) <= 1e-4 * abs(expected):
            raise RunError(
                f"the sides do not compute the same: loss {loss} of {name}, {expected} of per_sequence"
            )


def shared_prefix_flops(config: PretrainedConfig, lengths: list[int], branches: int) -> float:
    """Of an optimizer step on histories of these lengths, `branches` = K + 1 behind each; see the module."""
    fed, layers = LEVELS - 1, config.num_hidden_layers
    keys_values, others = _weights(config)
    tokens, predicting = sum(lengths) + len(lengths) * branches * fed, len(lengths) * (1 + branches * fed)
    pairs_of_branches = sum(branches * (fed * length + fed * (fed + 1) // 2) for length in lengths)
    pairs_of_histories = sum(length * (length + 1) // 2 for length in lengths)
    pairs = layers * pairs_of_branches + (layers - 1) * pairs_of_histories + sum(lengths)
    linear = tokens * (layers * keys_values + (layers - 1) * others) + predicting * others
    output = predicting * config.hidden_size * config.vocab_size
    return float(6 * (linear + pairs * _per_pair(config) + output))


def plain_flops(config: PretrainedConfig, rows: int, width: int) -> float:
    """Of a next-token training step on full rows; see the module."""
    layer = sum(_weights(config)) * width + width * (width + 1) // 2 * _per_pair(config)
    return float(
        6 * rows * (config.num_hidden_layers * layer + width * config.hidden_size * config.vocab_size)
    )


def _weights(config: PretrainedConfig) -> tuple[int, int]:
    """A layer's weights: of keys and values, and the rest."""
    query = config.num_attention_heads * config.head_dim * config.hidden_size
    keys_values = 2 * config.num_key_value_heads * config.head_dim * config.hidden_size
    return keys_values, 2 * query + 3 * config.hidden_size * config.intermediate_size


def _per_pair(config: PretrainedConfig) -> int:
    return int(2 * config.num_attention_heads * config.head_dim)
