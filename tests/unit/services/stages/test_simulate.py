"""`sluice simulate`: files, resuming, what is refused, and that prepare takes the world without its truth."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from sluice.catalog.data.settings import DataSettings
from sluice.catalog.errors import DataError, RunError
from sluice.catalog.simulator import parts
from sluice.catalog.simulator.settings import WorldSettings
from sluice.services.config import load_config, load_world
from sluice.services.run_lock import hold_run
from sluice.services.stages.prepare import prepare_data
from sluice.services.stages.simulate import simulate_world
from tests.unit.catalog.simulator.worlds import small_world

ROOT = Path(__file__).parents[4]
WORLD = {"users__count": 700, "chunk_users": 250}  # three chunks, the last one smaller


class Killed(BaseException):
    """The process ends."""


def files_of(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def simulate_until(world: WorldSettings, output: Path, users: int) -> None:
    """Simulate, and die as soon as so many users are done."""

    def kill(done: int, _total: int, _fields: dict[str, float]) -> None:
        if done >= users:
            raise Killed

    with pytest.raises(Killed):
        simulate_world(world, output, kill)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate_world(small_world(**WORLD), tmp_path_factory.mktemp("simulated") / "world").directory


def test_a_world_is_its_files_and_nothing_else(directory: Path):
    assert list(files_of(directory)) == [
        "interactions.parquet",
        "items.parquet",
        "truth/items.parquet",
        "truth/sessions.npy",
        "truth/tastes.npy",
        "truth/users.parquet",
        "users.parquet",
        "world.json",
    ]
    assert [path.name for path in directory.parent.iterdir()] == ["world"]


@pytest.mark.parametrize("chunk_users", [500, 1000])
def test_the_same_dials_make_the_same_bytes_whatever_the_chunks(
    directory: Path, tmp_path: Path, chunk_users: int
):
    again = simulate_world(small_world(**WORLD | {"chunk_users": chunk_users}), tmp_path / "again").directory
    assert files_of(again) == files_of(directory)


def test_another_seed_is_another_world(directory: Path, tmp_path: Path):
    other = simulate_world(small_world(**WORLD, seed=1), tmp_path / "other").directory
    assert files_of(other)["interactions.parquet"] != files_of(directory)["interactions.parquet"]


# The kill comes before the tally of the chunk is written, so that chunk is made again.
@pytest.mark.parametrize(("users", "again"), [(250, [0, 1, 2]), (500, [1, 2]), (700, [2])])
def test_a_run_that_was_killed_goes_on_and_ends_with_the_same_bytes(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, users: int, again: list[int]
):
    simulate_until(small_world(**WORLD), tmp_path / "world", users)
    assert not (tmp_path / "world").exists()
    blocks: list[int] = []

    def simulate_block(world: WorldSettings, items: object, number: int) -> object:
        blocks.append(number)
        return original(world, items, number)

    original = parts.simulate_block
    monkeypatch.setattr(parts, "simulate_block", simulate_block)
    done: list[int] = []
    simulate_world(small_world(**WORLD), tmp_path / "world", lambda users, total, fields: done.append(users))
    assert blocks == again
    assert done[0] == 250 * again[0] and done[-1] == 700
    assert files_of(tmp_path / "world") == files_of(directory)
    assert [path.name for path in tmp_path.iterdir()] == ["world"]


def test_a_run_that_was_killed_while_joining_goes_on(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def die(self: object) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(parts.WorldParts, "join", die)
        simulate_world(small_world(**WORLD), tmp_path / "world")
    simulate_world(small_world(**WORLD), tmp_path / "world")
    assert files_of(tmp_path / "world") == files_of(directory)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, r"was begun with other settings \(fingerprint \w{16}, now \w{16}\): go on with"),
        ({"chunk_users": 500}, r"was begun with chunk_users 250 \(chunk_users 250, now 500\)"),
    ],
)
def test_parts_of_another_world_are_refused(tmp_path: Path, changes: dict[str, int], message: str):
    simulate_until(small_world(**WORLD), tmp_path / "world", 250)
    with pytest.raises(DataError, match=message):
        simulate_world(small_world(**WORLD | changes), tmp_path / "world")


def test_a_finished_world_is_kept_and_another_one_refused(directory: Path):
    before = files_of(directory)
    again = simulate_world(small_world(**WORLD | {"chunk_users": 500}), directory)
    assert again.reused and again.manifest["counts"]["users"] == 700
    with pytest.raises(
        DataError, match=r"another world \(segment_b\.leak 0\.0 there, 0\.5 now\): remove it, or"
    ):
        simulate_world(small_world(**WORLD, segment_b__leak=0.5), directory)
    assert files_of(directory) == before


def test_foreign_files_are_left_alone(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"holds other files and no world\.json; give an empty or a new"):
        simulate_world(small_world(), tmp_path)
    assert files_of(tmp_path) == {"notes.txt": b"mine"}


def test_two_processes_do_not_write_one_world(tmp_path: Path):
    with hold_run(tmp_path / ".world.simulating"), pytest.raises(RunError, match="is going on"):
        simulate_world(small_world(), tmp_path / "world")


def test_progress_counts_users(tmp_path: Path):
    seen: list[tuple[int, int, dict[str, float]]] = []
    result = simulate_world(small_world(**WORLD), tmp_path / "world", lambda *now: seen.append(now))
    assert [done for done, _, _ in seen] == [0, 250, 500, 700] and {total for _, total, _ in seen} == {700}
    assert seen[-1][2]["clicks"] == result.manifest["counts"]["clicks"]
    assert "700 users, 120 items, 33600 impressions" in result.lines()[0]


def test_the_manifest_agrees_with_the_log(directory: Path):
    manifest = json.loads((directory / "world.json").read_text())
    log = pq.read_table(directory / "interactions.parquet").to_pandas()
    counts, figures = manifest["counts"], manifest["figures"]
    assert (counts["shown"], counts["logged"]) == (700 * 12 * 4, len(log))
    assert (
        counts["clicks"]
        == log.click.sum()
        == sum(of["counts"]["clicks"] for of in manifest["segments"].values())
    )
    assert figures["click_through"] == pytest.approx(counts["clicks"] / counts["shown"])
    assert figures["explored_share"] == pytest.approx(0.1, abs=0.01)
    assert figures["p_random"] < figures["p_shown"] < figures["p_ideal"]


def test_the_log_is_in_order_and_says_what_was_shown(directory: Path):
    table = pq.read_table(directory / "interactions.parquet")
    log = table.to_pandas()
    assert table.schema.names == [
        *("user_id", "item_id", "timestamp", "position", "propensity", "click", "dwell_seconds", "exposed_by")
    ]
    assert (log.sort_values(["user_id", "timestamp"], kind="stable").index == log.index).all()
    assert not log.duplicated(["user_id", "timestamp"]).any(), "no ties in time"
    assert set(log.position) == {1, 2, 3, 4} and set(log.exposed_by) == {"logger", "exploration"}
    assert (log.exposed_by == "exploration").mean() == pytest.approx(0.1, abs=0.02)
    assert (log.dwell_seconds.notna() == log.click).all() and (log.dwell_seconds.dropna() > 0).all()
    assert log.propensity.between(0.1 / 120, 1).all()


def test_the_segment_is_in_the_truth_alone(directory: Path):
    assert pq.read_schema(directory / "users.parquet").names == ["user_id", "favourite_category", "joined"]
    assert pq.read_schema(directory / "items.parquet").names == [
        *("item_id", "category", "brand", "available_from", "available_until")
    ]
    segment = pq.read_table(directory / "truth/users.parquet").to_pandas().segment
    assert set(segment) == {"A", "B"} and (segment == "B").mean() == pytest.approx(0.5, abs=0.08)


def data_settings(directory: Path) -> DataSettings:
    """The data of configs/half-wrong.yaml, from this world."""
    files = [
        f"data.source.interactions=[{directory / 'interactions.parquet'}]",
        f"data.source.catalogue={directory / 'items.parquet'}",
    ]
    return load_config(ROOT / "configs" / "half-wrong.yaml", files).data


def test_prepare_takes_a_world_as_it_is(directory: Path, tmp_path: Path):
    manifest = prepare_data(data_settings(directory), tmp_path / "data").manifest
    log = pq.read_table(directory / "interactions.parquet").to_pandas()
    clicks = log[log.click].groupby("user_id").size()
    kept = clicks[clicks >= 3].index
    assert manifest["counts"]["interactions"] == clicks[kept].sum()
    assert manifest["log"]["impressions"] == (~log.click & log.user_id.isin(kept)).sum() > 1000
    assert manifest["rejected"]["interactions"]["bad"] == manifest["log"].get("ties_in_time", 0) == 0
    assert manifest["log"]["time_unit"] == "s"
    examples = manifest["counts"]["examples"]
    assert examples["pretrain"] > examples["fresh"] > examples["valid"] > 0 < examples["test"]


def test_prepare_reads_nothing_of_the_truth(directory: Path, tmp_path: Path):
    world = tmp_path / "world"
    shutil.copytree(directory, world)
    prepare_data(data_settings(world), tmp_path / "with")
    shutil.rmtree(world / "truth")
    (world / "world.json").unlink()
    (world / "users.parquet").unlink()
    prepare_data(data_settings(world), tmp_path / "without")
    assert files_of(tmp_path / "without") == files_of(tmp_path / "with")


def test_the_shipped_worlds_are_what_they_are_called():
    wrong = load_world(ROOT / "configs/worlds/half-wrong.yaml")
    right = load_world(ROOT / "configs/worlds/ranker-right.yaml")
    assert (wrong.segment_b.rotation, right.segment_b.rotation) == (90, 0)
    assert wrong.segment_b.share == right.segment_b.share == 0.5
    assert wrong.model_copy(update={"name": "x", "segment_b": right.segment_b}) == right.model_copy(
        update={"name": "x"}
    )
    (log,) = load_config(ROOT / "configs/half-wrong.yaml").data.source.interactions
    assert Path(log) == wrong.directory / "interactions.parquet"


def test_tastes_of_all_chunks_are_there(directory: Path):
    tastes = np.load(directory / "truth" / "tastes.npy")
    assert tastes.shape == (700, 12, 8) and np.linalg.norm(tastes, axis=2) == pytest.approx(1, abs=1e-5)
