"""How vLLM is asked for the K candidates of one prompt: which requests it takes, and what their answers mean.

- `SampledGroup`: one request for n=K samples of L tokens.
- `BeamGroup`: level by level, one request of one token per beam, whose log-probs say what may follow. The
  history of a beam is in the prefix cache. An exact beam needs its K likeliest tokens only; a stochastic one
  every token allowed, since each may hold the largest perturbed value.

Log-probs are vLLM's `processed_logprobs`: after trie mask, temperature and top-p, so of the distribution
drawn from. A greedy request (temperature 0 to vLLM) has those of temperature 1.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from vllm import SamplingParams
from vllm.logprobs import FlatLogprobs
from vllm.outputs import CompletionOutput, RequestOutput, WeightVersionSpan
from vllm.sampling_params import RequestOutputKind

from sluice.actors.engines.engine import GenerateRequest, Generation
from sluice.actors.engines.vllm.beams import Beams, StochasticBeams
from sluice.actors.engines.vllm.trie import trie_constraint
from sluice.catalog.decoding import Decoding
from sluice.catalog.trie.trie import Trie

# All requests: no text, no stopping at EOS, log-probs in flat lists, an answer only when it is complete.
_PLAIN: dict[str, Any] = {
    "detokenize": False,
    "ignore_eos": True,
    "flat_logprobs": True,
    "output_kind": RequestOutputKind.FINAL_ONLY,
    "skip_clone": True,
}

VllmRequest = tuple[np.ndarray, SamplingParams]  # prompt token ids, and how to continue them


class Group(Protocol):
    """A prompt on its way through vLLM."""

    request: GenerateRequest
    trie: Trie  # of the catalogue when the request was submitted

    def make_requests(self) -> list[VllmRequest]:
        """The requests that vLLM has to answer next."""

    def add_output(self, number: int, output: RequestOutput) -> bool:
        """Take in the answer to request `number` of the last `make_requests`; True when that was the last one
        missing.
        """

    def make_generation(self) -> Generation | None:
        """The finished group, or None while there is more to ask."""


def open_group(request: GenerateRequest, decoding: Decoding, trie: Trie, trie_name: str, seed: int) -> Group:
    """A prompt at its beginning, which keeps to this trie, known to vLLM's logits processor as `trie_name`.

    What is random in it depends on the engine's `seed` and the request's id alone.
    """
    digest = hashlib.blake2b(f"{seed}/{request.request_id}".encode(), digest_size=8).digest()
    own_seed = int.from_bytes(digest) >> 2  # leaves room for seed + i below 2**63
    if decoding.kind == "sample":
        return SampledGroup(request, decoding, trie, trie_name, own_seed)
    return BeamGroup(request, decoding, trie, trie_name, own_seed)


class SampledGroup:
    """K independent samples."""

    def __init__(
        self, request: GenerateRequest, decoding: Decoding, trie: Trie, trie_name: str, seed: int
    ) -> None:
        self.request, self.trie = request, trie
        self._decoding, self._trie_name, self._seed = decoding, trie_name, seed
        self._completions: Sequence[CompletionOutput] = ()

    def make_requests(self) -> list[VllmRequest]:
        """One request for everything. vLLM seeds candidate i with seed + i, so requests' seeds must lie far
        apart.
        """
        params = SamplingParams(
            n=self._decoding.candidates,
            temperature=self._decoding.temperature,
            top_p=self._decoding.top_p,
            max_tokens=self.trie.levels,
            seed=self._seed,
            logprobs=0,
            extra_args=trie_constraint(0, self.request.excluded, self._trie_name)
            if self._decoding.constrained
            else None,
            **_PLAIN,
        )
        return [(self.request.prompt, params)]

    def add_output(self, number: int, output: RequestOutput) -> bool:
        """Keep the samples."""
        self._completions = output.outputs
        return True

    def make_generation(self) -> Generation:
        """The samples."""
        versions = _versions(self._completions)
        return Generation(
            request_id=self.request.request_id,
            tokens=np.asarray([completion.token_ids for completion in self._completions], dtype=np.int64),
            log_probs=np.asarray(
                [_chosen_log_probs(completion) for completion in self._completions], dtype=np.float32
            ),
            version_min=min(versions),
            version_max=max(versions),
            catalogue_version=self.trie.version,
        )


class BeamGroup:
    """Exact or stochastic beams."""

    def __init__(
        self, request: GenerateRequest, decoding: Decoding, trie: Trie, trie_name: str, seed: int
    ) -> None:
        self.request, self.trie = request, trie
        self._decoding, self._trie_name = decoding, trie_name
        self._stochastic = decoding.kind == "stochastic_beam"
        self._beams = (
            StochasticBeams(decoding.candidates, np.random.default_rng(seed))
            if self._stochastic
            else Beams(decoding.candidates)
        )
        self._nodes = np.zeros(1, dtype=np.int32)  # [W] trie node of each beam
        self._versions: set[int] = set()
        self._missing = 0
        self._log_probs_WV = np.empty((0, trie.vocab_size), dtype=np.float32)

    def make_requests(self) -> list[VllmRequest]:
        """One request per beam, for the log-probs of its next token."""
        tokens_Wl = self._beams.tokens_Wl
        self._missing = len(tokens_Wl)
        self._log_probs_WV = np.full((len(tokens_Wl), self.trie.vocab_size), -np.inf, dtype=np.float32)
        return [
            (np.concatenate([self.request.prompt, tokens]), self._next_token(node))
            for tokens, node in zip(tokens_Wl, self._nodes.tolist(), strict=True)
        ]

    def _next_token(self, node: int) -> SamplingParams:
        # Which token vLLM chooses does not matter: exact beams save it the drawing.
        continuations = self.trie.vocab_size
        if self._decoding.constrained:
            continuations = self.trie.child_count(node)
        if not self._stochastic:
            continuations = min(continuations, self._decoding.candidates)
        return SamplingParams(
            temperature=self._decoding.temperature if self._stochastic else 0.0,
            max_tokens=1,
            logprobs=continuations,
            extra_args=trie_constraint(node, self.request.excluded, self._trie_name)
            if self._decoding.constrained
            else None,
            **_PLAIN,
        )

    def add_output(self, number: int, output: RequestOutput) -> bool:
        """Note what may follow a beam; after the last beam of a level, go on to the next level."""
        (completion,) = output.outputs
        self._versions |= _versions([completion])
        # The first entry is the chosen token, which comes again among the likeliest.
        flat = _flat_log_probs(completion)
        self._log_probs_WV[number, flat.token_ids[1:]] = flat.logprobs[1:]
        self._missing -= 1
        if self._missing:
            return False
        parents = self._beams.grow(self._log_probs_WV)
        self._nodes = self.trie.step(self._nodes[parents], self._beams.tokens_Wl[:, -1])
        return True

    def make_generation(self) -> Generation | None:
        """The beams, once they are whole sequences."""
        if self._beams.tokens_Wl.shape[1] < self.trie.levels:
            return None
        candidates = self._beams.candidates()
        return Generation(
            request_id=self.request.request_id,
            tokens=candidates.tokens_KL,
            log_probs=candidates.log_probs_KL,
            version_min=min(self._versions),
            version_max=max(self._versions),
            catalogue_version=self.trie.version,
            inclusion_log_probs=candidates.inclusion_log_probs_K,
        )


def _versions(completions: Sequence[CompletionOutput]) -> set[int]:
    """Versions of the weights that produced their tokens."""
    return {int(span.version) for completion in completions for span in _weight_spans(completion)}


def _weight_spans(completion: CompletionOutput) -> list[WeightVersionSpan]:
    assert completion.weight_versions is not None, "every final output has them"
    return completion.weight_versions


def _flat_log_probs(completion: CompletionOutput) -> FlatLogprobs:
    assert isinstance(completion.logprobs, FlatLogprobs), "every request asks for log-probs, in flat lists"
    return completion.logprobs


def _chosen_log_probs(completion: CompletionOutput) -> list[float]:
    """The log-prob of each generated token, which vLLM puts first at its position."""
    flat = _flat_log_probs(completion)
    return [flat.logprobs[start] for start in flat.start_indices]
