import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc_csv
import pyarrow.parquet as pq
import pytest

from sluice.catalog.data import partition, sources
from sluice.catalog.data.dataset import Dataset
from sluice.catalog.data.schema import CATALOGUE, EXAMPLES, INTERACTIONS, USERS
from sluice.catalog.data.settings import (
    CatalogueColumns,
    DataSettings,
    InteractionColumns,
    SemanticIdSettings,
    TableSource,
)
from sluice.catalog.data.split_settings import GlobalTime
from sluice.catalog.errors import DataError
from sluice.services.stages import prepare as module
from sluice.services.stages.prepare import prepare_data

USERS_COUNT, ITEMS_COUNT = 40, 30


def make_log(seed: int = 0) -> pa.Table:
    """Users of 3 to 12 interactions with distinct items, all rows shuffled."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(USERS_COUNT):
        items = rng.permutation(ITEMS_COUNT)[: rng.integers(3, 13)]
        rows += [
            (f"u{user}", f"i{item}", 1000 + 100 * place + user, 1 + place % 5)
            for place, item in enumerate(items)
        ]
    order = rng.permutation(len(rows))
    columns = list(zip(*[rows[i] for i in order], strict=True))
    return pa.table(dict(zip(["user_id", "item_id", "timestamp", "rating"], map(list, columns), strict=True)))


def make_items() -> pa.Table:
    return pa.table(
        {"item_id": [f"i{i}" for i in range(ITEMS_COUNT)], "kind": [f"k{i % 4}" for i in range(ITEMS_COUNT)]}
    )


def write(
    folder: Path, log: pa.Table, items: pa.Table | None = None, suffix: str = "parquet", **given
) -> DataSettings:
    folder.mkdir(parents=True, exist_ok=True)
    save = pq.write_table if suffix == "parquet" else pc_csv.write_csv
    save(log, folder / f"log.{suffix}")
    if items is not None:
        save(items, folder / f"items.{suffix}")
    source = TableSource(
        interactions=(str(folder / f"log.{suffix}"),),
        columns=InteractionColumns(rating="rating"),
        catalogue=str(folder / f"items.{suffix}") if items is not None else None,
        catalogue_columns=CatalogueColumns(
            attributes=("kind",) if items is not None and "kind" in items.column_names else (),
            codes="codes" if items is not None and "codes" in items.column_names else None,
        ),
    )
    ids = SemanticIdSettings(level_sizes=(16, 16), vector_dims=8)
    return DataSettings(**({"name": "test", "source": source, "semantic_ids": ids} | given))


def without(table: pa.Table, row: int, **changes) -> pa.Table:
    """The table with some values of one row replaced."""
    data = {name: table.column(name).to_pylist() for name in table.column_names}
    for name, value in changes.items():
        data[name][row] = value
    return pa.table({name: pa.array(values, table.schema.field(name).type) for name, values in data.items()})


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.parquet"))}


def last_row_of(log: pa.Table, user: str) -> int:
    rows = [i for i, u in enumerate(log.column("user_id").to_pylist()) if u == user]
    return max(rows, key=lambda i: log.column("timestamp")[i].as_py())


def test_files_follow_the_schemas_and_the_sequences_the_log(tmp_path):
    log = make_log()
    result = prepare_data(write(tmp_path / "raw", log, make_items()), tmp_path / "out")
    assert not result.reused and result.warnings == ()
    for name, schema in [
        ("users", USERS),
        ("catalogue", CATALOGUE),
        ("interactions", INTERACTIONS),
        ("examples", EXAMPLES),
    ]:
        assert pq.read_schema(tmp_path / "out" / f"{name}.parquet").equals(schema), name
    dataset = Dataset.open(tmp_path / "out")
    rows = sorted(
        zip(*(log.column(n).to_pylist() for n in ("user_id", "timestamp", "item_id", "rating")), strict=True)
    )
    for user, name in enumerate(dataset.user_ids):
        expected = [(item, rating) for u, _, item, rating in rows if u == name]
        found = [dataset.item_ids[item] for item in dataset.items_of(user)]
        start, end = dataset.offsets[user : user + 2]
        assert list(zip(found, dataset.ratings[start:end].tolist(), strict=True)) == expected
    assert sorted(dataset.user_ids) == sorted(f"u{i}" for i in range(USERS_COUNT))
    assert result.manifest["counts"] | {
        "items_with_shared_codes": 0,
        "items_without_pretrain_interactions": 0,
    } == {
        "users": 40,
        "items": 30,
        "interactions": len(rows),
        "interactions_with": {"rating": len(rows), "click": 0, "dwell_seconds": 0},
        "users_below_min_interactions": 0,
        "interactions_below_min_interactions": 0,
        "pretrain_interactions": len(rows) - 80,
        "interactions_before_an_earlier_part": 0,
        "examples": {"pretrain": len(rows) - 120, "fresh": 0, "valid": 40, "test": 40},
        "repeated_targets": {"pretrain": 0, "fresh": 0, "valid": 0, "test": 0},
        "items_with_shared_codes": 0,
        "items_without_pretrain_interactions": 0,
    }


def test_csv_and_parquet_give_the_same(tmp_path):
    for suffix in ("parquet", "csv"):
        prepare_data(write(tmp_path / suffix, make_log(), make_items(), suffix), tmp_path / f"out-{suffix}")
    assert contents(tmp_path / "out-csv") == contents(tmp_path / "out-parquet")


def test_the_result_does_not_depend_on_batches_and_buckets(tmp_path, monkeypatch):
    settings = write(tmp_path / "raw", make_log(), make_items())
    prepare_data(settings, tmp_path / "whole")
    monkeypatch.setattr(sources, "BATCH_ROWS", 7)
    monkeypatch.setattr(partition, "BUCKET_ROWS", 20)
    prepare_data(settings, tmp_path / "pieces")
    whole, pieces = Dataset.open(tmp_path / "whole"), Dataset.open(tmp_path / "pieces")
    assert whole.user_ids == pieces.user_ids
    assert (whole.codes == pieces.codes).all()
    for name in ("interactions", "examples"):
        tables = [pq.read_table(tmp_path / out / f"{name}.parquet") for out in ("whole", "pieces")]
        assert tables[0].equals(tables[1].unify_dictionaries())


def test_rows_of_one_second_keep_the_order_of_the_log(tmp_path):
    items = [f"i{i}" for i in (5, 3, 9, 1, 7)]
    log = pa.table({"user_id": ["a"] * 5, "item_id": items, "timestamp": [4, 4, 2, 4, 4], "rating": [1] * 5})
    prepare_data(write(tmp_path / "raw", log), tmp_path / "out")
    dataset = Dataset.open(tmp_path / "out")
    assert [dataset.item_ids[i] for i in dataset.items_of(0)] == ["i9", "i5", "i3", "i1", "i7"]
    assert dataset.item_ids == sorted(items)


def test_semantic_ids_see_the_training_part_alone(tmp_path):
    log, items = make_log(), make_items()
    codes = []
    first, last = log.column("user_id")[0].as_py(), last_row_of(log, "u7")
    used = {
        i
        for u, i in zip(*(log.column(n).to_pylist() for n in ("user_id", "item_id")), strict=True)
        if u == "u7"
    }
    other = next(f"i{i}" for i in range(ITEMS_COUNT) if f"i{i}" not in used)
    in_training = min(
        (i for i, u in enumerate(log.column("user_id").to_pylist()) if u == first),
        key=lambda i: log.column("timestamp")[i].as_py(),
    )
    for name, table in [
        ("as-is", log),
        ("test-changed", without(log, last, item_id=other)),
        ("training-changed", without(log, in_training, item_id=other)),
    ]:
        prepare_data(write(tmp_path / name, table, items), tmp_path / f"out-{name}")
        codes.append(Dataset.open(tmp_path / f"out-{name}").codes.tolist())
    assert codes[0] == codes[1]
    assert codes[0] != codes[2]


def test_bad_rows_stop_it_by_default_and_nothing_is_left_behind(tmp_path):
    log = without(without(make_log(), 2, timestamp=-5), 5, user_id="")
    with pytest.raises(DataError) as caught:
        prepare_data(write(tmp_path / "raw", log, make_items()), tmp_path / "out")
    assert f"{tmp_path}/raw/log.parquet, row 3, timestamp='-5': is negative" in str(caught.value)
    assert "row 6, user_id='': is empty" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_a_negative_dwell_time_is_a_bad_row(tmp_path):
    log = make_log()
    seconds = pa.array(
        [-0.5 if row == 7 else None if row == 8 else float(row) for row in range(log.num_rows)]
    )
    settings = write(tmp_path / "raw", log.append_column("seconds", seconds))
    columns = InteractionColumns(rating="rating", dwell_seconds="seconds")
    settings = settings.model_copy(update={"source": settings.source.model_copy(update={"columns": columns})})
    with pytest.raises(DataError, match=r"dwell_seconds.*is negative"):
        prepare_data(settings, tmp_path / "out")
    lenient = settings.model_copy(update={"max_bad_share": 0.1})
    counts = prepare_data(lenient, tmp_path / "out").manifest["counts"]
    assert counts["interactions_with"]["dwell_seconds"] == counts["interactions"] - 1


def test_bad_rows_within_the_share_are_left_out_and_listed(tmp_path):
    log = without(without(make_log(), 2, timestamp=-5), 5, item_id="i999")
    result = prepare_data(write(tmp_path / "raw", log, make_items(), max_bad_share=0.05), tmp_path / "out")
    assert result.manifest["rejected"]["interactions"] == {
        "rows": log.num_rows,
        "bad": 2,
        "by_reason": {"item_id is not in the catalogue": 1, "timestamp is negative": 1},
    }
    assert result.manifest["counts"]["interactions"] == log.num_rows - 2
    listed = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert [(bad["row"], bad["column"], bad["value"]) for bad in listed] == [
        (3, "timestamp", "-5"),
        (6, "item_id", "i999"),
    ]
    assert "rejected.jsonl lists them" in result.warnings[0]


def test_a_repeated_catalogue_row_is_reported(tmp_path):
    items = pa.concat_tables([make_items(), make_items().slice(3, 1)])
    with pytest.raises(DataError, match=r"items\.parquet, row 31, item_id='i3': stands in an earlier row"):
        prepare_data(write(tmp_path / "raw", make_log(), items), tmp_path / "out")


def test_it_is_not_done_twice_unless_something_changed(tmp_path):
    settings, out = write(tmp_path / "raw", make_log(), make_items()), tmp_path / "out"
    assert not prepare_data(settings, out).reused
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    again = prepare_data(settings, out)
    assert again.reused and again.manifest["counts"]["users"] == 40
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before
    assert not prepare_data(settings.model_copy(update={"max_history": 9}), out).reused
    assert not prepare_data(settings, out).reused
    write(tmp_path / "raw", make_log(seed=1), make_items())  # another log in the same place
    assert not prepare_data(settings, out).reused
    codes = out / "catalogue.parquet"
    codes.write_bytes(codes.read_bytes()[:-1] + b"x")
    assert not prepare_data(settings, out).reused
    (out / "examples.parquet").unlink()
    assert not prepare_data(settings, out).reused
    assert prepare_data(settings, out).reused


def test_a_failure_leaves_the_earlier_result_as_it_was(tmp_path, monkeypatch):
    settings, out = write(tmp_path / "raw", make_log(), make_items()), tmp_path / "out"
    prepare_data(settings, out)
    before = contents(out)

    def fail(*arguments):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(module, "residual_kmeans", fail)
    with pytest.raises(RuntimeError, match="out of luck"):
        prepare_data(settings.model_copy(update={"max_history": 9}), out)
    assert contents(out) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "raw"]


def test_a_directory_of_something_else_is_never_replaced(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="holds other files"):
        prepare_data(write(tmp_path / "raw", make_log()), out)
    assert (out / "thesis.txt").read_text() == "years of work"


def test_users_with_few_interactions_are_left_out_and_counted(tmp_path):
    log = make_log()
    lengths = np.unique(log.column("user_id").to_pylist(), return_counts=True)[1]
    result = prepare_data(write(tmp_path / "raw", log, make_items(), min_interactions=6), tmp_path / "out")
    counts = result.manifest["counts"]
    assert counts["users"] == (lengths >= 6).sum()
    assert counts["users_below_min_interactions"] == (lengths < 6).sum() > 0
    assert counts["interactions_below_min_interactions"] == lengths[lengths < 6].sum()
    assert np.diff(Dataset.open(tmp_path / "out").offsets).min() == 6


@pytest.mark.parametrize(
    ("rows", "given", "message"),
    [
        (0, {}, "the log is empty"),
        (2, {}, r"no user .* has data\.min_interactions 3"),
        (8, {}, "the pretrain split"),
    ],
)
def test_logs_too_small_to_use(tmp_path, rows, given, message):
    log = pa.table(
        {
            "user_id": pa.array([f"u{i // 3}" for i in range(rows)], pa.string()),
            "item_id": pa.array([f"i{i}" for i in range(rows)], pa.string()),
            "timestamp": pa.array(range(rows), pa.int64()),
            "rating": pa.array([1.0] * rows, pa.float64()),
        }
    )
    with pytest.raises(DataError, match=message):
        prepare_data(write(tmp_path / "raw", log, **given), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_a_reward_that_no_row_has_stops_it(tmp_path):
    log = make_log()
    empty = log.set_column(3, "rating", pa.nulls(log.num_rows, pa.float64()))
    with pytest.raises(
        DataError, match=r"data\.reward is rating, but no usable interaction of .*log\.parquet has one"
    ):
        prepare_data(write(tmp_path / "raw", empty, reward="rating"), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]
    prepare_data(write(tmp_path / "raw", empty), tmp_path / "out")
    assert Dataset.open(tmp_path / "out").reward_column is None


def test_global_time(tmp_path):
    log = make_log()
    split = GlobalTime(valid_share=0.2, test_share=0.1)
    result = prepare_data(write(tmp_path / "raw", log, make_items(), split=split), tmp_path / "out")
    times = np.sort(log.column("timestamp").to_numpy())
    n = len(times)
    cuts = {"valid_from": int(times[int(n * 0.7)]), "test_from": int(times[int(n * 0.9)])}
    assert result.manifest["time_cuts"] == {"fresh_from": None, **cuts}
    dataset = Dataset.open(tmp_path / "out")
    for split_name, low, high in [
        ("pretrain", 0, cuts["valid_from"]),
        ("valid", cuts["valid_from"], cuts["test_from"]),
        ("test", cuts["test_from"], 10**9),
    ]:
        examples = dataset.examples(split_name)
        at = dataset.timestamps[dataset.offsets[examples.users] + examples.positions]
        assert len(examples) and (at >= low).all() and (at < high).all() and (examples.positions > 0).all()
    total = sum(len(dataset.examples(s)) for s in ("pretrain", "valid", "test"))
    assert total == n - dataset.users
    assert dataset.lengths_until("pretrain").sum() == (times < cuts["valid_from"]).sum()


def test_codes_of_the_user_are_kept_and_told_apart(tmp_path):
    own = [[i % 5, i // 10] for i in range(ITEMS_COUNT)]  # every tuple twice
    items = make_items().append_column("codes", pa.array(own, pa.list_(pa.int64())))
    result = prepare_data(write(tmp_path / "raw", make_log(), items), tmp_path / "out")
    dataset = Dataset.open(tmp_path / "out")
    assert dataset.codes[:, :2].tolist() == own
    assert dataset.level_sizes == (5, 3, 2)
    assert len({tuple(row) for row in dataset.codes.tolist()}) == ITEMS_COUNT
    assert result.manifest["counts"]["items_with_shared_codes"] == ITEMS_COUNT


def test_codes_that_are_one_to_one_stay_as_they_are(tmp_path):
    own = [[i % 5, i // 5] for i in range(ITEMS_COUNT)]
    items = make_items().append_column("codes", pa.array(own, pa.list_(pa.int64())))
    prepare_data(write(tmp_path / "raw", make_log(), items), tmp_path / "out")
    dataset = Dataset.open(tmp_path / "out")
    assert (dataset.codes.tolist(), dataset.level_sizes) == (own, (5, 6))


def test_targets_that_can_never_be_hit_are_told(tmp_path):
    log = make_log()
    last = last_row_of(log, "u3")
    again = next(
        log.column("item_id")[i].as_py()
        for i, u in enumerate(log.column("user_id").to_pylist())
        if u == "u3" and i != last
    )
    log = without(log, last, item_id=again)
    result = prepare_data(write(tmp_path / "raw", log, make_items()), tmp_path / "out")
    assert result.manifest["counts"]["repeated_targets"] == {"pretrain": 0, "fresh": 0, "valid": 0, "test": 1}
    assert "1 of 40 test examples were consumed before" in result.warnings[0]
    free = write(tmp_path / "raw", log, make_items(), exclude_seen=False)
    assert prepare_data(free, tmp_path / "free").warnings == ()


def test_progress_ends_at_its_total_and_never_goes_back(tmp_path):
    seen = []
    prepare_data(
        write(tmp_path / "raw", make_log(), make_items()),
        tmp_path / "out",
        lambda done, total, fields: seen.append((done, total)),
    )
    done = [d for d, _ in seen]
    assert done == sorted(done) and seen[-1][0] == seen[-1][1]
    # The semantic IDs, for the most part, come after the rows.
    assert [d < total for d, total in seen] == [True] * (len(seen) - 2) + [False] * 2


def test_movielens():
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        result = prepare_data(DataSettings(), Path(folder) / "ml")
        dataset = Dataset.open(Path(folder) / "ml")
        counts = result.manifest["counts"]
        assert (counts["users"], counts["items"], counts["interactions"]) == (943, 1682, 100_000)
        assert counts["examples"] == {"pretrain": 97_171, "fresh": 0, "valid": 943, "test": 943}
        assert dataset.codes.shape == (1682, 3)
        assert len({tuple(row) for row in dataset.codes.tolist()}) == 1682
        assert dataset.settings.exclude_seen


def parted_log() -> pa.Table:
    """`make_log` with the part of each row by its place in its user's sequence: 60%, 20%, 10%, 10%."""
    log = make_log().sort_by([("user_id", "ascending"), ("timestamp", "ascending")])
    users = log.column("user_id").to_pylist()
    lengths = {user: users.count(user) for user in users}
    places = [users[:row].count(user) for row, user in enumerate(users)]
    names = [
        "train" if place < 0.6 * lengths[user] - 1 else "fresh" if place < lengths[user] - 2 else None
        for user, place in zip(users, places, strict=True)
    ]
    names = [
        name or ("valid" if place == lengths[user] - 2 else "test")
        for name, user, place in zip(names, users, places, strict=True)
    ]
    return log.append_column("split", pa.array(names))


