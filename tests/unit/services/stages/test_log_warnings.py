"""Logs as users have them, from the file to the prepared directory, and what is said of them."""

import csv
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sluice.catalog.data.dataset import Dataset
from sluice.catalog.data.schema import IMPRESSIONS
from sluice.catalog.data.settings import DataSettings, InteractionColumns, SemanticIdSettings, TableSource
from sluice.catalog.errors import DataError
from sluice.services.stages.log_warnings import list_log_warnings
from sluice.services.stages.prepare import prepare_data

HEAD = ("user_id", "item_id", "timestamp")


def events(users=12, length=6, items=15):
    draw = np.random.default_rng(0)
    return [
        (f"u{user}", f"i{item}", 1_700_000_000 + 1000 * user + 60 * place)
        for user in range(users)
        for place, item in enumerate(draw.permutation(items)[:length])
    ]


def written(path, rows, head=HEAD):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([head, *rows])
    return path


def prepare(directory, *paths, columns=None, given=None, **settings):
    source = TableSource(
        interactions=tuple(map(str, paths)), columns=InteractionColumns(**(columns or {})), **(given or {})
    )
    ids = SemanticIdSettings(level_sizes=(16, 16), vector_dims=4, iterations=3)
    prepared = prepare_data(DataSettings(source=source, semantic_ids=ids, **settings), directory / "out")
    said = tuple(list_log_warnings(prepared.manifest))
    assert set(said) <= set(prepared.warnings)
    return Dataset.open(prepared.directory), said


def sequences(dataset):
    return {
        user: [dataset.item_ids[item] for item in dataset.items_of(row)]
        for row, user in enumerate(dataset.user_ids)
    }


def truth(rows):
    return {user: [item for other, item, *_ in rows if other == user] for user, *_ in rows}


def test_hidden_files_are_no_data(tmp_path):
    for folder in ("log", "log/.ipynb_checkpoints", "log/_temporary"):
        written(tmp_path / folder / "clicks.csv", events())
    dataset, warnings = prepare(tmp_path, tmp_path / "log")
    assert sequences(dataset) == truth(events())
    (warning,) = warnings
    assert warning.startswith("files were not read, since their names begin with . or _")
    assert "log/.ipynb_checkpoints/clicks.csv" in warning and "log/_temporary/clicks.csv" in warning


@pytest.mark.parametrize("exclude_seen", [True, False])
def test_repeated_events_are_left_out(tmp_path, exclude_seen):
    log = written(tmp_path / "log.csv", [row for row in events() for _ in (0, 1)])
    dataset, warnings = prepare(tmp_path, log, exclude_seen=exclude_seen)
    assert sequences(dataset) == truth(events())
    assert [warning.partition(":")[0] for warning in warnings] == ["72 rows were left out"]


def test_a_log_of_one_event_is_refused(tmp_path):
    log = written(tmp_path / "log.csv", [("u", "i", 1_700_000_000)] * 20)
    with pytest.raises(
        DataError, match=r"\(1 users with 1 interactions have fewer, 19 rows repeat an event\)"
    ):
        prepare(tmp_path, log)


def test_rows_without_a_click_are_neither_targets_nor_history(tmp_path):
    rows = [(*row, int(place % 3 == 0)) for place, row in enumerate(events(length=12))]
    log = written(tmp_path / "log.csv", rows, (*HEAD, "click"))
    dataset, warnings = prepare(tmp_path, log, columns={"click": "click"})
    assert sequences(dataset) == truth([row for row in rows if row[3]])
    assert [warning.partition(":")[0] for warning in warnings] == ["96 rows have no click"]
    assert pq.read_schema(tmp_path / "out" / "impressions.parquet").equals(IMPRESSIONS)
    assert "impressions.parquet" in json.loads((tmp_path / "out" / "manifest.json").read_text())["files"]
    known = dataset.impressions("test")
    shown = sorted(
        (dataset.user_ids[user], dataset.item_ids[item])
        for user, item in zip(known.users, known.items, strict=True)
    )
    assert shown == sorted(row[:2] for row in rows if not row[3])
    # Two of four clicks, and what was shown before the third.
    assert len(dataset.impressions("pretrain")) == 12 * 4
    assert prepare(tmp_path, log, columns={"click": "click"})[1] == warnings, "said again when it is reused"


def test_rows_without_a_click_may_be_interactions(tmp_path):
    rows = [(*row, place % 2) for place, row in enumerate(events())]
    log = written(tmp_path / "log.csv", rows, (*HEAD, "click"))
    given = {"columns": {"click": "click"}, "given": {"unclicked": "interaction"}}
    dataset, warnings = prepare(tmp_path, log, **given)
    assert sequences(dataset) == truth(rows) and warnings == ()
    assert not (tmp_path / "out" / "impressions.parquet").exists() and set(dataset.clicks) == {0, 1}
    assert prepare(tmp_path, log, **given, reward="click")[0].reward_column == "click"
    with pytest.raises(
        DataError, match=r"every reward would be 1: set data\.source\.unclicked to interaction"
    ):
        prepare(tmp_path, log, columns={"click": "click"}, reward="click", min_interactions=3)


