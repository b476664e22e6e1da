"""A new version of the catalogue in a running engine: who may generate what, and under which version."""

from dataclasses import replace

import numpy as np
import pytest

from sluice.catalog.decoding import Decoding
from sluice.catalog.errors import DataError, PolicyError
from sluice.catalog.tokens import TokenLayout
from sluice.catalog.trie.vocabulary import Vocabulary
from tests.engine.conftest import drain

pytestmark = pytest.mark.engine

CONSTRAINED = Decoding(candidates=16, constrained=True)


@pytest.fixture
def current(engine, world):
    """The session's catalogue under the engine's version; it is put back afterwards."""
    yield world.catalogue(engine.catalogue_version)
    drain(engine)
    engine.load_catalogue(world.catalogue(engine.catalogue_version + 1))


def unused_codes(vocabulary: Vocabulary) -> np.ndarray:
    every = np.stack(np.unravel_index(np.arange(120), vocabulary.layout.level_sizes), axis=1)
    return every[vocabulary.trie.lookup(vocabulary.layout.encode(every)) < 0]


def items_of(vocabulary: Vocabulary, generation) -> set[int]:
    return set(
        vocabulary.lookup(generation.tokens[None], np.array([generation.catalogue_version]))[0].tolist()
    )


def test_new_items_can_be_generated_and_retired_ones_can_not(engine, world, current):
    newer = current.changed(new_codes=unused_codes(current)[:3], retire=np.arange(2, 40)).after(current)
    seconds = engine.load_catalogue(newer)
    assert seconds > 0
    assert engine.catalogue_version == current.version + 1
    for name, excluded, left in (("a", [], 5), ("b", [0, 41], 3)):
        every = Decoding(
            candidates=left, constrained=True, kind="beam"
        )  # as many beams as items: all of them
        engine.submit([world.request(name, 6, excluded)], every)
    done = drain(engine)
    assert items_of(newer, done["a"]) == {0, 1, 40, 41, 42}
    assert items_of(newer, done["b"]) == {1, 40, 42}
    assert {generation.catalogue_version for generation in done.values()} == {newer.version}


@pytest.mark.parametrize("kind", ["sample", "beam", "stochastic_beam"])
def test_requests_under_way_finish_with_the_catalogue_they_began_with(engine, world, current, kind):
    decoding = Decoding(candidates=2, constrained=True, kind=kind)
    kept = np.array([0, 1])
    old = current.changed(retire=np.setdiff1d(np.arange(40), kept)).after(current)
    newer = old.changed(new_codes=unused_codes(current)[:2], retire=kept).after(old)
    engine.load_catalogue(old)
    engine.submit([world.request("before", 6)], decoding)
    assert engine.step() == []
    engine.load_catalogue(newer)
    engine.submit([world.request("after", 6), world.request("also", 6)], decoding)
    done = drain(engine)
    assert done["before"].catalogue_version == old.version
    assert items_of(newer, done["before"]) <= {0, 1}
    for name in ("after", "also"):
        assert done[name].catalogue_version == newer.version
        assert items_of(newer, done[name]) <= {40, 41}


def test_log_probs_are_normalised_over_the_catalogue_of_the_request(engine, world, current):
    newer = current.changed(retire=np.arange(0, 40, 2)).after(current)
    request = world.request("odd", 9)
    engine.submit([request], CONSTRAINED)
    engine.step()
    engine.load_catalogue(newer)
    later = world.request("even", 9)
    engine.submit([later], CONSTRAINED)
    done = drain(engine)
    np.testing.assert_allclose(
        done["odd"].log_probs, world.log_probs(request, done["odd"].tokens, CONSTRAINED), atol=2e-4
    )
    retired = replace(
        later, excluded=np.arange(0, 40, 2, dtype=np.int32)
    )  # the same distribution, by listing
    np.testing.assert_allclose(
        done["even"].log_probs, world.log_probs(retired, done["even"].tokens, CONSTRAINED), atol=2e-4
    )


def test_too_few_items_are_counted_in_the_newest_catalogue(engine, world, current):
    engine.load_catalogue(current.changed(retire=np.arange(1, 40)).after(current))
    with pytest.raises(DataError, match="1 distinct candidates wanted and 0 to choose from"):
        engine.submit([world.request("none", 2, excluded=[0])], CONSTRAINED)


def test_an_older_catalogue_or_one_of_another_policy_is_refused(engine, world, current):
    with pytest.raises(DataError, match=f"version {current.version} can't replace version {current.version}"):
        engine.load_catalogue(current)
    other = Vocabulary.of(np.asarray([[0, 0, 0]]), TokenLayout.fresh((6, 5, 5)), version=current.version + 1)
    with pytest.raises(PolicyError, match=r"laid out for levels \[6, 5, 5\]"):
        engine.load_catalogue(other)
    assert engine.catalogue_version == current.version


def test_tries_that_no_request_uses_are_forgotten(engine, world, current):
    from sluice.actors.engines.vllm.trie import _in_process

    for row in range(3):
        current = current.changed(retire=np.array([row]))
        engine.load_catalogue(current)
    assert len(_in_process) == 1


def test_tries_reach_workers_of_other_processes_as_files(tmp_path, vllm_environment, world):
    from sluice.actors.engines.vllm.trie import OfferedTries
    from sluice.catalog.trie.trie import Trie

    tries = OfferedTries(tmp_path, files=True)
    first = world.vocabulary.trie
    second = world.vocabulary.changed(retire=np.array([0])).trie
    assert tries.offer(first) == str(tmp_path / "trie-0")
    assert tries.offer(second) == tries.name(second) == str(tmp_path / "trie-1")
    assert (Trie.load(tries.name(second)).items, Trie.load(tries.name(first)).items) == (39, 40)
    tries.keep([second])
    assert [path.name for path in tmp_path.iterdir()] == ["trie-1"]
