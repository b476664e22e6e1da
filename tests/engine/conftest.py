"""One vLLM engine for all tests of a session, on a small policy whose probabilities are far from uniform."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sluice.actors.engines.engine import GenerateRequest
from sluice.actors.engines.vllm.configuration import engine_environment
from sluice.actors.settings import VllmEngineSettings
from sluice.catalog.decoding import Decoding
from sluice.catalog.errors import DataError
from sluice.catalog.tokens import TokenLayout
from sluice.catalog.trie.vocabulary import Vocabulary
from sluice.learner.policy.policy import Policy, build_policy, save_policy
from sluice.learner.settings import PolicySettings

LEVEL_SIZES = (6, 5, 4)
MAX_PROMPT = 100
ENGINE = VllmEngineSettings(threads=1)


@dataclass(frozen=True)
class World:
    """A catalogue of 40 items, two policies over it, and the exact probabilities by transformers."""

    vocabulary: Vocabulary
    policies: tuple[Policy, Policy]
    directory: Path

    @property
    def layout(self) -> TokenLayout:
        return self.vocabulary.layout

    @property
    def items(self) -> np.ndarray:
        return self.vocabulary.item_tokens

    def catalogue(self, version: int) -> Vocabulary:
        """The same catalogue under another version: the session's engine has had several."""
        return replace(self.vocabulary, trie=replace(self.vocabulary.trie, version=version))

    def request(self, name: str, history: int, excluded=()) -> GenerateRequest:
        """A prompt of 1 + 3 * history tokens that depends on the name alone."""
        rows = np.random.default_rng(list(name.encode())).integers(0, len(self.items), history)
        return GenerateRequest(
            request_id=name,
            prompt=self.layout.prompt(self.items, rows),
            excluded=np.asarray(excluded, dtype=np.int32),
        )

    def next_log_probs(self, request, prefixes, decoding, policy=0) -> np.ndarray:
        """[P, V]: log-probs of the next token after each prefix [P, l], by transformers and a mask made by
        listing.
        """
        prefixes = np.asarray(prefixes, dtype=np.int64)
        rows = np.concatenate([np.tile(request.prompt, (len(prefixes), 1)), prefixes], axis=1)
        with torch.no_grad():
            logits = self.policies[policy].model(torch.from_numpy(rows)).logits[:, -1].float()
        if decoding.constrained:
            allowed = [
                item
                for row, item in enumerate(self.items.tolist())
                if row not in set(request.excluded.tolist())
            ]
            for at, prefix in enumerate(prefixes.tolist()):
                follow = {item[len(prefix)] for item in allowed if item[: len(prefix)] == prefix}
                forbidden = [token for token in range(self.layout.vocab_size) if token not in follow]
                logits[at, forbidden] = -torch.inf
        return torch.log_softmax(logits / decoding.temperature, dim=-1).numpy()

    def log_probs(self, request, tokens, decoding, policy=0) -> np.ndarray:
        """[K, L]: log-prob of each token of the candidates [K, L]."""
        columns = [
            np.take_along_axis(
                self.next_log_probs(request, tokens[:, :level], decoding, policy),
                tokens[:, level, None],
                axis=1,
            )
            for level in range(tokens.shape[1])
        ]
        return np.concatenate(columns, axis=1)

    def free_probabilities(self, request, decoding) -> np.ndarray:
        """[V, V, V]: the probability of every sequence under free decoding."""
        size = self.layout.vocab_size
        first = self.next_log_probs(request, np.empty((1, 0)), decoding)[0]
        second = self.next_log_probs(request, np.arange(size)[:, None], decoding)
        pairs = np.stack(np.unravel_index(np.arange(size**2), (size, size)), axis=1)
        third = self.next_log_probs(request, pairs, decoding).reshape(size, size, size)
        return np.exp(first[:, None, None] + second[:, :, None] + third, dtype=np.float64)


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> World:
    codes = np.stack(np.unravel_index(np.random.default_rng(5).permutation(120)[:40], LEVEL_SIZES), axis=1)
    settings = PolicySettings(hidden_size=64, layers=2, heads=2, feed_forward_size=96, rope_theta=300.0)
    policies = tuple(build_policy(settings, LEVEL_SIZES, 128, seed) for seed in (1, 2))
    for seed, policy in enumerate(policies):
        generator = torch.Generator().manual_seed(seed)
        for weight in policy.model.parameters():
            if weight.ndim == 2:
                torch.nn.init.normal_(weight, std=0.2, generator=generator)
    directory = tmp_path_factory.mktemp("policy") / "start"
    save_policy(policies[0], directory)
    return World(vocabulary=Vocabulary.of(codes, policies[0].layout), policies=policies, directory=directory)