def with_source(settings: DataSettings, **changes) -> DataSettings:
    """The settings with some of the source's replaced, checked whole."""
    raw = settings.model_dump()
    source = raw["source"] | {name: value for name, value in changes.items() if name != "split"}
    return DataSettings.model_validate(
        raw | {"source": source} | ({"split": changes["split"]} if "split" in changes else {})
    )


def by_column(folder: Path, log: pa.Table, **split) -> DataSettings:
    settings = write(folder, log, make_items())
    columns = settings.source.columns.model_dump() | {"part": "split"}
    return with_source(settings, columns=columns, split={"type": "column"} | split)


def test_a_column_of_the_log_names_the_parts(tmp_path):
    log = parted_log()
    result = prepare_data(by_column(tmp_path / "raw", log), tmp_path / "out")
    dataset = Dataset.open(tmp_path / "out")
    assert dataset.prompt_part == "fresh" and result.manifest["time_cuts"] is None
    wanted = dict(zip(*(log.column(n).to_pylist() for n in ("timestamp", "split")), strict=True))
    wanted = {time: part.replace("train", "pretrain") for time, part in wanted.items()}
    first = {int(dataset.timestamps[start]) for start in dataset.offsets[:-1]}
    for part in ("pretrain", "fresh", "valid", "test"):
        examples = dataset.examples(part)
        times = dataset.timestamps[dataset.offsets[examples.users] + examples.positions]
        assert {int(time) for time in times} == {t for t, p in wanted.items() if p == part} - first
    assert result.manifest["counts"]["interactions_before_an_earlier_part"] == 0
    assert result.warnings == ()


