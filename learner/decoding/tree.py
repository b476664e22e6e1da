"""Tree decoding: one prefill of the histories, then one forward per code level for all candidates of all
prompts.

The W candidates of a prompt are branches behind one history: each attends to the history and to its own
ancestors, so the history is computed and kept once however many there are. Results equal decoding every
candidate by itself.

    prefill -> Prefix -> decode: by the kind of a `Decoding`, one of
                           beams: the W likeliest        -> Candidates
                           sample: K independent draws   -> Candidates
                           stochastic_beams: K distinct draws, without replacement -> Candidates

Dimension suffixes: B prompts, T history tokens, W candidates of a prompt, L tokens of an item, C tokens to
choose from at a level (its codes, or the vocabulary), D hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from sluice.catalog.decoding import Decoding
from sluice.catalog.trie.vocabulary import Vocabulary
from sluice.learner.decoding.attention import BranchAttention
from sluice.learner.decoding.device_trie import DeviceTrie
from sluice.learner.decoding.draw import (
    distinct_values,
    draw_codes,
    log_inclusion,
    log_softmax,
    nucleus_logits,
    perturb_totals,
)
from sluice.learner.decoding.forward import forward_of, project_tokens
from sluice.learner.decoding.prefix import Prefix, PrefixCache, prefill_histories
from sluice.learner.kernels.sdpa import without_cudnn


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """W continuations of each prompt."""

    tokens_BWL: np.ndarray  # int64
    log_probs_BWL: np.ndarray  # float32 nats of each token; some are -inf where there are fewer than W beams
    inclusion_log_probs_BW: np.ndarray | None = (
        None  # float32 nats, chance of each to be drawn; stochastic beams only
    )

    @property
    def log_probs_BW(self) -> np.ndarray:
        """float32 nats, summed over the L tokens."""
        total_BW: np.ndarray = self.log_probs_BWL.sum(axis=2)
        return total_BW


class TreeDecoder:
    """Decodes semantic IDs with one policy, free or held to the catalogue."""

    def __init__(self, model: PreTrainedModel, vocabulary: Vocabulary, cache_bytes: int = 0) -> None:
        """Decode with `model` as it is at each call; its parameters are not copied.

        Args:
            model: a causal LM whose logits are its output embedding of the last hidden state.
            vocabulary: the catalogue in the model's tokens.
            cache_bytes: bound of what is remembered of past histories; `forget` when the model has changed.
        """
        without_cudnn()
        self._forward, self._head, self._device = (
            forward_of(model),
            model.get_output_embeddings(),
            model.device,
        )
        self.catalogue = DeviceTrie(
            vocabulary, self._device
        )  # a later version may take its place between decodings
        self.layout = vocabulary.layout
        # Histories end where items end: after BOS and every L tokens.
        self.cache = PrefixCache(cache_bytes, stride=self.layout.levels) if cache_bytes else None

    @torch.no_grad()
    def prefill(self, history_BT: torch.Tensor, lengths_B: torch.Tensor) -> Prefix:
        """Run right-padded histories `[B, T]` of `lengths_B` tokens."""
        return prefill_histories(
            self._forward, history_BT.cpu().numpy(), lengths_B.cpu().numpy(), self._device, self.cache
        )

    def forget(self) -> None:
        """Drop what is remembered of past histories; needed whenever the model's parameters have changed."""
        if self.cache is not None:
            self.cache.clear()

    def decode(
        self,
        prefix: Prefix,
        decoding: Decoding,
        streams: Sequence[np.random.Generator],
        excluded: list[np.ndarray] | None = None,
    ) -> Candidates:
        """Candidates by any kind of decoding, with the log-probs of the distribution drawn from.

        Args:
            prefix: of `prefill_histories`; it can be used again afterwards.
            decoding: how, and how many.
            streams: the random numbers of each prompt; exact beams take none.
            excluded: item rows to leave out, per prompt; for constrained decoding only.
        """
        if decoding.kind == "beam":
            return self.beams(prefix, decoding, excluded, renormalise=True)
        if decoding.kind == "stochastic_beam":
            return self.stochastic_beams(prefix, decoding, streams, excluded)
        return self.sample(prefix, decoding, streams, excluded)

    @torch.no_grad()
    def beams(
        self,
        prefix: Prefix,
        decoding: Decoding,
        excluded: list[np.ndarray] | None = None,
        *,
        renormalise: bool = False,
    ) -> Candidates:
        """The W likeliest token sequences of each prompt, best first.

        Args:
            prefix: of `prefill_histories`; it can be used again afterwards.
            decoding: W and what is allowed.
            excluded: item rows to leave out, per prompt; for constrained decoding only.
            renormalise: give each token's log-prob among the tokens allowed there, and order by that: the
                distribution that constrained sampling draws from. Otherwise scores of constrained beams stay
                those of the free policy, log p(item | history), and the order is the policy's own order of
                the items allowed.
        """
        tree = _Tree(self, prefix, decoding, excluded)
        total_BW = torch.zeros(len(prefix.lengths_B), 1, device=self._device)
        while not tree.complete:
            log_p_BWC = tree.log_probs(over_allowed=renormalise)
            total_BWC = total_BW[..., None] + log_p_BWC
            total_BW, flat_BW = total_BWC.flatten(1).topk(
                min(decoding.candidates, total_BWC[0].numel()), dim=1
            )
            tree.grow(log_p_BWC, flat_BW)
        return tree.candidates()

    @torch.no_grad()
    def sample(
        self,
        prefix: Prefix,
        decoding: Decoding,
        streams: Sequence[np.random.Generator],
        excluded: list[np.ndarray] | None = None,
    ) -> Candidates:
        """K independent candidates of each prompt, with the log-probs of the distributions drawn from.

        Candidates that agree so far are one branch, computed once.

        Args:
            prefix: of `prefill_histories`; it can be used again afterwards.
            decoding: K and the distribution.
            streams: the random numbers of each prompt.
            excluded: item rows to leave out, per prompt; for constrained decoding only.
        """
        tree = _Tree(self, prefix, decoding, excluded)
        shape = (decoding.candidates, self.layout.levels)
        numbers = [stream.random(shape, dtype=np.float32) for stream in streams]
        uniforms_BKL = torch.from_numpy(np.stack(numbers)).to(self._device)
        branch_BK = torch.zeros(uniforms_BKL.shape[:2], dtype=torch.int64, device=self._device)
        while not tree.complete:
            log_p_BWC = tree.log_probs(over_allowed=True)
            choice_BK = draw_codes(log_p_BWC, branch_BK, uniforms_BKL[..., tree.level])
            flat_BW, branch_BK = distinct_values(branch_BK * log_p_BWC.shape[2] + choice_BK)
            tree.grow(log_p_BWC, flat_BW)
        return tree.candidates(branch_BK)

    @torch.no_grad()
    def stochastic_beams(
        self,
        prefix: Prefix,
        decoding: Decoding,
        streams: Sequence[np.random.Generator],
        excluded: list[np.ndarray] | None = None,
    ) -> Candidates:
        """K distinct candidates of each prompt, sampled without replacement, in the order of drawing.

        Stochastic beam search (Kool et al. 2019, arXiv 1903.06059): beams by Gumbel-perturbed log-probs. With
        kappa the (K+1)-th largest, a candidate of log-prob l had the chance 1 - exp(-exp(l - kappa)) of being
        among the K, by which a sum over them is weighted to be unbiased. [paper] The root's value is drawn,
        too: a constant gives the same samples but a kappa that makes that estimator biased.

        Args:
            prefix: of `prefill_histories`; it can be used again afterwards.
            decoding: K and the distribution.
            streams: the random numbers of each prompt.
            excluded: item rows to leave out, per prompt; for constrained decoding only.
        """
        tree, count = _Tree(self, prefix, decoding, excluded), decoding.candidates
        largest_BW = self._gumbel(streams, 1)
        total_BW = torch.zeros_like(largest_BW)
        while not tree.complete:
            log_p_BWC = tree.log_probs(over_allowed=True)
            total_BWC = total_BW[..., None] + log_p_BWC
            perturbed_BWC = perturb_totals(total_BWC, self._gumbel(streams, *log_p_BWC.shape[1:]), largest_BW)
            kept = min(count + 1, perturbed_BWC[0].numel())  # one more than wanted: it gives kappa
            largest_BW, flat_BW = perturbed_BWC.flatten(1).topk(kept, dim=1)
            total_BW = total_BWC.flatten(1).gather(1, flat_BW)
            tree.grow(log_p_BWC, flat_BW)
        kappa_B1 = F.pad(largest_BW, (0, 1), value=-torch.inf)[:, count : count + 1]
        first_BK = torch.arange(min(count, kept), device=self._device).expand(len(total_BW), -1)
        inclusion_BK = log_inclusion(total_BW[:, :count], kappa_B1).float().cpu().numpy()
        return replace(tree.candidates(first_BK), inclusion_log_probs_BW=inclusion_BK)

    def _gumbel(self, streams: Sequence[np.random.Generator], *shape: int) -> torch.Tensor:
        """Gumbel(0) noise, float64 `[B, *shape]`."""
        return torch.from_numpy(np.stack([stream.gumbel(size=shape) for stream in streams])).to(self._device)

    def logits(self, hidden: torch.Tensor, tokens: slice) -> torch.Tensor:
        """Float32 logits of some of the tokens."""
        return project_tokens(self._head, hidden, tokens).float()


