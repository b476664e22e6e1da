"""Tree decoding: one prefill of the histories, then one forward per code level for all beams of all prompts.

The W beams of a prompt are branch tokens of one row: each attends to the shared history and to its own ancestors,
through a boolean 4-D mask, so the history is computed and kept once however many beams there are. Results equal a beam
search that keeps one cache per beam. Dimension suffixes as in `learner.batch`, and W beams.
"""

from dataclasses import dataclass

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel

from catalog.trie import Exclusions, Trie


@dataclass(frozen=True, kw_only=True)
class Beams:
    """The W likeliest continuations of each prompt, best first."""

    tokens_BWL: np.ndarray  # int64
    log_probs_BW: np.ndarray  # float32 nats, summed over the L tokens; -inf where there are fewer than W


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """Histories run through the model once; any number of decodings may start from it, one after the other."""

    cache: DynamicCache
    real_BT: torch.Tensor  # bool, True where the history has a token
    lengths_B: torch.Tensor  # int64
    first_BV: torch.Tensor  # float32 log-probs of the first token


class TreeDecoder:
    """Beam search over semantic IDs, free or held to a trie."""

    def __init__(self, model: PreTrainedModel, trie: Trie) -> None:
        """The model must run with sdpa attention, which takes boolean 4-D masks."""
        self._decoder = model.get_decoder()
        self._head = model.get_output_embeddings()
        self._device = model.device
        self._trie = trie

    @torch.no_grad()
    def prefill(self, history_BT: torch.Tensor, lengths_B: torch.Tensor) -> Prefix:
        """Run right-padded histories `[B, T]` of `lengths_B` tokens."""
        history_BT, lengths_B = history_BT.to(self._device), lengths_B.to(self._device)
        prompts, width = history_BT.shape
        places = torch.arange(width, device=self._device)
        real_BT = places[None] < lengths_B[:, None]
        causal = places[:, None] >= places[None]
        cache = DynamicCache()
        hidden_BTD = self._decoder(
            input_ids=history_BT,
            attention_mask=causal[None, None].expand(prompts, 1, -1, -1),
            position_ids=places[None].expand(prompts, -1),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        last_BD = hidden_BTD[torch.arange(prompts, device=self._device), lengths_B - 1]
        return Prefix(cache=cache, real_BT=real_BT, lengths_B=lengths_B, first_BV=self._log_probs(last_BD))

    @torch.no_grad()
    def beams(
        self, prefix: Prefix, width: int, *, constrained: bool = True, excluded: list[np.ndarray] | None = None
    ) -> Beams:
        """The `width` likeliest token sequences of each prompt.

        Args:
            prefix: of `prefill`; it can be used again afterwards.
            width: W.
            constrained: only items of the catalogue. Scores stay those of the free policy, log p(item | history), so
                the order is the policy's own order of the items allowed; nothing is renormalised over the mask.
            excluded: item rows to leave out, per prompt; for constrained decoding only.
        """
        if excluded is not None and not constrained:
            raise ValueError("items can be excluded from constrained decoding only")
        prompts, history = prefix.real_BT.shape
        exclusions = Exclusions(self._trie, excluded) if excluded is not None else None
        request_B = np.arange(prompts)
        node_BW = np.zeros((prompts, 1), dtype=np.int32)
        score_BW = torch.zeros(prompts, 1, device=self._device)
        tokens_BWl = torch.zeros(prompts, 1, 0, dtype=torch.long, device=self._device)
        ancestors_BWl = torch.zeros_like(tokens_BWl)
        next_BWV = prefix.first_BV[:, None]
        for level in range(self._trie.levels):
            score_BWV = score_BW[..., None] + next_BWV
            if constrained:
                owner = np.repeat(request_B, node_BW.shape[1])
                allowed = self._trie.mask(node_BW.reshape(-1), exclusions, owner)
                allowed_BWV = torch.from_numpy(allowed).to(self._device).view(prompts, -1, allowed.shape[1])
                score_BWV[..., : allowed.shape[1]].masked_fill_(~allowed_BWV, -torch.inf)
                score_BWV[..., allowed.shape[1] :] = -torch.inf
            vocabulary = score_BWV.shape[2]
            kept = min(width, score_BWV.shape[1] * vocabulary)
            score_BW, flat_BW = score_BWV.flatten(1).topk(kept, dim=1)
            parent_BW, token_BW = flat_BW // vocabulary, flat_BW % vocabulary
            tokens_BWl = torch.cat([_pick(tokens_BWl, parent_BW), token_BW[..., None]], dim=2)
            ancestors_BWl = _pick(ancestors_BWl, parent_BW)
            if constrained:
                parents = np.take_along_axis(node_BW, parent_BW.cpu().numpy(), axis=1)
                node_BW = self._trie.step(parents, token_BW.cpu().numpy())
            if level + 1 < self._trie.levels:
                next_BWV, ancestors_BWl = self._forward(prefix, token_BW, ancestors_BWl, level)
        if (branch_tokens := prefix.cache.get_seq_length() - history) > 0:
            prefix.cache.crop(-branch_tokens)
        return Beams(tokens_BWL=tokens_BWl.cpu().numpy(), log_probs_BW=score_BW.float().cpu().numpy())

    def _forward(
        self, prefix: Prefix, token_BW: torch.Tensor, ancestors_BWl: torch.Tensor, level: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One level: append the W branch tokens to the cache; log-probs `[B, W, V]` and the ancestors' cache slots."""
        prompts, width = token_BW.shape
        start = prefix.cache.get_seq_length()
        slots = torch.arange(start, start + width, device=self._device).expand(prompts, -1)
        ancestors_BWl = torch.cat([ancestors_BWl, slots[..., None]], dim=2)
        mask_BWS = torch.zeros(prompts, width, start + width, dtype=torch.bool, device=self._device)
        mask_BWS[:, :, : prefix.real_BT.shape[1]] = prefix.real_BT[:, None]
        mask_BWS.scatter_(2, ancestors_BWl, True)
        hidden_BWD = self._decoder(
            input_ids=token_BW,
            attention_mask=mask_BWS[:, None],
            position_ids=(prefix.lengths_B + level)[:, None].expand(-1, width),
            past_key_values=prefix.cache,
            use_cache=True,
        ).last_hidden_state
        return self._log_probs(hidden_BWD), ancestors_BWl

    def _log_probs(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.log_softmax(self._head(hidden).float(), dim=-1)


def _pick(values_BWl: torch.Tensor, index_BW: torch.Tensor) -> torch.Tensor:
    return torch.gather(values_BWl, 1, index_BW[..., None].expand(-1, -1, values_BWl.shape[2]))
