"""Policies judged by scoring the code sequence of every item of the catalogue, one example at a time.

The model is that of Hugging Face, in float32, and tokens come from its tokenizer: code c of level l is the
token `<a_c>`, `<b_c>`, ... A history is BOS and the codes of its last `data.max_history` items.

From the log-probs of all items there are two lists: the exhaustive one, and that of a beam search with W
beams over the same numbers, in which an item is lost when the beams drop the beginning of its codes. The
product has the second, and the table says how often the two disagree.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM
from transformers.cache_utils import DynamicCache

from tests.audit.data import Run
from tests.audit.rankings import Judged

PLACES = {
    "start": "policy",
    "control": "control",
    "control_last": "control-last",
    "best": "best",
    "last": "last",
    "mixture": "arms/mixture/best",
    "mixture_last": "arms/mixture/last",
    "random_gate": "arms/random_gate/best",
    "random_gate_last": "arms/random_gate/last",
    "sft_all": "arms/sft_all",
}
NEAR = 2e-4  # nats, that two ways to compute a log-prob in float32 may differ by
_NODES = 512  # of the trie in one forward
Codes = tuple[int, ...]


@dataclass(frozen=True)
class Policy:
    """A model with the tokens of every item, `[N][L]`, and of BOS."""

    model: torch.nn.Module
    tokens: list[Codes]
    bos: int


def open_policy(directory: Path, codes: Sequence[Codes]) -> Policy:
    """Read a policy."""
    words = json.loads((directory / "tokenizer.json").read_text())["model"]["vocab"]
    tokens = [tuple(words[f"<{chr(97 + level)}_{code}>"] for level, code in enumerate(own)) for own in codes]
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    return Policy(model, tokens, words["<bos>"])


def branches(tokens: Sequence[Codes]) -> list[list[Codes]]:
    """All beginnings of items, without the whole items, in groups that share their first token."""
    groups: dict[int, set[Codes]] = defaultdict(set)
    for own in tokens:
        groups[own[0]].update(own[:length] for length in range(1, len(own)))
    packed: list[list[Codes]] = []
    for _, nodes in sorted(groups.items()):
        ordered = sorted(nodes, key=lambda node: (len(node), node))
        if packed and len(packed[-1]) + len(ordered) <= _NODES:
            packed[-1] += ordered
        else:
            packed.append(ordered)
    return packed


@torch.no_grad()
def next_log_probs(policy: Policy, history: Sequence[int]) -> dict[Codes, torch.Tensor]:
    """Log-probs of the next token behind the history and each beginning of an item.

    Beginnings run side by side behind one history. A mask lets each see the history, its ancestors and
    itself.
    """
    prompt = torch.tensor([[policy.bos, *(token for item in history for token in policy.tokens[item])]])
    cache, length = DynamicCache(), prompt.shape[1]
    logits = policy.model(prompt, past_key_values=cache, use_cache=True).logits[0, -1]
    result = {(): logits.log_softmax(-1)}
    for nodes in branches(policy.tokens):
        place = {node: index for index, node in enumerate(nodes)}
        mask = torch.zeros(1, 1, len(nodes), length + len(nodes), dtype=torch.bool)
        mask[..., :length] = True
        for node, index in place.items():
            for end in range(1, len(node) + 1):
                mask[0, 0, index, length + place[node[:end]]] = True
        logits = policy.model(
            torch.tensor([[node[-1] for node in nodes]]),
            attention_mask=mask,
            position_ids=torch.tensor([[length + len(node) - 1 for node in nodes]]),
            past_key_values=cache,
            use_cache=True,
        ).logits[0]
        result |= zip(nodes, logits.log_softmax(-1), strict=True)
        cache.crop(-len(nodes))
    return result


def item_scores(policy: Policy, following: dict[Codes, torch.Tensor]) -> np.ndarray:
    """log p(item | history), `[N]`."""
    return np.array(
        [sum(float(following[own[:t]][token]) for t, token in enumerate(own)) for own in policy.tokens]
    )


def beam_list(
    policy: Policy, following: dict[Codes, torch.Tensor], allowed: Sequence[int], width: int
) -> list[int]:
    """The items that a search with `width` beams reaches over the allowed items, best first."""
    rows = {policy.tokens[item]: item for item in allowed}
    children: dict[Codes, set[int]] = defaultdict(set)
    for own in rows:
        for t, token in enumerate(own):
            children[own[:t]].add(token)
    beams: list[tuple[float, Codes]] = [(0.0, ())]
    for _ in range(len(policy.tokens[0])):
        grown = [
            (total + float(following[node][token]), (*node, token))
            for total, node in beams
            for token in sorted(children[node])
        ]
        beams = sorted(grown, key=lambda beam: -beam[0])[:width]
    return [rows[node] for _, node in beams]


def judge_policy(run: Run, directory: Path, examples: Sequence[tuple[int, int]]) -> tuple[Judged, int]:
    """The lists of the beams, and in how many examples the exhaustive list has the target elsewhere."""
    policy = open_policy(directory, run.codes)
    width, limit = run.config["evaluation"]["beam_width"], run.data["max_history"]
    ranks, best, worst, tops, elsewhere = [], [], [], [], 0
    for user, position in examples:
        sequence = run.sequences[user]
        seen, target = sequence[:position], sequence[position]
        following = next_log_probs(policy, seen[-limit:])
        scores = item_scores(policy, following)
        left_out = set(seen) if run.data["exclude_seen"] else set()
        allowed = [item for item in range(len(scores)) if item not in left_out]
        beams = beam_list(policy, following, allowed, width)
        rank = beams.index(target) + 1 if target in beams else 0
        place = 1 + sum(scores[item] > scores[target] for item in allowed)
        elsewhere += rank != (place if place <= width and target in allowed else 0)
        close = sum(abs(scores[item] - scores[target]) <= NEAR for item in beams if item != target)
        ranks.append(rank)
        best.append(max(1, rank - close) if rank else 0)
        worst.append(rank + close if 0 < rank + close <= width and rank else 0)
        tops.append((beams + [-1] * 10)[:10])
    judged = Judged(
        users=np.array([user for user, _ in examples]),
        ranks=np.array(ranks),
        best=np.array(best),
        worst=np.array(worst),
        tops=np.array(tops),
        exact=len(examples) == len(run.examples("test")),
    )
    return judged, elsewhere
