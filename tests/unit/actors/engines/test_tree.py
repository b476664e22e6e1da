"""The tree engine behind the protocol, on the small policy of the engine tests; no vLLM."""

import copy
import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sluice.actors.engines.tree import TreeEngine
from sluice.actors.rollout.worker import RolloutWorker
from sluice.actors.settings import DecodeSettings, RolloutSettings, TreeEngineSettings
from sluice.catalog.decoding import Decoding
from sluice.catalog.errors import ConfigError, DataError, PolicyError
from sluice.catalog.rollout_group import decode_group
from sluice.catalog.tokens import TokenLayout
from sluice.catalog.trie.vocabulary import Vocabulary
from sluice.learner.decoding.prefix import prefix_bytes
from sluice.learner.policy.packed_weights import pack_weights
from sluice.learner.policy.policy import build_policy, save_policy
from sluice.learner.settings import PolicySettings
from tests.engine.conftest import MAX_PROMPT, assert_bad_requests_are_refused_at_once, drain
from tests.rollout_fakes import CODES, LAYOUT, TinyDataset
from tests.unit.actors.rollout.test_worker import Board, Clock, LocalQueue, LocalRanker

SAMPLE = Decoding(candidates=16)
CONSTRAINED = Decoding(candidates=16, temperature=1.3, constrained=True)
BEAM = Decoding(kind="beam", candidates=9, constrained=True)
STOCHASTIC = Decoding(kind="stochastic_beam", candidates=9, temperature=0.8, constrained=True)
HISTORIES = (0, 1, 10, 11, 21, 33)


def open_engine(world, seed=7, **settings):
    return TreeEngine(
        policy_dir=world.directory,
        vocabulary=world.vocabulary,
        decoding=SAMPLE,
        engine=TreeEngineSettings(**({"prompts_per_step": 4} | settings)),
        seed=seed,
        max_prompt_tokens=MAX_PROMPT,
    )


@pytest.fixture
def engine(world):
    return open_engine(world)


def requests_of(world, name, excluded=()):
    return [world.request(f"{name}-{history}", history, excluded) for history in HISTORIES]


def generate(engine, requests, decode):
    engine.submit(requests, decode)
    return drain(engine)


def weights(world, policy, version):
    return pack_weights(world.policies[policy].model.named_parameters(), version)


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "wanted", [SAMPLE, CONSTRAINED, BEAM, STOCHASTIC], ids=["free", "constrained", "beam", "stochastic"]
)
def test_log_probs_are_those_of_the_distribution_drawn_from(engine, world, wanted):
    requests = requests_of(world, "parity", excluded=[3, 17, 17, 20])
    done = generate(engine, requests, wanted)
    assert set(done) == {request.request_id for request in requests}
    for request in requests:
        generation = done[request.request_id]
        assert generation.tokens.shape == (wanted.candidates, 3) and generation.tokens.dtype == np.int64
        assert generation.log_probs.dtype == np.float32
        assert (generation.version_min, generation.version_max) == (0, 0)
        close(generation.log_probs, world.log_probs(request, generation.tokens, wanted))
        assert (generation.inclusion_log_probs is None) == (wanted.kind != "stochastic_beam")
        if wanted.kind == "stochastic_beam":
            assert len(np.unique(generation.tokens, axis=0)) == 9
            assert (
                generation.inclusion_log_probs.shape == (9,) and (generation.inclusion_log_probs <= 0).all()
            )
        if wanted.constrained:
            items = set(world.vocabulary.trie.lookup(generation.tokens).tolist())
            assert -1 not in items and not items & {3, 17, 20}


def test_top_p_is_taken(engine, world):
    request = world.request("nucleus", 8)
    generation = generate(engine, [request], Decoding(candidates=64, top_p=0.01))["nucleus"]
    assert (generation.tokens == generation.tokens[0]).all() and (generation.log_probs == 0).all()


def test_a_step_is_bounded_and_takes_the_oldest_of_one_kind(engine, world):
    first, second = requests_of(world, "first"), requests_of(world, "second")
    engine.submit(first[:3], BEAM)
    engine.submit(second, CONSTRAINED)
    engine.submit(first[3:], BEAM)
    steps = []
    while engine.in_flight:
        before = engine.in_flight
        steps.append(sorted(generation.request_id for generation in engine.step()))
        assert engine.in_flight == before - len(steps[-1])
    names = [[request.request_id for request in part] for part in (first, second)]
    assert steps == [sorted(part) for part in (names[0][:4], names[1][:4], names[1][4:], names[0][4:])]
    assert engine.step() == []


