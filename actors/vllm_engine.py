"""The vLLM rollout engine: K candidates per prompt by sampling or by exact beam search, over an in-process `LLMEngine`.

    submit -> vLLM requests (sampling: one with n=K; beams: one per beam and level) -> step ... step -> Generation

- Log-probs are vLLM's `processed_logprobs`: after trie mask, temperature and top-p, so of the distribution drawn from.
- All L tokens are always generated. To a free decoder EOS and PAD are tokens like others; they make no item.
- Weight versions are vLLM's own labels of output tokens: a group that a swap falls into has version_min < version_max.
- Beams go level by level: a beam is a request for one token with its K likeliest continuations, whose history is in
  the prefix cache. A swap between two levels changes the weights for the levels still to come.
- The K candidates of a prompt share its full cache blocks, within the step that prefills them too.

The process must have been started with `actors.vllm_configuration.engine_environment`.
"""

import hashlib
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from vllm import SamplingParams
from vllm.inputs import tokens_input
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind

from actors.engine import GenerateRequest, Generation
from actors.settings import DecodeSettings, EngineSettings
from actors.vllm_configuration import check_environment, derive_sizes
from actors.vllm_start import PrefixCacheCounter, read_policy, start_llm
from actors.vllm_trie import OfferedTries, constraint
from catalog.errors import DataError, PolicyError
from catalog.trie import Trie
from catalog.vocabulary import Vocabulary
from learner.weights import PackedWeights


@dataclass
class _Group:
    """A request on its way. The beam fields grow by one level at a time."""

    request: GenerateRequest
    decode: DecodeSettings
    trie: Trie  # of the catalogue when the request was submitted
    tokens: np.ndarray  # [W, l] int64, the beams so far
    log_probs: np.ndarray  # [W, l] float32
    nodes: np.ndarray  # [W] int32, trie node of each beam
    waiting: int = 0  # one-token requests of this level still running
    found: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)  # beam -> tokens [C], log-probs [C]
    versions: set[int] = field(default_factory=set)