class _Tree:
    """The branches of one decoding, grown a level at a time."""

    def __init__(
        self, decoder: TreeDecoder, prefix: Prefix, decoding: Decoding, excluded: list[np.ndarray] | None
    ) -> None:
        if excluded is not None and not decoding.constrained:
            raise ValueError("items can be excluded from constrained decoding only")
        self._decoder, self._prefix, self._decoding = decoder, prefix, decoding
        self._trie, device = decoder.catalogue, prefix.lengths_B.device
        self._exclusions = None
        if excluded is not None and any(len(items) for items in excluded):
            self._exclusions = self._trie.exclusions(excluded)
        self._attention = BranchAttention(prefix.keys, prefix.values, prefix.lengths_B)
        self._hidden_BWD = prefix.hidden_BD[:, None]
        self._node_BW = torch.zeros(len(prefix.lengths_B), 1, dtype=torch.int64, device=device)
        self._tokens_BWl = torch.empty(len(prefix.lengths_B), 1, 0, dtype=torch.int64, device=device)
        self._log_probs_BWl = torch.empty(len(prefix.lengths_B), 1, 0, device=device)

    @property
    def level(self) -> int:
        """The level to choose next."""
        return self._tokens_BWl.shape[2]

    @property
    def complete(self) -> bool:
        """Every branch has its L tokens."""
        return self.level == self._decoder.layout.levels

    def log_probs(self, *, over_allowed: bool) -> torch.Tensor:
        """Log-probs `[B, W, C]` of the next tokens, -inf where one is not allowed.

        `over_allowed` normalises over the tokens allowed, else over the whole vocabulary.
        """
        layout, level, top_p = self._decoder.layout, self.level, self._decoding.top_p
        codes = slice(layout.level_offsets[level], layout.level_offsets[level] + layout.level_sizes[level])
        needed = codes if self._decoding.constrained and over_allowed else slice(0, layout.vocab_size)
        logits = self._decoder.logits(self._hidden_BWD, needed) / self._decoding.temperature
        if not self._decoding.constrained:
            return log_softmax(nucleus_logits(logits, top_p) if top_p < 1 else logits)
        allowed_BWC = self._trie.allowed(level, self._node_BW, self._exclusions)
        if not over_allowed:
            return log_softmax(logits)[..., codes].masked_fill(~allowed_BWC, -torch.inf)
        logits = logits.masked_fill_(~allowed_BWC, -torch.inf)
        return log_softmax(nucleus_logits(logits, top_p) if top_p < 1 else logits)

    def grow(self, log_p_BWC: torch.Tensor, flat_BW: torch.Tensor) -> None:
        """Go on from the chosen places of `log_p_BWC`, flattened over W and C."""
        level, choices = self.level, log_p_BWC.shape[2]
        parent_BW, choice_BW = flat_BW // choices, flat_BW % choices
        log_p_BW = log_p_BWC.flatten(1).gather(1, flat_BW)
        token_BW = (
            choice_BW + self._decoder.layout.level_offsets[level] if self._decoding.constrained else choice_BW
        )
        self._log_probs_BWl = torch.cat([_pick(self._log_probs_BWl, parent_BW), log_p_BW[..., None]], dim=2)
        self._tokens_BWl = torch.cat([_pick(self._tokens_BWl, parent_BW), token_BW[..., None]], dim=2)
        if self.complete:
            return
        if self._decoding.constrained:
            self._node_BW = self._trie.step(level, self._node_BW.gather(1, parent_BW), choice_BW)
        self._attention.grow(parent_BW if level else None)
        position_BW = (self._prefix.lengths_B[:, None] + level).expand_as(token_BW)
        hidden_ND = self._decoder._forward(token_BW.flatten(), position_BW.flatten(), self._attention, None)
        self._hidden_BWD = hidden_ND.view(*token_BW.shape, -1)

    def candidates(self, branch_BK: torch.Tensor | None = None) -> Candidates:
        """The finished branches, or the ones that K candidates ended on."""
        tokens, log_probs = self._tokens_BWl, self._log_probs_BWl
        if branch_BK is not None:
            tokens, log_probs = _pick(tokens, branch_BK), _pick(log_probs, branch_BK)
        return Candidates(tokens_BWL=tokens.cpu().numpy(), log_probs_BWL=log_probs.cpu().numpy())


def _pick(values_BWl: torch.Tensor, index_BW: torch.Tensor) -> torch.Tensor:
    return torch.gather(values_BWl, 1, index_BW[..., None].expand(-1, -1, values_BWl.shape[2]))