@pytest.mark.parametrize("wanted", [SAMPLE, STOCHASTIC], ids=["sample", "stochastic"])
def test_samples_depend_on_seed_and_request_alone(engine, world, wanted):
    request = world.request("again", 12)
    alone = generate(engine, [request], wanted)["again"].tokens
    company = generate(engine, [*requests_of(world, "company"), request], wanted)["again"].tokens
    other = generate(engine, [dataclasses.replace(request, request_id="other")], wanted)["other"].tokens
    seeded = generate(open_engine(world, seed=8), [request], wanted)["again"].tokens
    assert (alone == company).all()
    assert (alone != other).any() and (alone != seeded).any()
    assert len(np.unique(alone, axis=0)) > 4


@pytest.mark.parametrize("wanted", [SAMPLE, BEAM], ids=["sample", "beam"])
def test_a_swap_gives_what_waits_to_the_new_weights(engine, world, wanted):
    requests = requests_of(world, "swap")
    engine.submit(requests, wanted)
    done = {generation.request_id: generation for generation in engine.step()}
    packed = weights(world, 1, 3)
    for buffer in packed.buffers.values():
        buffer.flags.writeable = False
    assert engine.load_weights(packed) > 0
    assert (engine.version, engine.in_flight) == (3, 2)
    done |= drain(engine)
    for place, request in enumerate(requests):
        generation = done[request.request_id]
        policy, version = (0, 0) if place < 4 else (1, 3)
        assert (generation.version_min, generation.version_max) == (version, version)
        close(generation.log_probs, world.log_probs(request, generation.tokens, wanted, policy))


def test_known_prefixes_change_nothing_and_are_forgotten_with_their_weights(world):
    cached, plain = open_engine(world), open_engine(world, prefix_cache_mib=0)
    requests = requests_of(world, "known")[1:]
    found = []
    for version in (0, 1):
        for _ in range(2):
            before = cached.prefix_tokens[1]
            one, other = (generate(engine, requests, CONSTRAINED) for engine in (cached, plain))
            for request in requests:
                mine, theirs = one[request.request_id], other[request.request_id]
                assert (mine.tokens == theirs.tokens).all()
                close(mine.log_probs, theirs.log_probs)
            found.append(cached.prefix_tokens[1] - before)
        for engine in (cached, plain):
            engine.load_weights(weights(world, 1, version + 1))
    # Under new weights nothing is found; then all but the last item of every prompt of 1 + 3n tokens.
    again = 28 + 31 + 61 + 97
    assert found == [0, again, 0, again]
    assert plain.prefix_tokens == (0, 0)


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
    close(generation.log_probs, world.log_probs(request, generation.tokens, SAMPLE))


def test_what_has_not_changed_is_not_loaded_again(engine, world):
    some = {name: weight.detach().clone() for name, weight in world.policies[1].model.named_parameters()}
    engine.load_weights(pack_weights(some.items(), 1))
    request = world.request("same", 5)
    generate(engine, [request], BEAM)
    found = engine.prefix_tokens[1]
    engine.load_weights(pack_weights(some.items(), 2))
    generation = generate(engine, [request], BEAM)["same"]
    assert engine.version == generation.version_min == 2
    assert engine.prefix_tokens[1] == found + 13  # BOS and four of its five items: nothing was forgotten
    some["model.layers.1.mlp.down_proj.weight"] *= 2
    last = pack_weights(some.items(), 3)
    for entry in last.manifest:  # so only its block may be read
        if not entry.name.startswith("model.layers.1.mlp."):
            last.buffers[entry.dtype][entry.offset : entry.offset + 4 * int(np.prod(entry.shape))] = 0
    engine.load_weights(last)
    other = generate(engine, [request], BEAM)["same"]
    assert (other.version_min, engine.prefix_tokens[1]) == (3, found + 13)
    scaled = copy.deepcopy(world.policies[1])
    with torch.no_grad():
        scaled.model.model.layers[1].mlp.down_proj.weight.mul_(2)
    exact = dataclasses.replace(world, policies=(scaled, scaled)).log_probs(request, other.tokens, BEAM)
    close(other.log_probs, exact)


def test_requests_that_cannot_be_served_are_refused_at_once(engine, world):
    assert_bad_requests_are_refused_at_once(engine, world)