def test_files_of_their_own_give_the_same_parts_as_a_column(tmp_path):
    log = parted_log()
    prepare_data(by_column(tmp_path / "raw", log), tmp_path / "column")
    paths = {}
    for part in ("train", "fresh", "valid", "test"):
        rows = log.filter(pa.compute.equal(log.column("split"), part)).drop_columns("split")
        paths[part] = [str(tmp_path / "raw" / f"{part}.csv")]
        pc_csv.write_csv(rows, paths[part][0])
    settings = write(tmp_path / "raw", log, make_items())
    source = {"interactions": paths.pop("train"), **paths}
    settings = with_source(settings, split={"type": "files"}, **source)
    result = prepare_data(settings, tmp_path / "files")
    assert [Path(file["path"]).stem for file in result.manifest["source"]] == [
        *("train", "fresh", "valid", "test"),
        "items",
    ]
    assert contents(tmp_path / "files") == contents(tmp_path / "column")
    with pytest.raises(DataError, match=r"data\.source\.test: the directory .* holds no"):
        (tmp_path / "empty").mkdir()
        prepare_data(with_source(settings, test=[str(tmp_path / "empty")]), tmp_path / "files")


def test_without_a_fresh_part_prompts_come_from_pretrain(tmp_path):
    log = parted_log()
    names = pa.array([name.replace("fresh", "train") for name in log.column("split").to_pylist()])
    log = log.set_column(log.column_names.index("split"), "split", names)
    prepare_data(by_column(tmp_path / "raw", log), tmp_path / "column")
    prepare_data(write(tmp_path / "raw", make_log(), make_items()), tmp_path / "leave-two")
    column, leave_two = (Dataset.open(tmp_path / name) for name in ("column", "leave-two"))
    assert column.prompt_part == "pretrain"
    assert (column.codes == leave_two.codes).all()
    for part in ("pretrain", "valid", "test"):
        assert (column.examples(part).positions == leave_two.examples(part).positions).all()