@pytest.fixture(scope="session")
def vllm_environment():
    """The environment an engine needs. What vLLM itself changes in the process is undone for the tests that
    follow.
    """
    set_num_threads, before = torch.set_num_threads, dict(os.environ)
    os.environ.update(engine_environment(ENGINE))
    yield
    os.environ.clear()
    os.environ.update(before)
    torch.set_num_threads = set_num_threads
    torch.compiler.set_stance("default")


@pytest.fixture(scope="session")
def session_engine(world, vllm_environment):
    from sluice.actors.engines.vllm.engine import VllmEngine
    from sluice.actors.engines.vllm.start import PrefixCacheCounter

    engine = VllmEngine(
        policy_dir=world.directory,
        vocabulary=world.vocabulary,
        decoding=Decoding(candidates=16),
        engine=ENGINE,
        seed=7,
        max_prompt_tokens=MAX_PROMPT,
        prompts_in_flight=8,
        prefix_cache=PrefixCacheCounter(),
    )
    os.environ.pop("LD_PRELOAD", None)  # vLLM sets it for workers of its own; other tests start processes too
    yield engine
    engine.close()


@pytest.fixture
def engine(session_engine, world):
    """The session's engine on the first policy as version 0, with nothing in flight and an empty cache."""
    from sluice.learner.policy.packed_weights import pack_weights

    assert session_engine.in_flight == 0
    session_engine.load_weights(pack_weights(world.policies[0].model.named_parameters(), 0))
    yield session_engine
    for _ in range(100):  # a failed test must not fail the next one
        if session_engine.in_flight == 0:
            break
        session_engine.step()


def assert_bad_requests_are_refused_at_once(engine, world: World) -> None:
    """By any engine: nothing of a call with a bad request is taken in, and good ones are served
    afterwards.
    """
    sample, beam = Decoding(candidates=16), Decoding(kind="beam", candidates=16, constrained=True)
    constrained = Decoding(candidates=16, temperature=1.3, constrained=True)
    good = world.request("good", 1)
    foreign = GenerateRequest(request_id="foreign", prompt=np.asarray([1, 18]), excluded=good.excluded)
    empty = GenerateRequest(request_id="empty", prompt=np.empty(0, dtype=np.int64), excluded=good.excluded)
    for request, decoding, message in (
        (world.request("long", 34), sample, "prompt of 103 tokens; this engine was started for 1 to 100"),
        (empty, sample, "prompt of 0 tokens"),
        (foreign, sample, "token 18; the policy has tokens 0 to 17"),
        (
            world.request("none", 1, range(40)),
            constrained,
            "1 distinct candidates wanted and 0 to choose from",
        ),
        (world.request("few", 1, range(25)), beam, "16 distinct candidates wanted and 15 to choose from"),
    ):
        with pytest.raises(DataError, match=message):
            engine.submit([good, request], decoding)
    with pytest.raises(ValueError, match="good is already in flight"):
        engine.submit([good, good], sample)
    assert engine.in_flight == 0 and engine.step() == []
    engine.submit([world.request("enough", 1, range(24))], beam)
    assert len(drain(engine)["enough"].tokens) == 16
    engine.submit([good], sample)
    with pytest.raises(ValueError, match="good is already in flight"):
        engine.submit([good], sample)
    assert set(drain(engine)) == {"good"}


def drain(engine, steps: int = 200) -> dict:
    """Step until nothing is in flight; generations by request id."""
    done = {}
    for _ in range(steps):
        if engine.in_flight == 0:
            return done
        done |= {generation.request_id: generation for generation in engine.step()}
    raise AssertionError(f"{engine.in_flight} requests unfinished after {steps} steps")