def test_a_new_catalogue_serves_what_is_submitted_after_it(engine, world):
    rest = np.stack(np.unravel_index(np.arange(120), (6, 5, 4)), axis=1)
    known = {tuple(item) for item in (world.items - np.asarray(world.layout.level_offsets)).tolist()}
    codes = np.asarray([item for item in rest.tolist() if tuple(item) not in known][:5])
    later = world.vocabulary.changed(new_codes=codes, retire=np.arange(35))
    wanted = Decoding(kind="beam", candidates=8, constrained=True)
    before, after = world.request("before", 5, [38]), world.request("after", 5, [38, 42])
    engine.submit([before], wanted)
    assert engine.load_catalogue(later) > 0 and engine.catalogue_version == 1
    with pytest.raises(DataError, match="9 distinct candidates wanted and 8 to choose from"):
        engine.submit([after], Decoding(kind="beam", candidates=9, constrained=True))
    engine.submit([after], wanted)  # one decoding, but two catalogues
    done = drain(engine)
    assert [done[name].catalogue_version for name in ("before", "after")] == [0, 1]
    old, new = world.vocabulary.trie.lookup(done["before"].tokens), later.trie.lookup(done["after"].tokens)
    assert len(set(old.tolist())) == 8 and 38 not in old and old.min() >= 0
    assert sorted(new.tolist()) == [35, 36, 37, 39, 40, 41, 43, 44]
    with pytest.raises(DataError, match="version 1 can't replace version 1"):
        engine.load_catalogue(later)
    foreign = Vocabulary.of(np.asarray([[0, 0, 0]]), TokenLayout.fresh((6, 5, 5)))
    with pytest.raises(PolicyError, match="laid out for levels"):
        engine.load_catalogue(dataclasses.replace(foreign, trie=dataclasses.replace(foreign.trie, version=9)))


def test_half_precision_weights_take_full_ones(world):
    engine = open_engine(world, dtype="bfloat16")
    engine.load_weights(weights(world, 1, 1))
    request = world.request("half", 9)
    generation = generate(engine, [request], SAMPLE)["half"]
    exact = world.log_probs(request, generation.tokens, SAMPLE, policy=1)
    assert 1e-4 < np.abs(generation.log_probs - exact).max() < 0.5


def test_an_engine_that_cannot_work_is_not_started(world, tmp_path):
    arguments = {
        "policy_dir": world.directory,
        "vocabulary": world.vocabulary,
        "decoding": SAMPLE,
        "engine": TreeEngineSettings(),
        "seed": 0,
        "max_prompt_tokens": MAX_PROMPT,
    }
    with pytest.raises(PolicyError, match="is no policy directory"):
        TreeEngine(**arguments | {"policy_dir": tmp_path})
    larger = Vocabulary.of(np.asarray([[0, 0, 0]]), TokenLayout.fresh((6, 5, 5)))
    with pytest.raises(PolicyError, match="has 18 tokens, the catalogue's layout 19"):
        TreeEngine(**arguments | {"vocabulary": larger})
    with pytest.raises(ConfigError, match=r"128 positions; prompt \+ item take 129"):
        TreeEngine(**arguments | {"max_prompt_tokens": 126})


def test_sizes_are_derived_unless_given(world):
    given = open_engine(world, prefix_cache_mib=2).derivation
    assert given["prompts_per_step"] == (4, "given in the settings")
    assert given["prefix_cache_bytes"] == (2 * 2**20, "given in the settings")
    derived = open_engine(world, prompts_per_step=None).derivation
    assert derived["prompts_per_step"][0] == (256 if torch.cuda.is_available() else 32)
    assert "busy" in derived["prompts_per_step"][1]


def test_the_prefix_cache_has_room_for_twelve_steps_unless_memory_is_short(world, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    size, reason = open_engine(world).derivation["prefix_cache_bytes"]
    step = 4 * prefix_bytes(world.policies[0].model, MAX_PROMPT, 3)
    assert size == 12 * step
    assert "12 steps" in reason and "not kept" not in reason
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=2 * step))
    size, reason = open_engine(world).derivation["prefix_cache_bytes"]
    assert size == step // 2
    assert "is not kept" in reason


def test_a_rollout_worker_fills_the_queue_from_it(tmp_path):
    policy = build_policy(PolicySettings(hidden_size=16, layers=1, heads=2), (2, 2, 2), 16, 0)
    save_policy(policy, tmp_path / "policy")
    vocabulary = Vocabulary.of(CODES, LAYOUT)
    rollout = RolloutSettings(
        decode=DecodeSettings(candidates=2, constrained=True),
        engine=TreeEngineSettings(prompts_per_step=3),
        prompts_per_lease=4,
        distractors=2,
    )
    decoding = rollout.decode.decoding(exclude_seen=True)
    engine = TreeEngine(tmp_path / "policy", vocabulary, decoding, rollout.engine, 0, max_prompt_tokens=10)
    queue = LocalQueue()
    worker = RolloutWorker(
        engine=engine,
        queue=queue,
        ranker=LocalRanker(),
        weights=Board(),
        dataset=TinyDataset(),
        vocabulary=vocabulary,
        settings=rollout,
        seed=3,
        clock=Clock(),
    )
    for _ in range(12):
        worker.advance()
    groups = [decode_group(group.reference) for group in queue.ledger.allot(0, 0, 1, 4, 0)]
    assert [group.lease_id for group in groups] == [0, 1, 2, 3]
    for group in groups:
        assert (group.candidate_items >= 0).all()
        assert not set(group.candidate_items.tolist()) & set(group.excluded.tolist())
        assert np.isfinite(group.behaviour_log_probs).all()
