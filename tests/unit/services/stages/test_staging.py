"""Artefacts are built once, whole, and again when an input changes."""

import pytest

from sluice.catalog.files import sha256_of
from sluice.services.stages.staging import build_once, find_stage_damage


def test_built_once_and_again_when_an_input_changes(tmp_path):
    built = []

    def build(directory):
        built.append(1)
        (directory / "value").write_text(str(len(built)))

    place = tmp_path / "policy"
    assert build_once(place, {"seed": 0, "lr": 1e-3}, build)
    assert not build_once(place, {"lr": 1e-3, "seed": 0}, build)
    assert (place / "value").read_text() == "1"
    assert build_once(place, {"seed": 1, "lr": 1e-3}, build)
    assert (place / "value").read_text() == "2"


def test_an_interrupted_build_leaves_the_old_artefact(tmp_path):
    place = tmp_path / "policy"
    build_once(place, {"seed": 0}, lambda directory: (directory / "value").write_text("old"))

    def fails(directory):
        (directory / "value").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_once(place, {"seed": 1}, fails)
    assert (place / "value").read_text() == "old"
    assert not build_once(place, {"seed": 0}, fails)


def test_a_directory_without_a_stamp_is_built(tmp_path):
    place = tmp_path / "policy"
    place.mkdir()
    (place / "stray").write_text("x")
    assert build_once(place, {}, lambda directory: None)
    assert not (place / "stray").exists()


@pytest.mark.parametrize("damage", ["cut", "lost", "sums"])
def test_a_damaged_artefact_is_built_again(tmp_path, damage):
    place = tmp_path / "policy"

    def build(directory):
        (directory / "value").write_text("whole")

    build_once(place, {"seed": 0}, build)
    assert find_stage_damage(place) is None
    if damage == "lost":
        (place / "value").unlink()
    else:
        (place / {"cut": "value", "sums": "sums.json"}[damage]).write_text("{")
    assert {"cut": "value is not as", "lost": "value is missing", "sums": "cannot be read"}[damage] in (
        find_stage_damage(place)
    )
    assert build_once(place, {"seed": 0}, build)
    assert (place / "value").read_text() == "whole"


def test_what_is_kept_is_not_built_again_from_whatever_inputs(tmp_path):
    place = tmp_path / "policy"
    assert build_once(place, {"seed": 0}, lambda directory: (directory / "value").touch(), keep=True)
    assert not build_once(place, {"seed": 1}, lambda directory: pytest.fail("built"), keep=True)


def test_an_artefact_that_a_dead_process_was_replacing_is_put_back(tmp_path):
    place = tmp_path / "policy"
    build_once(place, {"seed": 0}, lambda directory: (directory / "value").touch())
    place.rename(tmp_path / ".policy.old-0a1b2c3d")
    assert not build_once(place, {"seed": 0}, lambda directory: pytest.fail("built"))


def test_digest_names_the_content(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_of(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
