"""The checkpoints of a training, as they lie on the disk."""

import json

import pytest

from sluice.learner.training.kept import forget_lost, list_checkpoints


@pytest.fixture
def kept(tmp_path):
    for day in (1, 2):
        (tmp_path / "train" / f"checkpoint_2026-01-0{day}_00-00-00.000001").mkdir(parents=True)
    return tmp_path / "train"


def test_the_last_one_comes_first_and_the_best_one_at_last(kept, tmp_path):
    before, last = sorted(kept.iterdir())
    (kept / "checkpoint_manager_snapshot.json").touch()
    best = tmp_path / "train-best"
    assert list_checkpoints(kept, best) == [last, before]
    best.mkdir()
    assert list_checkpoints(kept, best) == [last, before, best]
    assert list_checkpoints(tmp_path / "none", tmp_path / "no-best") == []


def test_ray_train_forgets_a_list_that_is_torn_or_has_what_is_lost(kept):
    listed = kept / "checkpoint_manager_snapshot.json"
    assert forget_lost(kept) is None
    names = [path.name for path in sorted(kept.iterdir())]
    listed.write_text(json.dumps({"checkpoint_results": [{"checkpoint_dir_name": name} for name in names]}))
    assert forget_lost(kept) is None and listed.exists()
    (kept / names[1]).rmdir()
    assert forget_lost(kept) == f"{listed.name} lists {names[1]}, which is not there"
    assert not listed.exists()
    listed.write_text('{"checkpoint_results": [')
    assert "cannot be read" in forget_lost(kept)
    assert not listed.exists()