class VllmEngine:
    """Implements `actors.engine.Engine`. One engine per process."""

    def __init__(
        self,
        policy_dir: Path,
        vocabulary: Vocabulary,
        decode: DecodeSettings,
        engine: EngineSettings,
        seed: int,
        max_prompt_tokens: int,
        prompts_in_flight: int,
        version: int = 0,
    ) -> None:
        """Start an engine on a Hugging Face policy directory, whose weights are called `version`.

        Raises:
            PolicyError: there is no policy in the directory, or it does not fit the catalogue's tokens.
            ConfigError: settings or environment cannot work.
        """
        check_environment(engine)
        layout = vocabulary.layout
        self._policy = read_policy(Path(policy_dir), layout, max_prompt_tokens)
        self._trie, self._layout, self._decode, self._seed = vocabulary.trie, layout, decode, seed
        self._max_prompt_tokens = max_prompt_tokens
        self._version = version
        self.sizes = derive_sizes(
            engine,
            candidates=decode.candidates,
            levels=layout.levels,
            max_prompt_tokens=max_prompt_tokens,
            prompts_in_flight=prompts_in_flight,
            model=self._policy.model,
            cpu=current_platform.is_cpu(),
        )
        if torch.get_num_threads() != engine.threads:
            torch.set_num_threads(engine.threads)
        self._groups: dict[str, _Group] = {}  # by request id
        self._running: dict[str, tuple[_Group, int]] = {}  # vLLM request id -> group, beam
        self._directory = tempfile.TemporaryDirectory(prefix="sluice-engine-")
        self._tries = OfferedTries(Path(self._directory.name), files=engine.tensor_parallel > 1)
        trie_name = self._tries.offer(self._trie)
        self.prefix_cache = PrefixCacheCounter()
        self._llm = start_llm(self._policy, engine, self.sizes, seed, trie_name, self.prefix_cache)
        self._llm.set_weight_version(str(version))

    @property
    def version(self) -> int:
        """Version of the weights that the next step uses."""
        return self._version

    @property
    def catalogue_version(self) -> int:
        """Version of the catalogue that the next request uses."""
        return self._trie.version

    @property
    def in_flight(self) -> int:
        """Requests submitted and not yet returned by `step`."""
        return len(self._groups)

    @property
    def derivation(self) -> dict[str, tuple[int | float | str, str]]:
        """Every size of the engine with where it comes from, for the log."""
        return self.sizes.derivation

    def submit(self, requests: Sequence[GenerateRequest], decode: DecodeSettings | None = None) -> None:
        """Queue requests; returns at once. `decode` replaces the engine's own settings for these requests.

        Raises:
            DataError: a prompt is empty, too long or holds a foreign token, or too few items are left to choose from.
        """
        decode = decode or self._decode
        for request in requests:
            self._check(request, decode)
        for request in requests:
            group = _Group(
                request=request,
                decode=decode,
                trie=self._trie,
                tokens=np.empty((1, 0), dtype=np.int64),
                log_probs=np.empty((1, 0), dtype=np.float32),
                nodes=np.zeros(1, dtype=np.int32),
            )
            self._groups[request.request_id] = group
            if decode.kind == "sample":
                self._add(request.request_id, group, 0, request.prompt, self._sampling(request, decode))
            else:
                self._extend(group)

    def step(self) -> list[Generation]:
        """Advance the running requests by one engine step; returns the groups that it finished."""
        if not self._groups:
            return []
        done = []
        for output in self._llm.step():
            group, beam = self._running.pop(output.request_id)
            finished = (
                self._sampled(group, output) if group.decode.kind == "sample" else self._beam(group, beam, output)
            )
            if finished is not None:
                del self._groups[finished.request_id]
                done.append(finished)
        return done

    def load_weights(self, weights: PackedWeights) -> float:
        """Swap in new weights between two steps, keeping every running request; returns the pause in seconds.

        Running requests keep the tokens they have and compute their history anew, since cached keys and values belong
        to the old weights.

        Raises:
            PolicyError: the weights arrived damaged or are not this policy's; the engine goes on with those it has.
        """
        start = time.perf_counter()
        weights.verify()
        self._check_weights(weights)
        self._llm.collective_rpc("start_weight_update")
        self._llm.collective_rpc("update_weights", kwargs={"update_info": {"weights": weights}})
        self._llm.collective_rpc("finish_weight_update")
        if not self._llm.reset_prefix_cache(reset_running_requests=True):
            raise RuntimeError("vLLM kept its prefix cache although every request was preempted")
        self._version = weights.version
        self._llm.set_weight_version(str(weights.version))
        return time.perf_counter() - start

    def load_catalogue(self, vocabulary: Vocabulary) -> float:
        """Let requests submitted from now on choose from a later version of the catalogue; returns the pause in s.

        Requests under way finish with the version that they were submitted under, free ones too: it says which items
        their tokens are.

        Raises:
            DataError: the version is not higher than the one before.
            PolicyError: it is laid out in the tokens of another policy.
        """
        start = time.perf_counter()
        if vocabulary.version <= self._trie.version:
            raise DataError(
                f"catalogue version {vocabulary.version} can't replace version {self._trie.version}: versions must "
                "increase"
            )
        if vocabulary.layout != self._layout:
            raise PolicyError(
                f"catalogue version {vocabulary.version} is laid out for levels {list(vocabulary.layout.level_sizes)}, "
                f"the engine's policy has {list(self._layout.level_sizes)}: lay it out with the policy's own layout"
            )
        self._trie = vocabulary.trie
        self._tries.offer(self._trie)
        self._tries.keep([self._trie, *(group.trie for group in self._groups.values())])
        return time.perf_counter() - start

    def close(self) -> None:
        """Free the engine."""
        self._llm.engine_core.shutdown()
        self._tries.keep([])
        self._directory.cleanup()

    def _check_weights(self, weights: PackedWeights) -> None:
        known, sent = self._policy.parameters, {entry.name: entry.shape for entry in weights.manifest}
        for name, shape in sent.items():
            if known.get(name) != shape:
                raise PolicyError(
                    f"weights version {weights.version} hold {name} of shape {shape} where the engine's policy has "
                    f"{known.get(name, 'none')}; learner and engine must start from the same policy"
                )
        absent = [name for name in known if name not in sent and not (self._policy.tied and name == "lm_head.weight")]
        if absent:
            raise PolicyError(
                f"weights version {weights.version} lack {len(absent)} parameters, {absent[0]} first; publish all "
                "of the policy's"
            )

    def _check(self, request: GenerateRequest, decode: DecodeSettings) -> None:
        name, length = request.request_id, len(request.prompt)
        if name in self._groups:
            raise ValueError(f"request {name} is already in flight")
        if not 1 <= length <= self._max_prompt_tokens:
            raise DataError(
                f"request {name}: prompt of {length} tokens; this engine was started for 1 to "
                f"{self._max_prompt_tokens}, so cut the history or start the engine for longer prompts"
            )
        low, high = int(request.prompt.min()), int(request.prompt.max())
        if low < 0 or high >= self._layout.vocab_size:
            raise DataError(
                f"request {name}: prompt holds token {low if low < 0 else high}; the policy has tokens 0 to "
                f"{self._layout.vocab_size - 1}"
            )
        needed = 1 if decode.kind == "sample" else decode.candidates
        available = self._layout.vocab_size**self._layout.levels
        if decode.constrained:
            available = self._trie.items - len(np.unique(request.excluded))
        if available < needed:
            raise DataError(
                f"request {name}: {needed} distinct candidates wanted and {available} to choose from (catalogue of "
                f"{self._trie.items} items less the excluded ones); lower rollout.decode.candidates or exclude "
                "fewer items"
            )

    def _sampling(self, request: GenerateRequest, decode: DecodeSettings) -> SamplingParams:
        # vLLM seeds candidate i with seed + i, so the seeds of different requests must lie far apart.
        digest = hashlib.blake2b(f"{self._seed}/{request.request_id}".encode(), digest_size=8).digest()
        return SamplingParams(
            n=decode.candidates,
            temperature=decode.temperature,
            top_p=decode.top_p,
            max_tokens=self._layout.levels,
            seed=int.from_bytes(digest) >> 2,
            logprobs=0,
            extra_args=constraint(0, request.excluded, self._tries.name(self._trie)) if decode.constrained else None,
            **_PLAIN,
        )

    def _add(self, name: str, group: _Group, beam: int, prompt: np.ndarray, params: SamplingParams) -> None:
        self._running[name] = (group, beam)
        self._llm.add_request(name, tokens_input(prompt.tolist()), params)

    def _extend(self, group: _Group) -> None:
        """Ask for the continuations of every beam of a level."""
        request, decode = group.request, group.decode
        group.waiting, group.found, name = len(group.tokens), {}, self._tries.name(group.trie)
        for beam, tokens in enumerate(group.tokens):
            params = SamplingParams(
                temperature=0.0,
                max_tokens=1,
                logprobs=min(decode.candidates, self._layout.vocab_size),
                extra_args=constraint(group.nodes[beam], request.excluded, name) if decode.constrained else None,
                **_PLAIN,
            )
            self._add(
                f"{request.request_id}/{len(tokens)}.{beam}",
                group,
                beam,
                np.concatenate([request.prompt, tokens]),
                params,
            )

    def _sampled(self, group: _Group, output: RequestOutput) -> Generation:
        _note_versions(group, output.outputs)
        return _generation(
            group,
            np.asarray([candidate.token_ids for candidate in output.outputs], dtype=np.int64),
            np.asarray([_chosen_log_probs(candidate) for candidate in output.outputs], dtype=np.float32),
        )

    def _beam(self, group: _Group, beam: int, output: RequestOutput) -> Generation | None:
        """Take in one beam's continuations; when they are the level's last, go on to the next level or finish."""
        completion = output.outputs[0]
        _note_versions(group, output.outputs)
        # The first entry is the greedy token, which comes again as the first of the likeliest.
        group.found[beam] = (
            np.asarray(completion.logprobs.token_ids[1:], dtype=np.int64),
            np.asarray(completion.logprobs.logprobs[1:], dtype=np.float32),
        )
        group.waiting -= 1
        if group.waiting:
            return None
        order = range(len(group.tokens))
        tokens = np.stack([group.found[at][0] for at in order])  # [W, C]
        log_probs = np.stack([group.found[at][1] for at in order])  # [W, C]
        totals = group.log_probs.sum(axis=1, dtype=np.float64)[:, None] + log_probs
        best = np.argsort(-totals, axis=None, kind="stable")[: group.decode.candidates]
        best = best[np.isfinite(totals.reshape(-1)[best])]  # the mask leaves a beam fewer than C continuations
        parent, at = np.unravel_index(best, totals.shape)
        chosen = tokens[parent, at]
        group.tokens = np.concatenate([group.tokens[parent], chosen[:, None]], axis=1)
        group.log_probs = np.concatenate([group.log_probs[parent], log_probs[parent, at][:, None]], axis=1)
        group.nodes = group.trie.step(group.nodes[parent], chosen)
        if group.tokens.shape[1] == self._layout.levels:
            return _generation(group, group.tokens, group.log_probs)
        self._extend(group)
        return None


# All requests: no text, no stopping at EOS, log-probs in flat lists, an answer only when it is complete.
_PLAIN = {
    "detokenize": False,
    "ignore_eos": True,
    "flat_logprobs": True,
    "output_kind": RequestOutputKind.FINAL_ONLY,
    "skip_clone": True,
}


def _generation(group: _Group, tokens: np.ndarray, log_probs: np.ndarray) -> Generation:
    return Generation(
        request_id=group.request.request_id,
        tokens=tokens,
        log_probs=log_probs,
        version_min=min(group.versions),
        version_max=max(group.versions),
        catalogue_version=group.trie.version,
    )


def _note_versions(group: _Group, completions: Sequence[CompletionOutput]) -> None:
    group.versions.update(int(span.version) for completion in completions for span in completion.weight_versions)


def _chosen_log_probs(completion: CompletionOutput) -> list[float]:
    """The log-prob of each generated token, which vLLM puts first at its position."""
    flat = completion.logprobs
    return [flat.logprobs[start] for start in flat.start_indices]