def test_a_log_without_a_click_is_refused(tmp_path):
    log = written(tmp_path / "log.csv", [(*row, 0) for row in events()], (*HEAD, "click"))
    with pytest.raises(DataError, match=r"0 interactions have fewer, 72 rows have no click"):
        prepare(tmp_path, log, columns={"click": "click"})


def test_rows_that_say_nothing_of_clicks_are_told(tmp_path):
    rows = [(*row, 1 if place % 3 else "") for place, row in enumerate(events())]
    log = written(tmp_path / "log.csv", rows, (*HEAD, "click"))
    dataset, warnings = prepare(tmp_path, log, columns={"click": "click"})
    assert sequences(dataset) == truth(rows)
    (warning,) = warnings
    assert warning.startswith(
        "24 rows do not say whether there was a click, and count as interactions: write 0"
    )


def test_mixed_units_and_the_future_are_refused_and_the_unit_is_recorded(tmp_path):
    rows = [
        (user, item, time * 1000 if place % 6 < 3 else time)
        for place, (user, item, time) in enumerate(events())
    ]
    with pytest.raises(
        DataError, match=r"row 4, timestamp='1700000180': is in seconds, and the rows before it"
    ):
        prepare(tmp_path, written(tmp_path / "log.csv", rows))
    rows = [*events(), ("u0", "i1", 4_000_000_000)]
    with pytest.raises(
        DataError, match=r"row 73, timestamp='4000000000': is in the future.*timestamp_unit to none"
    ):
        prepare(tmp_path, written(tmp_path / "log.csv", rows))
    dataset, _ = prepare(tmp_path, written(tmp_path / "log.csv", rows), given={"timestamp_unit": "none"})
    assert dataset.manifest["log"]["time_unit"] is None and dataset.timestamps.max() == 4_000_000_000
    milli = [(user, item, time * 1000) for user, item, time in events()]
    dataset, warnings = prepare(tmp_path, written(tmp_path / "log.csv", milli))
    assert dataset.manifest["log"]["time_unit"] == "ms" and warnings == ()


