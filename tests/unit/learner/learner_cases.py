"""Small policies and batches that the learner's tests share."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from sluice.catalog.decoding import Decoding
from sluice.learner.batches.batch import GroupBatch, LoggedBatch
from sluice.learner.objectives.terms.base import ObjectiveInput
from sluice.learner.policy.policy import Policy, build_policy
from sluice.learner.scoring.shared_prefix import BranchScores
from sluice.learner.settings import PolicySettings

NAN = float("nan")
FOUR_BEAMS = Decoding(kind="beam", candidates=4)
LEVEL_SIZES = (4, 3, 5)  # tokens 3..6, 7..9, 10..14


def tiny_policy(seed: int = 0, hidden_size: int = 16) -> Policy:
    settings = PolicySettings(hidden_size=hidden_size, layers=2, heads=2, feed_forward_size=24)
    return build_policy(settings, LEVEL_SIZES, max_positions=64, seed=seed)


def tiny_llama(vocab_size: int = 15) -> PreTrainedModel:
    """Untied embeddings and grouped-query attention, unlike the fresh policy."""
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config).eval()


def sharpen(model: PreTrainedModel) -> PreTrainedModel:
    """Scale the matrices up, so that attention and predictions are far from uniform and a wrong mask
    shows.
    """
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(8.0)
    return model


class DoubleNorm(torch.nn.Module):
    """transformers' RMSNorm always computes in float32; this one does not, so that float64 is float64
    throughout.
    """

    def __init__(self, norm: torch.nn.Module) -> None:
        super().__init__()
        self.weight, self.epsilon = norm.weight, norm.variance_epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.epsilon)


def in_double(model: PreTrainedModel) -> PreTrainedModel:
    """Float64 throughout, with sharp predictions."""
    model = sharpen(model.double())
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__.endswith("RMSNorm"):
                setattr(parent, name, DoubleNorm(child))
    return model


def random_items(generator: torch.Generator, *shape: int) -> torch.Tensor:
    """Random item tokens `[*shape, 3]`."""
    offsets, codes = 3, []
    for size in LEVEL_SIZES:
        codes.append(offsets + torch.randint(size, shape, generator=generator))
        offsets += size
    return torch.stack(codes, dim=-1)


def random_batch(
    prompts: int = 4,
    candidates: int = 4,
    seed: int = 0,
    constrained: bool = False,
    temperature: float = 1.0,
    **changes: object,
) -> GroupBatch:
    """Mixed history lengths, some hallucinations, no hits unless by chance."""
    generator = torch.Generator().manual_seed(seed)
    lengths_B = 1 + 3 * torch.randint(1, 5, (prompts,), generator=generator)
    lengths_B[0] = 13
    history_BT = torch.cat(
        [torch.ones(prompts, 1, dtype=torch.int64), random_items(generator, prompts, 4).flatten(1)], dim=1
    )
    history_BT[torch.arange(13)[None] >= lengths_B[:, None]] = 0
    target_BL, candidates_BKL = random_items(generator, prompts), random_items(generator, prompts, candidates)
    items_BK = torch.randint(0, 1000, (prompts, candidates), generator=generator)
    items_BK[:, -1] = -1
    scores_BK = torch.randn(prompts, candidates, generator=generator).masked_fill(items_BK < 0, NAN)
    allowed_BSLV = None
    if constrained:
        allowed_BSLV = torch.rand(prompts, candidates + 1, 3, 15, generator=generator) < 0.5
        branches_BSL = torch.cat([target_BL[:, None], candidates_BKL], dim=1)
        allowed_BSLV.scatter_(-1, branches_BSL[..., None], True)
    values = {
        "history_BT": history_BT,
        "history_lengths_B": lengths_B,
        "target_BL": target_BL,
        "candidates_BKL": candidates_BKL,
        "behaviour_log_probs_BKL": -2 * torch.rand(prompts, candidates, 3, generator=generator) - 1.5,
        "candidate_items_BK": items_BK,
        "target_items_B": torch.full((prompts,), 5000),
        "candidate_scores_BK": scores_BK,
        "target_scores_B": torch.randn(prompts, generator=generator),
        "distractor_scores_BJ": torch.randn(prompts, 2, generator=generator) - 1,
        "allowed_BSLV": allowed_BSLV,
        "decoding": Decoding(candidates=candidates, temperature=temperature, constrained=constrained),
    }
    return GroupBatch(**(values | changes))


def one_group(**changes: object) -> GroupBatch:
    """One prompt with K = 4, for hand computation: target (3, 7, 10), item 0; candidates are items 1, 2, 3,
    4.

    Behaviour log-likelihoods -1, -2, -3, -4; ranker scores 1, 2, 3, 4; GT's ranker score 2.5; one distractor
    at 0.
    """
    values = {
        "history_BT": torch.tensor([[1]]),
        "history_lengths_B": torch.tensor([1]),
        "target_BL": torch.tensor([[3, 7, 10]]),
        "candidates_BKL": torch.tensor([[[3, 7, 11], [3, 8, 10], [4, 7, 10], [5, 7, 10]]]),
        "behaviour_log_probs_BKL": torch.tensor(
            [[[-0.5, -0.25, -0.25], [-1, -0.5, -0.5], [-1, -1, -1], [-2, -1, -1]]]
        ),
        "candidate_items_BK": torch.tensor([[1, 2, 3, 4]]),
        "target_items_B": torch.tensor([0]),
        "candidate_scores_BK": torch.tensor([[1.0, 2.0, 3.0, 4.0]]),
        "target_scores_B": torch.tensor([2.5]),
        "distractor_scores_BJ": torch.tensor([[0.0]]),
        "allowed_BSLV": None,
        "decoding": Decoding(candidates=4),
    }
    return GroupBatch(**(values | changes))


def objective_input(
    batch: LoggedBatch,
    scores: BranchScores,
    start: BranchScores,
    reference_BSL: torch.Tensor | None = None,
) -> ObjectiveInput:
    return ObjectiveInput(batch=batch, scores=scores, start=start, reference_BSL=reference_BSL)
