"""Supervised pretraining of the policy: next-token NLL over users' training histories, all positions
supervised.

The weights kept are the exponential moving average at the best validation HR@10. The schedule counts
optimizer steps, never seconds, so that a run does not depend on how fast the machine is.
"""

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import cast

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from transformers import PreTrainedModel, get_cosine_with_min_lr_schedule_with_warmup

from sluice.catalog.data.dataset import Dataset
from sluice.catalog.trie.vocabulary import Vocabulary
from sluice.learner.batches.windows import epoch_batches
from sluice.learner.evaluation.evaluate import evaluate_policy, sample_examples
from sluice.learner.evaluation.exposure import check_choice, choosing_metrics
from sluice.learner.kernels.onednn import use_onednn_matmul
from sluice.learner.policy.dropout import dropout_enabled
from sluice.learner.policy.policy import Policy
from sluice.learner.settings import EvaluationSettings, PretrainSettings
from sluice.learner.training.optimizer import parameter_groups


def pretrain_policy(
    policy: Policy,
    dataset: Dataset,
    settings: PretrainSettings,
    evaluation: EvaluationSettings,
    seed: int,
    progress: Callable[[int, int, dict[str, float]], None] | None = None,
    until: str = "pretrain",
) -> list[dict[str, float]]:
    """Train `policy.model` in place on the logs until the end of the part `until` and leave it at its best
    validation HR@10 (`exposure.choosing_metrics`); returns the validations, in order.

    Raises:
        DataError: validation has no weights to choose by (`exposure.check_choice`); nothing is trained then.
    """
    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    model, vocabulary = policy.model, Vocabulary.of(dataset.codes, policy.layout)
    use_onednn_matmul(model)
    epochs = [_draw_epoch(dataset, settings, until, generator) for _ in range(settings.epochs)]
    total = sum(len(batches) for batches in epochs)
    optimizer = _Optimizer(model, settings, total)
    average = AveragedModel(model, multi_avg_fn=partial(_mix_weights, settings.average_decay))
    examples = sample_examples(dataset.examples("valid"), evaluation.max_users)
    check_choice(dataset, examples, evaluation)
    best, best_weights, metric = -1.0, None, ""
    validations: list[dict[str, float]] = []
    step = since_best = 0
    with dropout_enabled(model, residual=settings.dropout, embedding=settings.embedding_dropout):
        for epoch, batches in enumerate(epochs, start=1):
            model.train()
            for rows in batches:
                loss = _step(model, _tokens(rows, dataset, vocabulary).to(model.device), optimizer)
                average.update_parameters(model)
                step += 1
                if progress is not None:
                    progress(step, total, {"nll": loss} | ({metric: best} if validations else {}))
            if epoch % settings.validate_every and epoch != settings.epochs:
                continue
            results = evaluate_policy(
                cast(PreTrainedModel, average.module), vocabulary, dataset, examples, evaluation
            )
            validations.append({"epoch": float(epoch), **results.summary(dataset, evaluation)})
            metric, since_best = choosing_metrics(validations[-1], evaluation)[0], since_best + 1
            if validations[-1][metric] > best:
                best, since_best = validations[-1][metric], 0
                best_weights = copy.deepcopy(average.module.state_dict())
            if since_best >= settings.patience:
                break
    assert best_weights is not None, "the last epoch is validated"
    model.load_state_dict(best_weights)
    model.eval()
    return validations


def _draw_epoch(
    dataset: Dataset, settings: PretrainSettings, until: str, generator: np.random.Generator
) -> list[list[np.ndarray]]:
    """The batches of one pass over the logs until the end of a part."""
    return list(
        epoch_batches(
            dataset,
            lengths=dataset.lengths_until(until),
            batch_interactions=settings.batch_interactions,
            shuffle_ties=settings.shuffle_ties,
            item_dropout=settings.item_dropout,
            generator=generator,
        )
    )


class _Optimizer:
    """AdamW on all weights, or Muon on the matrices of the layers and AdamW on the others.

    The learning rate over all `steps` is a warm-up, then a cosine.
    """

    def __init__(self, model: PreTrainedModel, settings: PretrainSettings, steps: int) -> None:
        self._parameters = list(model.parameters())
        lr, decay = settings.lr, settings.weight_decay
        tables = (model.get_input_embeddings(), model.get_output_embeddings())
        tokens = [cast(nn.Parameter, table.weight) for table in tables]
        inner = [weight for weight in self._parameters if weight.ndim == 2 and not _among(weight, tokens)]
        orthogonal = inner if settings.optimizer == "muon" else []
        others = [weight for weight in self._parameters if not _among(weight, orthogonal)]
        self._optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(parameter_groups(others, decay), lr=lr, betas=(0.9, 0.98))
        ]
        if orthogonal:
            # With updates as large as those of AdamW, so that one learning rate fits both.
            self._optimizers.append(
                torch.optim.Muon(orthogonal, lr=lr, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
            )
        warmup = round(settings.warmup_share * steps)
        self._schedules = [
            get_cosine_with_min_lr_schedule_with_warmup(
                optimizer, warmup, steps, min_lr_rate=settings.final_lr_share
            )
            for optimizer in self._optimizers
        ]

    def step(self) -> None:
        """Clip the gradients, change the weights, and set the next learning rate."""
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        for optimizer, schedule in zip(self._optimizers, self._schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()


def _among(weight: nn.Parameter, weights: Iterable[nn.Parameter]) -> bool:
    """Whether it is one of these, by identity: tied layers share one."""
    return any(weight is other for other in weights)


@torch.no_grad()
def _mix_weights(
    decay: float, averages: Sequence[torch.Tensor], weights: Sequence[torch.Tensor], steps: torch.Tensor
) -> None:
    """One step of the moving average: `averages` go towards `weights`, after `steps` earlier ones.

    The decay rises to its value like (1 + t) / (10 + t), so that the average covers the latest ninth of the
    steps at most and is not held back by the first, random weights.
    """
    t = float(steps)
    kept = min(decay, (1 + t) / (10 + t))
    for average, weight in zip(averages, weights, strict=True):
        average.lerp_(weight, 1 - kept)


def _tokens(rows: list[np.ndarray], dataset: Dataset, vocabulary: Vocabulary) -> torch.Tensor:
    prompts = [vocabulary.layout.prompt(vocabulary.item_tokens, dataset.sequence[row]) for row in rows]
    return nn.utils.rnn.pad_sequence(
        [torch.from_numpy(prompt) for prompt in prompts],
        batch_first=True,
        padding_value=vocabulary.layout.pad,
    )


def _step(model: PreTrainedModel, tokens_BT: torch.Tensor, optimizer: _Optimizer) -> float:
    inputs, labels = tokens_BT[:, :-1], tokens_BT[:, 1:]
    real = labels != model.config.pad_token_id
    # Right padding under a causal mask cannot reach a real token, so no attention mask is needed.
    hidden = model.get_decoder()(input_ids=inputs).last_hidden_state
    loss = nn.functional.cross_entropy(model.get_output_embeddings()(hidden[real]), labels[real])
    loss.backward()
    optimizer.step()
    value = float(loss.detach())
    if not math.isfinite(value):
        raise FloatingPointError(f"pretraining diverged: NLL is {value}; lower pretrain.lr")
    return value
