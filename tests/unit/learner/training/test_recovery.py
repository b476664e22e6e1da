"""Which checkpoint a run goes on from, when some of them are damaged."""

import logging
import shutil

import pytest

from sluice.catalog.errors import RunError
from sluice.learner.training.checkpoint import read_state
from sluice.learner.training.kept import list_checkpoints
from sluice.learner.training.recovery import choose_checkpoint, tell_choice
from tests.unit.learner.training.test_checkpoint import cut, whole_checkpoint


@pytest.fixture
def places(tmp_path):
    """Ray Train's directory with checkpoints of steps 20 and 40, and the best one of step 20."""
    kept, best = tmp_path / "train", tmp_path / "train-best"
    for step in (20, 40):
        whole_checkpoint(kept / f"checkpoint_2026-01-01_00-00-{step}.000001", step=step)
    shutil.copytree(kept / "checkpoint_2026-01-01_00-00-20.000001", best)
    return kept, best


def damage(checkpoint):
    cut(checkpoint / "rank-1.safetensors")


def test_the_last_whole_checkpoint_is_taken_and_the_best_at_last(places):
    kept, best = places
    before, last = sorted(kept.iterdir())
    assert list_checkpoints(kept, best) == [last, before, best]
    for expected in (last, before, best):
        choice = choose_checkpoint(kept, best)
        assert choice.directory == expected
        assert len(choice.damaged) == [last, before, best].index(expected)
        damage(expected)
    with pytest.raises(
        RunError, match=r"no checkpoint of this run is whole:\n.*40.*rank-1.safetensors"
    ) as raised:
        choose_checkpoint(kept, best)
    assert str(raised.value).count("rank-1.safetensors is not as it was written") == 3


def test_a_damaged_checkpoint_is_named_loudly(places, caplog):
    kept, best = places
    with caplog.at_level(logging.ERROR):
        tell_choice(kept, best)
    assert caplog.text == ""
    damage(max(kept.iterdir()))
    with caplog.at_level(logging.ERROR):
        tell_choice(kept, best)
    assert "checkpoint_2026-01-01_00-00-40.000001: rank-1.safetensors is not as it was written" in caplog.text
    assert f"going on from {min(kept.iterdir())}" in caplog.text


def test_the_best_validation_is_that_of_a_best_checkpoint_that_is_whole(places):
    kept, best = places
    assert choose_checkpoint(kept, best).best == read_state(best).best == (0.25, 0.125)
    damage(best)
    choice = choose_checkpoint(kept, best)
    assert (choice.best, choice.directory) == ((-1.0, -1.0), max(kept.iterdir()))
    assert str(best) in choice.damaged[0]


def test_a_best_checkpoint_that_was_moved_away_is_put_back(places):
    kept, best = places
    shutil.rmtree(kept)
    best.rename(best.with_name(".train-best.old-0a1b2c3d"))
    assert choose_checkpoint(kept, best).directory == best


def test_without_a_checkpoint_the_run_begins(tmp_path):
    choice = choose_checkpoint(tmp_path / "train", tmp_path / "train-best")
    assert (choice.directory, choice.lines()) == (None, [])
