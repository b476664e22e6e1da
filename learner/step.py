"""One optimizer step of post-training, in plain torch: scores, objective, backward, clip, AdamW, schedule.

    for each update on the batch:
        for each micro-batch:  scores <- scorer(branches);  loss <- objective;  backward of loss * its share of the
        prompts clip the gradient, AdamW

The log-probs before the first update on a batch are those of its first forward, so they cost nothing extra: no
parameter moves before every micro-batch has been through it. The model is in training mode only when
`settings.dropout` is above 0: dropout makes ratios noisy, so that a base with dropout of its own must not bring it in
by accident.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from catalog.errors import RunError
from learner.batch import LoggedBatch
from learner.objectives.base import Objective
from learner.settings import LearnerSettings
from learner.shared_prefix import BranchScorer, BranchScores


class LearnerStep:
    """The model, its frozen reference, the objective and the optimizer."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        objective: Objective,
        settings: LearnerSettings,
        reference: PreTrainedModel | None = None,
        wrap: Callable[[nn.Module], nn.Module] | None = None,
    ) -> None:
        """Train `model` in place.

        Args:
            model: on its device already.
            objective: what to minimise.
            settings: of the optimizer.
            reference: the frozen starting policy, a model of its own; dropped when the objective does not need it.
            wrap: makes the module that is called from the module that scores, e.g. DDP; the forward goes through it.
        """
        if objective.needs_reference and reference is None:
            raise ValueError("the objective has kl_beta > 0, so it needs the reference model")
        self.model = model
        self.objective = objective
        self.settings = settings
        self.reference = None
        if objective.needs_reference:
            self.reference = BranchScorer(reference.eval().requires_grad_(False))
        self._value_head = None
        if objective.needs_values:
            like = next(model.parameters())
            self._value_head = nn.Linear(model.config.hidden_size, 1).to(device=like.device, dtype=like.dtype)
            nn.init.zeros_(self._value_head.weight)
            nn.init.zeros_(self._value_head.bias)
        scorer = BranchScorer(model, self._value_head)
        self.optimizer = torch.optim.AdamW(_parameter_groups(scorer, settings.weight_decay), lr=settings.lr)
        self._parameters = list(scorer.parameters())
        self._scorer = scorer if wrap is None else wrap(scorer)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: lr_factor(step, settings))
        self._step = 0

    @property
    def step(self) -> int:
        """Batches trained on."""
        return self._step

    def update(self, batch: LoggedBatch) -> dict[str, float]:
        """Train on one batch, `updates_per_batch` times.

        Returns:
            The metrics, means over prompts, micro-batches, updates and workers, with `lr` and `grad_norm` (before
            clipping). A mean over nothing, such as the reward of admitted prompts when none was, is NaN.

        Raises:
            RunError: the gradient is not finite; the parameters are left as they were.
        """
        self.model.train(self.settings.dropout > 0)
        parts = _micro_batches(batch, self.settings.micro_batch_prompts, next(self.model.parameters()).device)
        references = [self._reference_log_probs(part) for part in parts]
        weights = self._weights(parts)
        starts: list[BranchScores | None] = [None] * len(parts)
        totals: dict[str, torch.Tensor] = {}
        lr = self.optimizer.param_groups[0]["lr"]
        for _ in range(self.settings.updates_per_batch):
            for index, part in enumerate(parts):
                with self._synchronised(index + 1 == len(parts)):
                    scores = self._score(self._scorer, part)
                    if starts[index] is None:
                        starts[index] = scores.detach()
                    terms = self.objective(part, scores, starts[index], references[index])
                    (terms.loss * weights[index]).backward()
                for name, value in terms.metrics.items():
                    totals[name] = totals[name] + value if name in totals else value
            norm = self._apply_gradient()
            value = torch.stack([norm.detach().double(), norm.new_tensor(1.0, dtype=torch.float64)])
            totals["grad_norm"] = totals["grad_norm"] + value if "grad_norm" in totals else value
        self.model.eval()
        self._schedule.step()
        self._step += 1
        return _means(totals) | {"lr": lr}

    def state_dict(self) -> dict[str, Any]:
        """Optimizer, schedule, step, value head and RNG; the policy's parameters are saved as a policy."""
        rng = {"torch": torch.get_rng_state()}
        if torch.cuda.is_available():
            rng["cuda"] = torch.cuda.get_rng_state_all()
        return {
            "step": self._step,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "value_head": self._value_head.state_dict() if self._value_head else None,
            "rng": rng,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave, with the same settings, on a model that holds the same parameters."""
        self._step = state["step"]
        self.optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        if self._value_head is not None:
            self._value_head.load_state_dict(state["value_head"])
        torch.set_rng_state(state["rng"]["torch"])
        if "cuda" in state["rng"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["rng"]["cuda"])

    def _score(self, scorer: nn.Module, part: LoggedBatch) -> BranchScores:
        inputs = self.objective.inputs(part)
        return scorer(
            part.history_BT, part.history_lengths_B, inputs.branches_BSL, inputs.allowed_BSLV, inputs.temperature
        )

    @torch.no_grad()
    def _reference_log_probs(self, part: LoggedBatch) -> torch.Tensor | None:
        return None if self.reference is None else self._score(self.reference, part).log_probs_BSL

    def _weights(self, parts: list[LoggedBatch]) -> list[float]:
        """What each micro-batch's loss counts: its share of the mass of all parts and workers, times the workers, over
        which DDP takes the mean."""
        masses = [self.objective.mass(part) for part in parts]
        total, workers = torch.stack(masses).sum(), 1
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            workers = torch.distributed.get_world_size()
            torch.distributed.all_reduce(total)
        return [float(mass * workers / total) if total > 0 else 0.0 for mass in masses]

    def _synchronised(self, last: bool) -> AbstractContextManager:
        """DDP adds gradients up over the micro-batches and exchanges them once, with the last."""
        return nullcontext() if last or not hasattr(self._scorer, "no_sync") else self._scorer.no_sync()

    def _apply_gradient(self) -> torch.Tensor:
        norm = nn.utils.clip_grad_norm_(self._parameters, self.settings.max_grad_norm)
        if not torch.isfinite(norm):
            self.optimizer.zero_grad(set_to_none=True)
            raise RunError(
                f"the gradient norm of learner step {self._step} is {norm.item()}, so the step was not taken: check "
                f"that the ranker's scores are finite, or lower learner.lr {self.settings.lr}"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm


def lr_factor(step: int, settings: LearnerSettings) -> float:
    """Share of the full learning rate at a step (from 0): linear warm-up, then constant or a cosine to 0 at the end."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    if settings.schedule == "constant":
        return 1.0
    progress = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; norms and biases do not."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def _micro_batches(batch: LoggedBatch, prompts: int | None, device: torch.device) -> list[LoggedBatch]:
    """Slices of at most `prompts` prompts of like length, on the device, each history cut to its slice's longest."""
    size = prompts or batch.prompts
    by_length = batch.history_lengths_B.argsort()
    parts = []
    for low in range(0, batch.prompts, size):
        tensors = {
            field.name: value[by_length[low : low + size]].to(device)
            for field in fields(batch)
            if isinstance(value := getattr(batch, field.name), torch.Tensor)
        }
        tensors["history_BT"] = tensors["history_BT"][:, : int(tensors["history_lengths_B"].max())]
        parts.append(replace(batch, **tensors))
    return parts


def _means(totals: dict[str, torch.Tensor]) -> dict[str, float]:
    """The means of (sum, count) metrics over all workers; one exchange and one copy to the host for all of them."""
    names = sorted(totals)
    table = torch.stack([totals[name] for name in names])
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(table)
    return dict(zip(names, (table[:, 0] / table[:, 1]).tolist(), strict=True))