def test_a_value_that_names_no_part_is_refused_with_its_row(tmp_path):
    log = parted_log()
    for value in ("holdout", "", None):
        with pytest.raises(
            DataError, match=r"log\.parquet, row 6, part=.*names no part of data\.split \(pre"
        ):
            prepare_data(by_column(tmp_path / "raw", without(log, 5, split=value)), tmp_path / "out")
    spelled = log.set_column(
        log.column_names.index("split"),
        "split",
        pa.array([f" {name.upper()}" for name in log.column("split").to_pylist()]),
    )
    split = {"pretrain": ("TRAIN",), "fresh": ("FRESH",), "valid": ("VALID",), "test": ("TEST",)}
    prepare_data(by_column(tmp_path / "spelled", spelled, **split), tmp_path / "out")
    with pytest.raises(DataError, match=r"no column 'split' \(data\.source\.columns\.part\)"):
        prepare_data(by_column(tmp_path / "raw", make_log()), tmp_path / "out")


def test_parts_go_before_time_and_it_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(partition, "BUCKET_ROWS", 40)  # users in several buckets
    log = parted_log()
    users, parts = (log.column(name).to_pylist() for name in ("user_id", "split"))
    late = [
        row for row, part in enumerate(parts) if part == "test" and users[row] in ("u3", "u5", "u7", "u9")
    ]
    for row in late:
        log = without(log, row, timestamp=1)
    result = prepare_data(by_column(tmp_path / "raw", log), tmp_path / "out")
    dataset = Dataset.open(tmp_path / "out")
    for user in ("u3", "u5", "u7", "u9"):
        assert (
            dataset.timestamps[dataset.offsets[dataset.user_ids.index(user) + 1] - 1] == 1
        )  # still the last
    assert result.manifest["counts"]["interactions_before_an_earlier_part"] == 4
    assert f"4 of {log.num_rows} interactions are earlier than one in an earlier part" in result.warnings[0]


