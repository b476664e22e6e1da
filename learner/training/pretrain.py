"""Supervised pretraining of the policy: next-token NLL over users' training histories, all positions
supervised.

The weights kept are the exponential moving average at the best validation HR@10. The schedule counts
optimizer steps, never seconds, so that a run does not depend on how fast the machine is.
"""

import copy
import math
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import PreTrainedModel, get_cosine_with_min_lr_schedule_with_warmup

from sluice.catalog.data.dataset import Dataset
from sluice.catalog.trie.vocabulary import Vocabulary
from sluice.learner.batches.windows import epoch_batches
from sluice.learner.evaluation.evaluate import evaluate_policy, sample_examples
from sluice.learner.kernels.onednn import use_onednn_matmul
from sluice.learner.policy.dropout import dropout_enabled
from sluice.learner.policy.policy import Policy
from sluice.learner.settings import EvaluationSettings, PretrainSettings


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
    validation HR@10; returns the validations, in order.
    """
    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    model, vocabulary = policy.model, Vocabulary.of(dataset.codes, policy.layout)
    use_onednn_matmul(model)
    epochs = [_draw_epoch(dataset, settings, until, generator) for _ in range(settings.epochs)]
    total = sum(len(batches) for batches in epochs)
    optimizer, schedule = _build_optimizer(model, settings, total)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(settings.average_decay))
    examples = sample_examples(dataset.examples("valid"), evaluation.max_users)
    best, best_weights = -1.0, None
    validations: list[dict[str, float]] = []
    step = since_best = 0
    with dropout_enabled(model, residual=settings.dropout, embedding=settings.embedding_dropout):
        for epoch, batches in enumerate(epochs, start=1):
            model.train()
            for rows in batches:
                loss = _step(model, _tokens(rows, dataset, vocabulary).to(model.device), optimizer)
                schedule.step()
                average.update_parameters(model)
                step += 1
                if progress is not None:
                    progress(step, total, {"nll": loss} | ({"hr@10": best} if validations else {}))
            if epoch % settings.validate_every and epoch != settings.epochs:
                continue
            results = evaluate_policy(
                cast(PreTrainedModel, average.module), vocabulary, dataset, examples, evaluation
            )
            validations.append({"epoch": float(epoch), **results.summary(dataset)})
            since_best += 1
            if validations[-1]["hr@10"] > best:
                best, since_best = validations[-1]["hr@10"], 0
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


def _build_optimizer(
    model: nn.Module, settings: PretrainSettings, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW, and its learning rate over all `steps`: warm-up, then a cosine."""
    optimizer = torch.optim.AdamW(
        _parameter_groups(model, settings.weight_decay), lr=settings.lr, betas=(0.9, 0.98)
    )
    schedule = get_cosine_with_min_lr_schedule_with_warmup(
        optimizer, round(settings.warmup_share * steps), steps, min_lr_rate=settings.final_lr_share
    )
    return optimizer, schedule


def _tokens(rows: list[np.ndarray], dataset: Dataset, vocabulary: Vocabulary) -> torch.Tensor:
    prompts = [vocabulary.layout.prompt(vocabulary.item_tokens, dataset.sequence[row]) for row in rows]
    return nn.utils.rnn.pad_sequence(
        [torch.from_numpy(prompt) for prompt in prompts],
        batch_first=True,
        padding_value=vocabulary.layout.pad,
    )


def _step(model: PreTrainedModel, tokens_BT: torch.Tensor, optimizer: torch.optim.Optimizer) -> float:
    inputs, labels = tokens_BT[:, :-1], tokens_BT[:, 1:]
    real = labels != model.config.pad_token_id
    # Right padding under a causal mask cannot reach a real token, so no attention mask is needed.
    hidden = model.get_decoder()(input_ids=inputs).last_hidden_state
    loss = nn.functional.cross_entropy(model.get_output_embeddings()(hidden[real]), labels[real])
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    value = float(loss.detach())
    if not math.isfinite(value):
        raise FloatingPointError(f"pretraining diverged: NLL is {value}; lower pretrain.lr")
    return value


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
