"""One optimizer step of post-training, in plain torch: scores, objective, backward, clip, AdamW, schedule.

    for each update on the batch:
        for each micro-batch:  scores <- scorer(branches);  loss <- objective;  backward of loss * its share
        clip the gradient, AdamW
    the reference follows

The log-probs before the first update on a batch are those of its first forward, so they cost nothing extra:
no parameter moves before every micro-batch has been through it. The model is in training mode only when
`settings.dropout` is above 0: dropout makes ratios noisy, so that a base with dropout of its own must not
bring it in by accident. A gate is decided without it, by one more forward of the ground truth alone.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel

from sluice.catalog.errors import HopelessError
from sluice.learner.batches.batch import LoggedBatch
from sluice.learner.kernels.compiled import compile_layers
from sluice.learner.kernels.onednn import use_onednn_matmul
from sluice.learner.kernels.sdpa import without_cudnn
from sluice.learner.objectives.terms.base import Objective, ObjectiveInput
from sluice.learner.policy.plain_weights import PlainWeights
from sluice.learner.policy.reference import Reference
from sluice.learner.policy.sharding import ShardedScorer, local_share
from sluice.learner.reduction import reduce_means
from sluice.learner.scoring.shared_prefix import BranchScorer, BranchScores
from sluice.learner.settings import EmaReference, LearnerSettings
from sluice.learner.training.micro_batches import loss_weights, micro_batches, on_every_parameter
from sluice.learner.training.optimizer import (
    clip_gradient,
    load_optimizer_state,
    load_schedule_state,
    lr_factor,
    optimizer_state,
    parameter_groups,
)

Result = TypeVar("Result")


class LearnerStep:
    """The model, its reference, the objective and the optimizer."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        objective: Objective,
        settings: LearnerSettings,
        reference: PreTrainedModel | None = None,
        wrap: Callable[[BranchScorer], nn.Module] | None = None,
    ) -> None:
        """Train the parameters of `model` that require a gradient, in place.

        Args:
            model: on its device already, unless `wrap` puts it there; with its adapters, if it is to have
                some.
            objective: what to minimise.
            settings: of the optimizer.
            reference: a model whose parameters the reference starts with; None: those of `model`. Not kept.
            wrap: makes the module that is called from the module that scores: DDP, or `sharding.shard`.
        """
        without_cudnn()
        use_onednn_matmul(model)
        self.model = model
        self.objective = objective
        self.settings = settings
        self._value_head = None
        if objective.needs_values:
            like = next(model.parameters())
            self._value_head = nn.Linear(model.config.hidden_size, 1).to(device=like.device, dtype=like.dtype)
            nn.init.zeros_(self._value_head.weight)
            nn.init.zeros_(self._value_head.bias)
        if settings.compile:
            compile_layers(model)
        scorer = BranchScorer(model, self._value_head)
        self._scorer = scorer if wrap is None else wrap(scorer)
        self._trained = {name: p for name, p in scorer.named_parameters() if p.requires_grad}
        self.reference = None
        if objective.needs_reference:
            start = None if reference is None else dict(reference.named_parameters())
            self.reference = Reference(model, settings.reference, start)
        self._average = None
        if settings.average_decay > 0:
            self._average = Reference(model, EmaReference(decay=settings.average_decay))
        self.optimizer = torch.optim.AdamW(
            parameter_groups(self._trained.values(), settings.weight_decay), lr=settings.lr, fused=True
        )
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: lr_factor(step, settings)
        )
        self._step = 0

    @property
    def step(self) -> int:
        """Batches trained on."""
        return self._step

    @property
    def in_policy_directory(self) -> bool:
        """Whether the policy that is saved says all of the model; otherwise `state_dict` holds what is
        trained.
        """
        whole = self.settings.lora is None and not isinstance(self._scorer, ShardedScorer)
        return whole and self._average is None

    def averaged(self) -> AbstractContextManager[None]:
        """While this lasts the model has the weights that are judged and saved: the average over the steps
        where `settings.average_decay` asks for one, otherwise those of the last step.
        """
        return nullcontext() if self._average is None else self._average.in_place()

    def plain_weights(self) -> PlainWeights:
        """The weights as engines and checkpoints take them."""
        return PlainWeights(self.model, adapted=self.settings.lora is not None)

    def run(self, function: Callable[[], Result]) -> Result:
        """Call `function`, which uses the model by itself; with a sharded one all workers call it together,
        and each makes as many forwards.
        """
        return self._scorer.run(function) if isinstance(self._scorer, ShardedScorer) else function()

    def update(self, batch: LoggedBatch) -> dict[str, float]:
        """Train on one batch, `updates_per_batch` times.

        Returns:
            The metrics, means over prompts, micro-batches, updates and workers, with `lr`, `grad_norm`
            (before clipping) and `reference_version` (the step that last changed the reference). A mean over
            nothing, such as the reward of admitted prompts when none was, is NaN.

        Raises:
            HopelessError: a gradient is not finite; the update that had it was not taken.
        """
        parts = micro_batches(batch, self.settings.micro_batch_prompts, next(self.model.parameters()).device)
        references, targets = self._reference_log_probs(parts), self._clean_targets(parts)
        weights = loss_weights(self.objective, parts)
        starts: list[BranchScores | None] = [None] * len(parts)
        totals: dict[str, torch.Tensor] = {}
        figures = {"lr": self.optimizer.param_groups[0]["lr"]}
        if self.reference is not None:
            figures["reference_version"] = float(self.reference.version)
        self._begin_training()
        for _ in range(self.settings.updates_per_batch):
            for index, part in enumerate(parts):
                with self._synchronised(index + 1 == len(parts)):
                    scores = self._score(part)
                    if starts[index] is None:
                        starts[index] = scores.detach()
                    start = starts[index]
                    assert start is not None
                    inputs = ObjectiveInput(
                        batch=part,
                        scores=scores,
                        start=start,
                        reference_BSL=references[index],
                        clean_target_B=targets[index],
                    )
                    terms = self.objective(inputs)
                    (on_every_parameter(terms.loss, scores) * weights[index]).backward()
                for name, value in terms.metrics.items():
                    totals[name] = totals[name] + value if name in totals else value
            norm = self._apply_gradient()
            value = torch.stack([norm.detach().double(), norm.new_ones((), dtype=torch.float64)])
            totals["grad_norm"] = totals["grad_norm"] + value if "grad_norm" in totals else value
        self.model.eval()
        values = reduce_means(totals)  # where the host waits for the device, for the only time
        if not math.isfinite(values["grad_norm"]):
            raise HopelessError(
                f"the gradient norm of learner step {self._step} is {values['grad_norm']}, so the step was "
                f"not taken: check that the ranker's scores are finite, or lower learner.lr "
                f"{self.settings.lr}"
            )
        self._schedule.step()
        self._step += 1
        for follower in (self.reference, self._average):
            if follower is not None:
                follower.follow(self._step)
        return values | figures

    def state_dict(self) -> dict[str, Any]:
        """This worker's optimizer, schedule, step, reference, average and RNG, and the weights that the
        policy's directory does not hold: the value head, adapters, this worker's shares, and all of them
        where the policy that is saved is an average.
        """
        rng: dict[str, Any] = {"torch": torch.get_rng_state()}
        if torch.cuda.is_available():
            rng["cuda"] = torch.cuda.get_rng_state_all()
        return {
            "step": self._step,
            "optimizer": optimizer_state(self.optimizer),
            "schedule": self._schedule.state_dict(),
            "weights": {name: local_share(p) for name, p in self._not_in_policy_directory().items()},
            "reference": None if self.reference is None else self.reference.state_dict(),
            "average": None if self._average is None else self._average.state_dict(),
            "rng": rng,
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave, on a model that holds the policy's parameters.

        The learning rate, its schedule and the weight decay are those of the settings, which a resumed run
        may change.
        """
        self._step = state["step"]
        load_optimizer_state(self.optimizer, state["optimizer"])
        load_schedule_state(self._schedule, state["schedule"])
        for name, parameter in self._not_in_policy_directory().items():
            local_share(parameter).copy_(state["weights"][name])
        if self.reference is not None:
            self.reference.load_state_dict(state["reference"])
        if self._average is not None:
            self._average.load_state_dict(state["average"])
        torch.set_rng_state(state["rng"]["torch"])
        if "cuda" in state["rng"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["rng"]["cuda"])

    def _not_in_policy_directory(self) -> dict[str, nn.Parameter]:
        if not self.in_policy_directory:
            return self._trained
        return {name: p for name, p in self._trained.items() if name.startswith("value_head.")}

    def _begin_training(self) -> None:
        self.model.train(self.settings.dropout > 0)
        if self.settings.lora is not None:
            from sluice.learner.policy.lora import drop_in_adapters

            drop_in_adapters(self.model, self.settings.lora.dropout > 0)

    def _score(self, part: LoggedBatch, *, target_alone: bool = False) -> BranchScores:
        branches = self.objective.select_branches(part)
        tokens_BSL, allowed_BSLV = branches.branches_BSL, branches.allowed_BSLV
        if target_alone:
            tokens_BSL = tokens_BSL[:, :1]
            allowed_BSLV = None if allowed_BSLV is None else allowed_BSLV[:, :1]
        half = self.settings.precision == "bfloat16"
        with torch.autocast(part.target_BL.device.type, torch.bfloat16, enabled=half):
            scores: BranchScores = self._scorer(
                part.history_BT,
                part.history_lengths_B.tolist(),  # no tensor, which DDP would move to the device
                tokens_BSL,
                allowed_BSLV,
                branches.decoding,
            )
        return scores

    @torch.no_grad()
    def _reference_log_probs(self, parts: list[LoggedBatch]) -> list[torch.Tensor | None]:
        if self.reference is None:
            return [None] * len(parts)
        self.model.eval()
        with self.reference.in_place():
            return [self._score(part).log_probs_BSL for part in parts]

    @torch.no_grad()
    def _clean_targets(self, parts: list[LoggedBatch]) -> list[torch.Tensor | None]:
        """The ground truths' log-probs `[B]` without dropout, where there is some and the objective asks."""
        lora = self.settings.lora
        drops = self.settings.dropout > 0 or (lora is not None and lora.dropout > 0)
        if not drops or not self.objective.needs_clean_target(parts[0]):
            return [None] * len(parts)
        self.model.eval()
        return [self._score(part, target_alone=True).log_probs_BSL[:, 0].sum(dim=-1) for part in parts]

    def _synchronised(self, last: bool) -> AbstractContextManager[None]:
        """DDP adds gradients up over the micro-batches and exchanges them once, with the last; FSDP exchanges
        each.
        """
        no_sync: Callable[[], AbstractContextManager[None]] | None = getattr(self._scorer, "no_sync", None)
        return nullcontext() if last or no_sync is None else no_sync()

    def _apply_gradient(self) -> torch.Tensor:
        """Take the step, unless the gradient is not finite, without waiting for the device; returns its
        norm.
        """
        norm = clip_gradient(list(self._trained.values()), self.settings.max_grad_norm)
        # What a gradient scaler says to a fused optimizer, which then leaves parameters and moments as they
        # are.
        self.optimizer.found_inf = (~torch.isfinite(norm)).float()  # type: ignore[attr-defined]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm
