"""The vLLM rollout engine: K candidates per prompt by any kind of `Decoding`, over an in-process
`LLMEngine`.

    submit -> vLLM requests (`sluice.actors.engines.vllm.groups`) -> step ... step -> Generation

- All L tokens are always generated. To a free decoder EOS and PAD are tokens like others; they make no item.
- Weight versions are vLLM's own labels of output tokens: a group that a swap falls into has version_min <
  version_max.
- A swap between two levels of beams changes the weights for the levels still to come.
- The K candidates of a prompt share its full cache blocks, within the step that prefills them too.

The process must have been started with `sluice.actors.engines.vllm.configuration.engine_environment`.
"""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from vllm.inputs import tokens_input
from vllm.outputs import RequestOutput

from sluice.actors.engines.checks import check_catalogue, check_requests, check_weights
from sluice.actors.engines.engine import GenerateRequest, Generation
from sluice.actors.engines.vllm.configuration import check_environment, derive_sizes
from sluice.actors.engines.vllm.groups import Group, open_group
from sluice.actors.engines.vllm.start import PrefixCacheCounter, gpu_bytes, read_policy_facts, start_llm
from sluice.actors.engines.vllm.trie import OfferedTries
from sluice.actors.settings import VllmEngineSettings
from sluice.catalog.decoding import Decoding
from sluice.catalog.trie.vocabulary import Vocabulary
from sluice.learner.policy.packed_weights import PackedWeights, TensorEntry


