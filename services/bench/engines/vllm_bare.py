"""The bare side of `sluice.services.bench.system.rollout`: vLLM's own `LLM.generate`, with our engine's
arguments and our requests.

All that is left out is what a rollout actor needs and a bare loop does not: the trie's logits processor, the
weight transfer, and everything outside vLLM. The process must have been started with
`sluice.actors.engines.vllm.configuration.engine_environment`.
"""

import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from vllm import LLM
from vllm.inputs import tokens_input

from sluice.actors.engines.engine import GenerateRequest
from sluice.actors.engines.vllm.configuration import derive_sizes
from sluice.actors.engines.vllm.groups import open_group
from sluice.actors.engines.vllm.start import compile_graphs, gpu_bytes, plain_arguments, read_policy_facts
from sluice.actors.settings import RolloutSettings, VllmEngineSettings
from sluice.catalog.trie.vocabulary import Vocabulary
from sluice.cluster.environment import raise_gc_threshold
from sluice.services.bench.support.rollout_timing import Arrivals

NOTHING = np.empty(0, dtype=np.int32)


class BareLoop:
    """One `vllm.LLM` in this process."""

    def __init__(
        self,
        policy_dir: Path,
        vocabulary: Vocabulary,
        rollout: RolloutSettings,
        seed: int,
        max_prompt_tokens: int,
    ) -> None:
        settings, decoding = rollout.engine, rollout.decode.decoding(exclude_seen=False)
        assert isinstance(settings, VllmEngineSettings), "the bare loop is vLLM's"
        policy = read_policy_facts(policy_dir, vocabulary.layout, max_prompt_tokens)
        sizes = derive_sizes(
            settings,
            candidates=decoding.sequences,
            levels=vocabulary.layout.levels,
            max_prompt_tokens=max_prompt_tokens,
            prompts_in_flight=rollout.prompts_per_lease * rollout.leases_ahead,
            model=policy.model,
            gpu_bytes=gpu_bytes(),
        )
        torch.set_num_threads(settings.threads)
        self._vocabulary, self._decoding, self._seed = vocabulary, decoding, seed
        compile_graphs(settings)
        self._llm = LLM(**plain_arguments(policy_dir, settings, sizes, seed))
        raise_gc_threshold()  # as a rollout actor does

    def generate(self, prompts: dict[str, np.ndarray]) -> tuple[float, Arrivals, list[np.ndarray]]:
        """The candidates of prompts by their request ids: the seconds until the first step, when each step's
        groups were there, and the tokens `[K, L]` of every prompt.
        """
        requests = [self._ask(request_id, prompt) for request_id, prompt in prompts.items()]
        arrivals, engine = Arrivals(), self._llm.llm_engine
        step = engine.step
        first_step_s: list[float] = []

        def timed_step() -> list[Any]:
            if not first_step_s:
                first_step_s.append(time.monotonic())
            outputs = step()
            arrivals.note(len(outputs), time.monotonic())
            return outputs

        started_s = time.monotonic()
        with mock.patch.object(engine, "step", timed_step):
            outputs = self._llm.generate(
                [prompt for prompt, _ in requests], [params for _, params in requests], use_tqdm=False
            )
        tokens = [np.asarray([sequence.token_ids for sequence in output.outputs]) for output in outputs]
        return first_step_s[0] - started_s, arrivals, tokens

    def _ask(self, request_id: str, prompt: np.ndarray) -> tuple[Any, Any]:
        request = GenerateRequest(request_id=request_id, prompt=prompt, excluded=NOTHING)
        group = open_group(request, self._decoding, self._vocabulary.trie, "", self._seed)
        ((tokens, params),) = group.make_requests()
        return tokens_input(tokens.tolist()), params
