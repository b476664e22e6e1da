import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from sluice.catalog.errors import RankerError
from sluice.services.operate import faulty_ranker
from sluice.services.operate.faults import FAULTS, Fault, Injury, damage_newest, find_processes, inject
from sluice.services.operate.faulty_ranker import FaultyRanker
from tests.tiny_data import tiny_dataset


@pytest.fixture
def sleeper():
    """Starts processes under the names that Ray would give them; they end with the test."""
    started = []

    def start(name):
        process = subprocess.Popen(["bash", "-c", f"exec -a '{name}' sleep 60"])
        started.append(process)
        while not any(own.pid == process.pid for own in find_processes(name.removeprefix("ray::"))):
            assert process.poll() is None
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_processes_are_found_by_rays_names_oldest_first(sleeper):
    first, second = sleeper("ray::KeptWeightBoard.at"), sleeper("ray::KeptWeightBoard")
    sleeper("ray::CatalogueBoard")
    assert [process.pid for process in find_processes("(Kept)WeightBoard")] == [first.pid, second.pid]
    assert find_processes("WeightBoard") == []
    assert find_processes("RolloutActor") == []


def test_a_process_is_killed_or_stopped_and_returned(sleeper, tmp_path):
    first, second = sleeper("ray::RolloutActor.run"), sleeper("ray::RolloutActor")
    victim = inject(FAULTS["kill rollout"], lambda count: count - 1, tmp_path / "control", tmp_path).victim
    assert (victim.pid, second.wait()) == (second.pid, -signal.SIGKILL)
    victim = inject(FAULTS["stop rollout"], lambda count: count - 1, tmp_path / "control", tmp_path).victim
    assert victim.pid == first.pid
    _, status = os.waitpid(first.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    with pytest.raises(LookupError, match="no process of the name QueueActor"):
        inject(FAULTS["kill queue"], lambda count: 0, tmp_path / "control", tmp_path)


def test_the_driver_is_left_to_who_started_it(tmp_path):
    assert inject(FAULTS["kill driver"], lambda count: 0, tmp_path / "control", tmp_path) == Injury()
    assert not (tmp_path / "control").exists()


def checkpoint(kept, name):
    weights = kept / f"checkpoint_{name}" / "policy" / "model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"abc\x01")
    return weights


def test_the_newest_of_two_checkpoints_is_damaged(tmp_path):
    former = checkpoint(tmp_path, "2026-01-01")
    with pytest.raises(LookupError, match="no two checkpoints"):
        damage_newest(tmp_path)
    newest = checkpoint(tmp_path, "2026-01-02")
    assert damage_newest(tmp_path) == newest.parents[1]
    assert (former.read_bytes(), newest.read_bytes()) == (b"abc\x01", b"abc\x00")


def test_every_kind_hits_something():
    for name, fault in FAULTS.items():
        assert fault.name == name
        assert fault.signal or fault.ranker
        assert fault.victim or fault.ranker
    assert Fault(name="nothing").victim == ""


def test_a_ranker_does_what_it_is_told_and_is_right_otherwise(tmp_path, monkeypatch):
    monkeypatch.setattr(faulty_ranker, "SLOW_S", 0.0)
    dataset, control = tiny_dataset(tmp_path), tmp_path / "control"
    ranker = FaultyRanker(dataset, str(control))
    histories, candidates = [np.array([0, 1], dtype=np.int32)], np.array([[2, 3]], dtype=np.int32)
    right = ranker.score(histories, candidates)
    control.write_text("raise")
    with pytest.raises(RankerError, match="told to raise"):
        ranker.score(histories, candidates)
    np.testing.assert_array_equal(ranker.score(histories, candidates), right)  # once
    control.write_text("slow")
    for _ in range(2):
        np.testing.assert_array_equal(ranker.score(histories, candidates), right)
    assert control.exists()


def test_a_ranker_that_crashes_takes_its_process_along_once(tmp_path):
    tiny_dataset(tmp_path)
    (tmp_path / "control").write_text("crash")
    code = (
        "import sys, numpy as np\n"
        "from sluice.catalog.data.dataset import Dataset\n"
        "from sluice.services.operate.faulty_ranker import FaultyRanker\n"
        "ranker = FaultyRanker(Dataset.open(sys.argv[1] + '/data'), sys.argv[1] + '/control')\n"
        "ranker.score([np.array([0], dtype=np.int32)], np.array([[1]], dtype=np.int32))\n"
    )
    for expected in (1, 0):
        assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == expected