class VllmEngine:
    """Implements `sluice.actors.engines.engine.Engine`. One engine per process."""

    def __init__(
        self,
        policy_dir: Path,
        vocabulary: Vocabulary,
        decoding: Decoding,
        engine: VllmEngineSettings,
        seed: int,
        max_prompt_tokens: int,
        prompts_in_flight: int,
        version: int = 0,
        prefix_cache: PrefixCacheCounter | None = None,
    ) -> None:
        """Start an engine on a Hugging Face policy directory, whose weights are called `version`.

        `prefix_cache` is kept up to date with what vLLM finds in its cache, which costs time.

        Raises:
            PolicyError: there is no policy in the directory, or it does not fit the catalogue's tokens.
            ConfigError: settings or environment cannot work.
        """
        check_environment(engine)
        layout = vocabulary.layout
        self._policy = read_policy_facts(Path(policy_dir), layout, max_prompt_tokens)
        self._vocabulary, self._decoding, self._seed = vocabulary, decoding, seed
        self._max_prompt_tokens = max_prompt_tokens
        self._version = version
        self._loaded: tuple[
            TensorEntry, ...
        ] = ()  # what `load_weights` put in place; of the directory it is not known
        self.sizes = derive_sizes(
            engine,
            candidates=decoding.sequences,
            levels=layout.levels,
            max_prompt_tokens=max_prompt_tokens,
            prompts_in_flight=prompts_in_flight,
            model=self._policy.model,
            gpu_bytes=gpu_bytes(),
        )
        if torch.get_num_threads() != engine.threads:
            torch.set_num_threads(engine.threads)
        self._groups: dict[str, Group] = {}  # by request id
        # vLLM request id -> its group, and its number among the requests that the group made last
        self._running: dict[str, tuple[Group, int]] = {}
        self._requests_made = 0  # requests to vLLM so far
        self._directory = tempfile.TemporaryDirectory(prefix="sluice-engine-")
        self._tries = OfferedTries(Path(self._directory.name), files=engine.tensor_parallel > 1)
        trie_name = self._tries.offer(vocabulary.trie)
        self.prefix_cache = prefix_cache
        self._llm = start_llm(self._policy, engine, self.sizes, seed, trie_name, prefix_cache)
        self._llm.set_weight_version(str(version))

    @property
    def version(self) -> int:
        """Version of the weights that the next step uses."""
        return self._version

    @property
    def catalogue_version(self) -> int:
        """Version of the catalogue that the next request uses."""
        return self._vocabulary.version

    @property
    def in_flight(self) -> int:
        """Requests submitted and not yet returned by `step`."""
        return len(self._groups)

    @property
    def derivation(self) -> dict[str, tuple[int | float | str, str]]:
        """Every size of the engine with where it comes from, for the log."""
        return self.sizes.derivation

    def submit(self, requests: Sequence[GenerateRequest], decoding: Decoding | None = None) -> None:
        """Queue requests; returns at once. `decoding` replaces the engine's own for these requests.

        Raises:
            DataError: a prompt is empty, too long or holds a foreign token, or too few items are left to
                choose from.
        """
        decoding = decoding or self._decoding
        check_requests(requests, self._groups, decoding, self._vocabulary, self._max_prompt_tokens)
        trie = self._vocabulary.trie
        for request in requests:
            group = open_group(request, decoding, trie, self._tries.name(trie), self._seed)
            self._groups[request.request_id] = group
            self._submit_next(group)

    def step(self) -> list[Generation]:
        """Advance the running requests by one engine step; returns the groups that it finished."""
        if not self._groups:
            return []
        done = []
        for output in self._llm.step():
            assert isinstance(output, RequestOutput), "the engine is asked to generate only"
            group, number = self._running.pop(output.request_id)
            if not group.add_output(number, output):
                continue
            finished = group.make_generation()
            if finished is None:
                self._submit_next(group)
            else:
                del self._groups[finished.request_id]
                done.append(finished)
        return done

    def load_weights(self, weights: PackedWeights) -> float:
        """Swap in new weights between two steps, keeping every running request; returns the pause in seconds.

        Running requests keep the tokens they have and compute their history anew, since cached keys and
        values belong to the old weights. What has not changed since the last load is not loaded again. The
        bytes are verified by a thread that began when they arrived
        (`sluice.learner.policy.packed_weights.UnverifiedWeights`).

        Raises:
            PolicyError: the weights are not this policy's; the engine goes on with those it has.
        """
        start = time.perf_counter()
        check_weights(weights, self._policy.parameters, self._policy.tied)
        names = weights.changed(self._loaded)
        if names:
            self._loaded = ()  # until the update is finished nothing is known of what the engine holds
            self._llm.collective_rpc("start_weight_update")
            self._llm.collective_rpc(
                "update_weights", kwargs={"update_info": {"weights": weights, "names": frozenset(names)}}
            )
            self._llm.collective_rpc("finish_weight_update")
            self.forget()
            self._loaded = weights.manifest
        self._version = weights.version
        self._llm.set_weight_version(str(weights.version))
        return time.perf_counter() - start

    def forget(self) -> None:
        """Drop the prefix cache; running requests compute their histories anew."""
        if not self._llm.reset_prefix_cache(reset_running_requests=True):
            raise RuntimeError("vLLM kept its prefix cache although every request was preempted")

    def load_catalogue(self, vocabulary: Vocabulary) -> float:
        """Let requests submitted from now on choose from a later version of the catalogue; returns the pause
        in s.

        Requests under way finish with the version that they were submitted under, free ones too: it says
        which items their tokens are.

        Raises:
            DataError: the version is not higher than the one before.
            PolicyError: it is laid out in the tokens of another policy.
        """
        start = time.perf_counter()
        check_catalogue(vocabulary, self._vocabulary)
        self._vocabulary = vocabulary
        self._tries.offer(vocabulary.trie)
        self._tries.keep([vocabulary.trie, *(group.trie for group in self._groups.values())])
        return time.perf_counter() - start

    def close(self) -> None:
        """Free the engine."""
        self._llm.engine_core.shutdown()
        self._tries.keep([])
        self._directory.cleanup()

    def _submit_next(self, group: Group) -> None:
        for number, (prompt, params) in enumerate(group.make_requests()):
            name = str(self._requests_made)
            self._requests_made += 1
            self._running[name] = (group, number)
            self._llm.add_request(name, tokens_input(prompt.tolist()), params)
