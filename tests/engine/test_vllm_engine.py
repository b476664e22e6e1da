"""The vLLM engine against transformers: probabilities, catalogue, beams, weight swaps, prefix cache."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

from sluice.actors.settings import CPU_HEAD_SIZES, VllmEngineSettings
from sluice.catalog.decoding import Decoding
from sluice.catalog.errors import ConfigError, PolicyError
from sluice.learner.policy.packed_weights import pack_weights
from tests.engine.conftest import ENGINE, MAX_PROMPT, assert_bad_requests_are_refused_at_once, drain

pytestmark = pytest.mark.engine

SAMPLE = Decoding(candidates=16)
FREE = Decoding(candidates=16, temperature=0.7)
CONSTRAINED = Decoding(candidates=16, temperature=1.3, constrained=True)
# Prompts of 1, 4, 31, 34, 64, 67 and 100 tokens: on both sides of the 32-token blocks.
HISTORIES = (0, 1, 10, 11, 21, 22, 33)


def test_the_config_knows_the_head_sizes_of_vllms_cpu_kernels():
    assert list(CPU_HEAD_SIZES) == CPUAttentionBackend.get_supported_head_sizes()


def requests_of(world, name, excluded=()):
    return [world.request(f"{name}-{history}", history, excluded) for history in HISTORIES]


def generate(engine, requests, decoding):
    engine.submit(requests, decoding)
    return drain(engine)


def weights(world, policy, version):
    return pack_weights(world.policies[policy].model.named_parameters(), version)


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("decoding", [FREE, CONSTRAINED], ids=["free", "constrained"])
def test_log_probs_are_those_of_the_distribution_drawn_from(engine, world, decoding):
    requests = requests_of(world, "parity", excluded=[3, 17, 17, 20])
    done = generate(engine, requests, decoding)
    assert set(done) == {request.request_id for request in requests}
    for request in requests:
        generation = done[request.request_id]
        assert generation.tokens.shape == (16, 3) and generation.tokens.dtype == np.int64
        assert generation.log_probs.dtype == np.float32
        assert (generation.version_min, generation.version_max) == (0, 0)
        close(generation.log_probs, world.log_probs(request, generation.tokens, decoding))


def test_top_p_renormalises_over_the_nucleus(engine, world):
    decoding = Decoding(candidates=64, top_p=0.6)
    request = world.request("nucleus", 8)
    generation = generate(engine, [request], decoding)["nucleus"]
    log_p = world.next_log_probs(request, np.empty((1, 0)), decoding)[0]
    order = np.argsort(-log_p)
    before = np.cumsum(np.exp(log_p[order])) - np.exp(log_p[order])
    nucleus = order[before < 0.6]
    assert set(generation.tokens[:, 0].tolist()) <= set(nucleus.tolist())
    close(generation.log_probs[:, 0], (log_p - np.log(np.exp(log_p[nucleus]).sum()))[generation.tokens[:, 0]])


def test_free_decoding_goes_on_after_eos(engine, world):
    generation = generate(engine, [world.request("eos", 5)], Decoding(candidates=400, temperature=2.0))["eos"]
    assert (generation.tokens[:, 0] == world.layout.eos).any()
    assert generation.tokens.shape == (400, 3)


def test_constrained_candidates_are_items_and_never_excluded(engine, world):
    rng = np.random.default_rng(0)
    requests = [world.request(f"mask-{at}", at, rng.choice(40, 30, replace=False)) for at in range(8)]
    for request in requests:
        tokens = generate(engine, [request], CONSTRAINED)[request.request_id].tokens
        items = world.vocabulary.trie.lookup(tokens)
        assert (items >= 0).all() and not set(items.tolist()) & set(request.excluded.tolist())
    together = generate(engine, requests, CONSTRAINED)
    for request in requests:
        items = world.vocabulary.trie.lookup(together[request.request_id].tokens)
        assert (items >= 0).all() and not set(items.tolist()) & set(request.excluded.tolist())


def test_the_only_item_left_is_certain(engine, world):
    request = world.request("last", 4, [row for row in range(40) if row != 11])
    generation = generate(engine, [request], CONSTRAINED)["last"]
    assert (generation.tokens == world.items[11]).all()
    assert (generation.log_probs == 0.0).all()


def test_free_constrained_and_beam_requests_share_a_batch(engine, world):
    beam = Decoding(kind="beam", candidates=5, constrained=True)
    free, constrained, beams = (world.request(name, 9, [1, 2]) for name in ("a", "b", "c"))
    engine.submit([free], FREE)
    engine.submit([constrained], CONSTRAINED)
    engine.submit([beams], beam)
    assert engine.in_flight == 3
    done = drain(engine)
    for request, decoding in ((free, FREE), (constrained, CONSTRAINED), (beams, beam)):
        close(
            done[request.request_id].log_probs,
            world.log_probs(request, done[request.request_id].tokens, decoding),
        )
    assert (world.vocabulary.trie.lookup(done["a"].tokens) < 0).any()


def test_samples_depend_on_seed_and_request_alone(engine, world):
    request = world.request("again", 12)
    alone = generate(engine, [request], SAMPLE)["again"].tokens
    company = generate(engine, [*requests_of(world, "company"), request], SAMPLE)["again"].tokens
    renamed = dataclasses.replace(request, request_id="other")
    other = generate(engine, [renamed], SAMPLE)["other"].tokens
    assert (alone == company).all()
    assert (alone != other).any()
    assert len(np.unique(alone, axis=0)) > 4


@pytest.mark.parametrize("constrained", [False, True])
def test_sampling_frequencies_match_the_probabilities(engine, world, constrained):
    decoding = Decoding(candidates=500, temperature=1.2, constrained=constrained)
    first = world.request("frequency-0", 7, [0, 5])
    requests = [dataclasses.replace(first, request_id=f"frequency-{at}") for at in range(8)]
    done = generate(engine, requests, decoding)
    tokens = np.concatenate([done[request.request_id].tokens for request in requests])
    if constrained:
        expected = np.exp(world.log_probs(first, world.items, decoding).sum(axis=1), dtype=np.float64)
        counts = np.bincount(world.vocabulary.trie.lookup(tokens), minlength=40)
        assert (counts[[0, 5]] == 0).all()
    else:
        every = world.free_probabilities(first, decoding)
        expected = every.reshape(-1)
        counts = np.bincount(np.ravel_multi_index(tuple(tokens.T), every.shape), minlength=every.size)
    assert counts.sum() == 4000 and expected.sum() == pytest.approx(1, abs=1e-5)
    common = expected * 4000 >= 5
    assert common.sum() >= 10
    observed = np.append(counts[common], counts[~common].sum())
    wanted = np.append(expected[common], expected[~common].sum())
    assert chisquare(observed, 4000 * wanted / wanted.sum()).pvalue > 1e-3


def beam_search(world, request, decoding):
    """The textbook algorithm, one prefix at a time."""
    beams = [((), 0.0)]
    for _ in range(3):
        grown = []
        for prefix, total in beams:
            log_p = world.next_log_probs(request, np.asarray([prefix]), decoding)[0]
            grown += [
                ((*prefix, token), total + log_p[token])
                for token in np.flatnonzero(np.isfinite(log_p)).tolist()
            ]
        beams = sorted(grown, key=lambda beam: -beam[1])[: decoding.candidates]
    return np.asarray([prefix for prefix, _ in beams]), np.asarray([total for _, total in beams])


def test_wide_constrained_beams_are_the_sorted_catalogue(engine, world):
    decoding = Decoding(kind="beam", candidates=37, constrained=True)
    request = world.request("wide", 10, [2, 9, 33])
    generation = generate(engine, [request], decoding)["wide"]
    totals = world.log_probs(request, world.items, decoding).sum(axis=1)
    best = [row for row in np.argsort(-totals) if row not in (2, 9, 33)]
    assert (generation.tokens == world.items[best]).all()
    close(generation.log_probs, world.log_probs(request, world.items[best], decoding))


def test_wide_free_beams_are_the_best_of_all_sequences(engine, world):
    decoding = Decoding(kind="beam", candidates=18 * 18)
    request = world.request("all", 3)
    generation = generate(engine, [request], decoding)["all"]
    every = np.stack(np.unravel_index(np.arange(18**3), (18, 18, 18)), axis=1)
    totals = world.log_probs(request, every, decoding).sum(axis=1)
    best = np.sort(totals)[::-1][: 18 * 18]
    close(generation.log_probs.sum(axis=1), best)
    assert len(np.unique(generation.tokens, axis=0)) == 18 * 18


@pytest.mark.parametrize("constrained", [False, True])
def test_narrow_beams_follow_the_textbook(engine, world, constrained):
    decoding = Decoding(kind="beam", candidates=7, constrained=constrained)
    requests = requests_of(world, "narrow", excluded=[4])
    done = generate(engine, requests, decoding)
    for request in requests:
        tokens, totals = beam_search(world, request, decoding)
        assert (done[request.request_id].tokens == tokens).all()
        close(done[request.request_id].log_probs.sum(axis=1), totals)


def test_after_a_swap_the_engine_has_the_new_probabilities(engine, world):
    generate(
        engine, requests_of(world, "before"), SAMPLE
    )  # fills the cache with the old weights' keys and values
    pause = engine.load_weights(weights(world, 1, 3))
    assert pause > 0 and engine.version == 3
    for decoding in (FREE, CONSTRAINED):
        requests = requests_of(world, "before")
        done = generate(engine, requests, decoding)
        for request in requests:
            generation = done[request.request_id]
            assert (generation.version_min, generation.version_max) == (3, 3)
            close(generation.log_probs, world.log_probs(request, generation.tokens, decoding, policy=1))


@pytest.mark.parametrize("decoding", [FREE, CONSTRAINED], ids=["free", "constrained"])
def test_a_swap_in_mid_request_loses_nothing(engine, world, decoding):
    running = requests_of(world, "running", excluded=[8])
    engine.submit(running, decoding)
    assert engine.step() == []
    engine.load_weights(weights(world, 1, 1))
    late = world.request("late", 6)
    engine.submit([late], decoding)
    assert engine.in_flight == len(running) + 1
    done = drain(engine)
    for request in running:
        generation = done[request.request_id]
        assert (generation.version_min, generation.version_max) == (0, 1)
        assert generation.tokens.shape == (16, 3)
        old, new = (world.log_probs(request, generation.tokens, decoding, policy) for policy in (0, 1))
        close(generation.log_probs[:, 0], old[:, 0])
        close(generation.log_probs[:, 1:], new[:, 1:])
    assert (done["late"].version_min, done["late"].version_max) == (1, 1)


def test_a_swap_between_beam_levels_loses_nothing(engine, world):
    decoding = Decoding(kind="beam", candidates=9)
    request = world.request("beam-swap", 15)
    engine.submit([request], decoding)
    engine.step()
    engine.load_weights(weights(world, 1, 1))
    generation = drain(engine)["beam-swap"]
    assert (generation.version_min, generation.version_max) == (0, 1)
    old, new = (world.log_probs(request, generation.tokens, decoding, policy) for policy in (0, 1))
    close(generation.log_probs, np.concatenate([old[:, :1], new[:, 1:]], axis=1))


def test_read_only_weights_as_the_object_store_gives_them(engine, world):
    packed = weights(world, 1, 2)
    for buffer in packed.buffers.values():
        buffer.flags.writeable = False
    engine.load_weights(packed)
    request = world.request("read-only", 2)
    generation = generate(engine, [request], SAMPLE)["read-only"]
    close(generation.log_probs, world.log_probs(request, generation.tokens, SAMPLE, policy=1))


def test_what_has_not_changed_is_not_loaded_again(engine, world, monkeypatch):
    first = weights(world, 1, 1)
    engine.load_weights(first)
    loaded = []
    rpc = engine._llm.collective_rpc
    monkeypatch.setattr(
        engine._llm,
        "collective_rpc",
        lambda name, **more: (loaded.append((name, more)), rpc(name, **more))[1],
    )
    engine.load_weights(pack_weights(world.policies[1].model.named_parameters(), 2))
    assert (loaded, engine.version) == ([], 2)
    request = world.request("same", 6)
    generation = generate(engine, [request], SAMPLE)["same"]
    assert (generation.version_min, generation.version_max) == (2, 2)
    close(generation.log_probs, world.log_probs(request, generation.tokens, SAMPLE, policy=1))

    mixed = dict(world.policies[1].model.named_parameters())
    other = dict(world.policies[0].model.named_parameters())
    block = {name for name in mixed if name.startswith("model.layers.1.mlp.")}
    engine.load_weights(pack_weights((mixed | {name: other[name] for name in block}).items(), 3))
    assert dict(loaded)["update_weights"]["kwargs"]["update_info"]["names"] == block
    engine.load_weights(pack_weights(other.items(), 4))
    request = world.request("back", 6)
    generation = generate(engine, [request], SAMPLE)["back"]
    close(generation.log_probs, world.log_probs(request, generation.tokens, SAMPLE, policy=0))


def test_wrong_weights_are_refused_and_the_engine_goes_on(engine, world):
    some = dict(world.policies[1].model.named_parameters())
    norm = some.pop("model.norm.weight")
    wrong = [
        (pack_weights(some.items(), 5), "lack 1 parameters, model.norm.weight first"),
        (
            pack_weights([*some.items(), ("model.norm.weight", torch.cat([norm, norm]))], 6),
            r"shape \(128,\) where .* \(64,\)",
        ),
        (
            pack_weights([*some.items(), ("model.norm.weight", norm), ("head.weight", norm)], 7),
            "hold head.weight",
        ),
    ]
    for packed, message in wrong:
        with pytest.raises(PolicyError, match=message):
            engine.load_weights(packed)
    assert engine.version == 0
    request = world.request("unharmed", 2)
    generation = generate(engine, [request], SAMPLE)["unharmed"]
    assert (generation.version_min, generation.version_max) == (0, 0)
    close(generation.log_probs, world.log_probs(request, generation.tokens, SAMPLE))


def test_the_candidates_of_a_prompt_share_its_full_blocks(engine, world):
    def count(name):
        queried, hit = engine.prefix_cache.queried_tokens, engine.prefix_cache.hit_tokens
        generate(engine, [dataclasses.replace(world.request("cache", 24), request_id=name)], SAMPLE)
        return engine.prefix_cache.queried_tokens - queried, engine.prefix_cache.hit_tokens - hit

    # 73 tokens are two full blocks of 32: the first of the 16 candidates computes them, the others find them.
    assert count("first") == (16 * 73, 15 * 64)
    assert count("second") == (16 * 73, 16 * 64)
    engine.load_weights(weights(world, 1, 1))
    assert count("third") == (16 * 73, 15 * 64)


def test_the_blocks_of_a_prompt_are_hashed_once_for_all_candidates(engine, world, monkeypatch):
    once = engine._llm.engine_core.engine_core.request_block_hasher
    vllms, hashed, given = once._hasher, [], {}

    def count(request):
        hashed.append(request.num_tokens)
        return vllms(request)

    def check(self, request):
        found = own_call(self, request)
        assert found == vllms(request)
        if request.num_tokens == request.num_prompt_tokens:
            given.setdefault(tuple(request.prompt_token_ids), []).append(found)
        return found

    own_call = type(once).__call__
    monkeypatch.setattr(once, "_hasher", count)
    monkeypatch.setattr(type(once), "__call__", check)
    requests = [world.request("hashed", 24), world.request("hashed too", 10), world.request("short", 2)]
    generate(engine, requests, SAMPLE)
    assert [hashed.count(len(request.prompt)) for request in requests] == [1, 1, 1]
    assert [{len(found) for found in given[tuple(request.prompt.tolist())]} for request in requests] == [
        {2},
        {0},
        {0},
    ]
    assert all(len(found) == 16 for found in given.values())


def test_requests_that_cannot_be_served_are_refused_at_once(engine, world):
    assert_bad_requests_are_refused_at_once(engine, world)


def test_sizes_are_derived_from_the_workload(engine):
    values = {name: value for name, (value, _) in engine.derivation.items()}
    # Cache: 2 x (1 + 8 prompts x (4 shared + 16 x 2 own)) blocks, each 2 x 2 layers x 2 heads x 32 x 32 x 4
    # bytes.
    here = {"block_size": 32, "max_batched_tokens": 4096, "kv_cache_bytes": 2 * 289 * 32768}
    on_gpu = {"block_size": 16, "max_batched_tokens": 8192, "kv_cache_bytes": 12 * 313 * 16384}
    assert values == {"max_model_len": 103, "max_sequences": 128} | (
        on_gpu if torch.cuda.is_available() else here
    )


def open_engine(world, **changes):
    from sluice.actors.engines.vllm.engine import VllmEngine

    arguments = {
        "policy_dir": world.directory,
        "vocabulary": world.vocabulary,
        "decoding": SAMPLE,
        "engine": ENGINE,
        "seed": 0,
        "max_prompt_tokens": MAX_PROMPT,
        "prompts_in_flight": 8,
    }
    return VllmEngine(**(arguments | changes))


def test_an_engine_that_cannot_work_is_not_started(world, vllm_environment, tmp_path, monkeypatch):
    from sluice.catalog.tokens import TokenLayout
    from sluice.catalog.trie.vocabulary import Vocabulary

    larger = Vocabulary.of(np.asarray([[0, 0, 0]]), TokenLayout.fresh((6, 5, 5)))
    with pytest.raises(PolicyError, match="holds no policy"):
        open_engine(world, policy_dir=tmp_path)
    with pytest.raises(PolicyError, match="has 18 tokens, the catalogue's layout 19"):
        open_engine(world, vocabulary=larger)
    with pytest.raises(ConfigError, match=r"128 positions; prompt \+ item take 129"):
        open_engine(world, max_prompt_tokens=126)
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="block_size is 48"):
            open_engine(world, engine=VllmEngineSettings(block_size=48))
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    with pytest.raises(ConfigError, match="VLLM_CPU_KVCACHE_SPACE=1 would override"):
        open_engine(world)
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    with pytest.raises(ConfigError, match="VLLM_ENABLE_V1_MULTIPROCESSING is '1' where"):
        open_engine(world)


def test_a_build_for_gpus_needs_one(vllm_environment, monkeypatch):
    from sluice.actors.engines.vllm import start as vllm_start

    monkeypatch.setattr(vllm_start, "current_platform", SimpleNamespace(is_cpu=lambda: False))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"process has none: set rollout\.gpus to 1"):
        vllm_start.gpu_bytes()