def test_ties_early_times_and_spaces_are_told(tmp_path):
    rows = [(user + " " * (place % 4 == 0), item, time) for place, (user, item, time) in enumerate(events())]
    rows = [
        (user, item, 0 if place % 6 == 0 else time // 120 * 120)
        for place, (user, item, time) in enumerate(rows)
    ]
    dataset, warnings = prepare(tmp_path, written(tmp_path / "log.csv", rows))
    assert sequences(dataset) == truth(events())
    times = [time for _, _, time in rows]
    ties = sum(times[place] == times[place - 1] for place in range(1, 72) if place % 6)
    assert [int(warning.split()[0]) for warning in warnings] == [18, 12, ties]
    assert "spaces were taken off" in warnings[0] and "before 1990" in warnings[1]


@pytest.mark.parametrize("longest", [2, 50])
@pytest.mark.parametrize("timed", [True, False])
def test_rows_with_histories_give_the_events_once(tmp_path, longest, timed):
    rows = []
    for user, items in truth(events()).items():
        times = [time for other, _, time in events() if other == user]
        rows += [
            (user, str(items[max(0, place - longest) : place]), items[place], *times[place : place + timed])
            for place in range(1, len(items))
        ]
    log = written(
        tmp_path / "log.csv", rows, ("user_id", "history_item_id", "item_id", *["timestamp"] * timed)
    )
    columns = {"history": "history_item_id", "timestamp": "timestamp" if timed else None}
    if not timed:  # then the order of the rows is of no account
        written(log, rows[::-1], ("user_id", "history_item_id", "item_id"))
    dataset, warnings = prepare(tmp_path, log, columns=columns)
    assert sequences(dataset) == truth(events())
    assert [warning.split(":")[0] for warning in warnings] == ["12 events stand in histories alone"]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_histories_that_nobody_named_are_told(tmp_path, suffix):
    """As MiniOneRec's files have them, beside lists of other things and titles in brackets."""
    rows = [
        {
            "user_id": user,
            "history_item_id": items[:place],
            "item_id": items[place],
            "kinds": ["soap", "hair"],
            "title": "[new] shampoo",
            "parent": items[place],
        }
        for user, items in truth(events()).items()
        for place in range(1, len(items))
    ]
    log = tmp_path / f"log.{suffix}"
    if suffix == "csv":
        written(log, [list(row.values()) for row in rows], list(rows[0]))
    else:
        pq.write_table(pa.Table.from_pylist(rows), log)
    _, warnings = prepare(tmp_path, log, columns={"timestamp": None})
    assert warnings == (
        "the column 'history_item_id' holds lists of items and is not read: if they are what the user had "
        "before, set data.source.columns.history to history_item_id",
    )
    _, warnings = prepare(tmp_path, log, columns={"timestamp": None, "history": "history_item_id"})
    assert not any("is not read" in warning for warning in warnings)


def test_a_history_that_contradicts_is_a_bad_row(tmp_path):
    rows = [("u", "[a, b]", "c"), ("u", "[a, b, c]", "d"), ("u", "[x]", "y"), ("v", "[a, b, c, d]", "e")]
    log = written(tmp_path / "log.csv", rows, ("user_id", "history", "item_id"))
    columns = {"history": "history", "timestamp": None}
    with pytest.raises(
        DataError, match=r"log\.csv, row 3, history='1 items': does not fit what the user's rows"
    ):
        prepare(tmp_path, log, columns=columns)
    dataset, _ = prepare(tmp_path, log, columns=columns, max_bad_share=0.25)
    assert sequences(dataset) == {"u": list("abcd"), "v": list("abcde")}
    (bad,) = (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()
    assert json.loads(bad)["row"] == 3


def test_numbered_files_are_read_in_their_order(tmp_path):
    rows = [row[:2] for row in events()]
    for number, part in ((1, (0, 1)), (2, (2, 3)), (10, (4, 5))):
        piece = [row for place, row in enumerate(rows) if place % 6 in part]
        written(tmp_path / "log" / f"part-{number}.csv", piece, HEAD[:2])
    dataset, warnings = prepare(tmp_path, tmp_path / "log", columns={"timestamp": None})
    assert sequences(dataset) == truth(rows) and warnings == ()


def test_what_an_earlier_version_prepared_is_told_without_complaint():
    assert list_log_warnings({"counts": {"interactions": 3}}) == []


def test_a_directory_of_an_earlier_version_is_not_prepared_again(tmp_path):
    log = written(tmp_path / "log.csv", events())
    prepare(tmp_path, log)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    for name in ("unclicked", "timestamp_unit"):
        del manifest["settings"]["source"][name]
    del manifest["settings"]["source"]["columns"]["history"], manifest["log"]
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(manifest))
    prepare(tmp_path, log)
    assert "log" not in json.loads((tmp_path / "out" / "manifest.json").read_text()), "reused"
    prepare(tmp_path, log, given={"timestamp_unit": "s"})
    assert "log" in json.loads((tmp_path / "out" / "manifest.json").read_text())


def test_histories_per_row_in_files_of_their_own(tmp_path):
    # As MiniOneRec has them: the history of a row of the test file holds the targets of the other files.
    head = ("user_id", "item_id", "timestamp", "history")
    rows = [
        (user, item, time, "[" + ", ".join(f"'{name}'" for _, name, _ in known) + "]")
        for start in range(0, 72, 6)
        for known in [events()[start : start + 6]]
        for (user, item, time), known in [(known[place], known[:place]) for place in range(1, 6)]
    ]
    files = {"train": rows[0::5] + rows[1::5] + rows[2::5], "valid": rows[3::5], "test": rows[4::5]}
    paths = {name: written(tmp_path / f"{name}.csv", kept, head) for name, kept in files.items()}
    dataset, (noted,) = prepare(
        tmp_path,
        paths["train"],
        columns={"history": "history"},
        given={name: (str(paths[name]),) for name in ("valid", "test")},
        split={"type": "files"},
    )
    assert noted.startswith("12 events stand in histories alone")  # the first of each user
    assert sequences(dataset) == truth(events())
    assert dataset._labels.tolist() == [0, 0, 0, 0, 2, 3] * 12
    assert [len(dataset.examples(part)) for part in ("pretrain", "valid", "test")] == [36, 12, 12]


def test_impressions_of_a_log_that_names_parts_stay_in_their_part(tmp_path):
    """Also for a user of whom nothing else is known in that part or later."""
    files = {}
    for name, places in {"interactions": (0, 1, 2, 3), "valid": (4,), "test": (5,)}.items():
        rows = [(*row, 1) for place, row in enumerate(events()) if place % 6 in places]
        rows += [(user, f"shown-{name}", time, 0) for user, _, time, _ in rows]
        rows = [row for row in rows if row[0] != "u0" or name == "interactions" or row[3] == 0]
        rows += [("u0", f"shown-{name}", 1_700_000_000, 0)]
        files[name] = written(tmp_path / f"{name}.csv", rows, (*HEAD, "click"))
    dataset, _ = prepare(
        tmp_path,
        files.pop("interactions"),
        columns={"click": "click"},
        given={name: (str(path),) for name, path in files.items()},
        split={"type": "files"},
    )
    shown = {
        part: {dataset.item_ids[item].removeprefix("shown-") for item in dataset.impressions(part).items}
        for part in ("pretrain", "valid", "test")
    }
    assert shown == {
        "pretrain": {"interactions"},
        "valid": {"interactions", "valid"},
        "test": {"interactions", "valid", "test"},
    }
