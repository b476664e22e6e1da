"""Where a run writes."""

from collections import namedtuple

import pytest

from sluice.services.config import RunConfig
from sluice.services.preflight import output
from sluice.services.preflight.output import check_output, check_sockets, needed_bytes

Usage = namedtuple("Usage", "total used free")


def config(directory, **parts):
    return RunConfig.model_validate({"name": "t", "output": str(directory), **parts})


def told(directory, log_bytes=0, **parts):
    return [(finding.field, finding.value) for finding in check_output(config(directory, **parts), log_bytes)]


def test_a_directory_that_is_yet_to_be_made_is_fine(tmp_path):
    assert told(tmp_path / "a" / "b") == []
    assert list(tmp_path.iterdir()) == [], "a check leaves nothing behind"


def test_a_file_in_the_way_is_told(tmp_path):
    (tmp_path / "runs").write_text("")
    assert told(tmp_path / "runs") == [
        ("output", f"{tmp_path}/runs/t-seed0: {tmp_path}/runs is a file"),
    ]


def test_a_place_that_cannot_be_written_is_told():
    """Not even by root."""
    ((field, value),) = told("/proc/sluice")
    assert field == "output" and value.startswith("/proc/sluice/t-seed0: /proc cannot be written (")


def test_what_prepare_would_not_replace_is_told(tmp_path):
    (tmp_path / "t-seed0" / "data").mkdir(parents=True)
    (tmp_path / "t-seed0" / "data" / "mine.txt").write_text("")
    ((field, value),) = told(tmp_path)
    assert field == "output" and "holds other files and no manifest.json" in value


def test_too_little_room_is_told(tmp_path, monkeypatch):
    needed = needed_bytes(config(tmp_path), 10**9)
    assert needed > 10**9
    for free, findings in ((needed, 0), (needed - 1, 1)):
        monkeypatch.setattr(output.shutil, "disk_usage", lambda place, free=free: Usage(0, 0, free))
        assert len(told(tmp_path, log_bytes=10**9)) == findings


def test_the_need_is_that_of_policies_and_checkpoints(tmp_path):
    policy = {"hidden_size": 64, "layers": 2, "heads": 2, "feed_forward_size": 128}
    codes = {"semantic_ids": {"level_sizes": [8, 8]}}
    parameters = 2 * (4 * 64 * 64 + 3 * 64 * 128) + 16 * 64
    small = config(tmp_path, policy=policy, data=codes, learner={"keep_last": 1})
    assert needed_bytes(small, 7) == 7 + 4 * parameters * (6 + 2 * 2 * 3)
    (tmp_path / "model.safetensors").write_bytes(b"x" * 100)
    based = config(tmp_path, policy={"base": str(tmp_path)}, learner={"keep_last": 1})
    assert needed_bytes(based, 0) == 100 * (6 + 2 * 2 * 3)


@pytest.mark.parametrize(("letters", "is_refused"), [(230, False), (240, True)])
def test_a_name_that_is_too_long_is_told(tmp_path, letters, is_refused):
    findings = told(tmp_path, name="n" * letters)
    assert [field for field, _ in findings] == (["name"] if is_refused else [])


def test_a_part_of_the_output_that_is_too_long_is_told(tmp_path):
    assert [field for field, _ in told(tmp_path / ("n" * 300))] == ["output"]


def test_sockets_of_a_head_need_short_paths():
    assert list(check_sockets({})) == [] and list(check_sockets({"RAY_TMPDIR": "/" + "n" * 38})) == []
    (finding,) = check_sockets({"RAY_TMPDIR": "/" + "n" * 39})
    assert (finding.field, finding.bound) == ("RAY_TMPDIR", "107 bytes")
    assert "paths of 108 bytes" in finding.value
    (finding,) = check_sockets({"TMPDIR": "/" + "n" * 60})
    assert finding.field == "TMPDIR"
    assert list(check_sockets({"TMPDIR": "/" + "n" * 60, "RAY_TMPDIR": "/tmp"})) == []