def test_a_directory_of_settings_that_are_new_since_is_not_written_again(tmp_path):
    settings, out = write(tmp_path / "raw", make_log(), make_items()), tmp_path / "out"
    prepare_data(settings, out)
    manifest = json.loads((out / "manifest.json").read_text())
    del manifest["settings"]["source"]["columns"]["part"], manifest["settings"]["source"]["valid"]
    (out / "manifest.json").write_text(json.dumps(manifest))
    assert prepare_data(settings, out).reused
    manifest["settings"]["source"]["columns"]["user_id"] = "other"
    (out / "manifest.json").write_text(json.dumps(manifest))
    assert not prepare_data(settings, out).reused


def test_codes_are_described_and_too_few_are_warned_of(tmp_path):
    ids = SemanticIdSettings(level_sizes=(2, 2), vector_dims=8)
    settings = write(tmp_path / "raw", make_log(), make_items(), semantic_ids=ids)
    result = prepare_data(settings, tmp_path / "out")
    shared, last = result.manifest["counts"]["items_with_shared_codes"], result.manifest["level_sizes"][2]
    assert shared > 15
    said, warning = result.lines()
    assert said == (
        f"semantic IDs: {shared} of 30 items share their codes on the levels of 2 x 2 with others; a last "
        f"level of {last} tells them apart"
    )
    assert f"warning: most items ({shared} of 30) share their codes before the last level" in warning
    own = [[i % 5, i // 5] for i in range(ITEMS_COUNT)]
    items = make_items().append_column("codes", pa.array(own, pa.list_(pa.int64())))
    result = prepare_data(write(tmp_path / "raw", make_log(), items), tmp_path / "out")
    assert result.lines() == ["semantic IDs: 30 items, no two with the same codes, levels of 5 x 6 codes"]


def test_users_left_out_and_items_never_trained_on_are_said(tmp_path):
    items = pa.table({"item_id": [f"i{i}" for i in range(31)], "kind": ["k"] * 31})  # nobody has i30
    settings = write(tmp_path / "raw", make_log(), items, min_interactions=6)
    result = prepare_data(settings, tmp_path / "out")
    counts = result.manifest["counts"]
    few, unseen = result.warnings
    assert few.startswith(f"{counts['users_below_min_interactions']} users with ")
    assert few.endswith("were left out: they have fewer than data.min_interactions 6")
    assert unseen.startswith(
        f"{counts['items_without_pretrain_interactions']} of 31 items have no interaction"
    )


def test_code_sizes_follow_the_catalogue(tmp_path):
    settings = write(
        tmp_path / "raw", make_log(), make_items(), semantic_ids=SemanticIdSettings(vector_dims=8)
    )
    prepare_data(settings, tmp_path / "out")
    assert Dataset.open(tmp_path / "out").level_sizes[:2] == (16, 32)  # 31 items
