"""What counts as an event once all rows of a user stand together."""

import zlib

import numpy as np
import pyarrow as pa
import pytest

from sluice.catalog.data import partition
from sluice.catalog.data.cleaning import LogCleaner, Rejections
from sluice.catalog.data.partition import EventRules, ItemIndex, UserBuckets
from sluice.catalog.data.schema import EXPOSED_INTERACTIONS, IMPRESSIONS
from sluice.catalog.data.sources import RawBatch
from sluice.catalog.errors import DataError

ITEMS = [f"i{number}" for number in range(10)]


def sort(directory, rows, columns=("user_id", "item_id", "timestamp", "click"), has_times=True, **rules):
    """The one bucket of a log, its items numbered as in `ITEMS`."""
    index, rejections = ItemIndex(ITEMS), Rejections("interactions")
    values = {name: pa.array(column) for name, column in zip(columns, zip(*rows, strict=True), strict=True)}
    batch = RawBatch(file="f", columns=values, rows=np.arange(1, len(rows) + 1))
    cleaned, numbers = LogCleaner(rejections, index.contains, now_s=10**6).clean_rows(batch)
    buckets = UserBuckets(directory, 10)
    buckets.add(cleaned, index, "f", numbers)
    buckets.close()
    given = {"min_interactions": 1, "unclicked_are_impressions": True, "has_times": has_times} | rules
    (bucket,) = buckets.read_sorted(index.order_rows()[1], EventRules(**given))
    assert bucket.interactions.schema == EXPOSED_INTERACTIONS and bucket.impressions.schema == IMPRESSIONS
    return bucket


def listed(bucket, table="interactions"):
    """(user id, item, timestamp) of every row."""
    names = ("user", "item", "timestamp")
    columns = [getattr(bucket, table).column(name).to_pylist() for name in names]
    return [(bucket.user_ids[user], item, time) for user, item, time in zip(*columns, strict=True)]


def test_an_event_that_was_logged_twice_counts_once(tmp_path):
    rows = [
        ("u", "i1", 5, True),
        ("u", "i2", 5, True),
        ("u", "i1", 5, None),  # again, and not next to the first
        ("u", "i1", 6, True),  # later: another event
        ("v", "i1", 5, True),
        ("u", "i1", 5, True),
    ]
    bucket = sort(tmp_path, rows)
    assert sorted(listed(bucket)) == [("u", 1, 5), ("u", 1, 6), ("u", 2, 5), ("v", 1, 5)]
    assert bucket.noted["repeated_events"] == 2
    assert bucket.interactions.column("click").null_count == 0  # the first of them stays


def test_min_interactions_counts_events_and_not_rows(tmp_path):
    rows = (
        [("u", "i1", 5, True)] * 9 + [("u", "i2", 6, False)] * 2 + [("v", f"i{k}", k, True) for k in range(3)]
    )
    bucket = sort(tmp_path, rows, min_interactions=3)
    assert (bucket.user_ids, bucket.dropped_users, bucket.dropped_rows) == (["v"], 1, 1)
    assert bucket.noted["impressions_below_min_interactions"] == 1 and bucket.noted["impressions"] == 0
    assert listed(bucket) == [("v", 0, 0), ("v", 1, 1), ("v", 2, 2)]


def test_what_was_shown_without_a_click_is_set_apart(tmp_path):
    rows = [
        ("u", "i1", 5, True),
        ("u", "i2", 5, False),
        ("u", "i3", 4, False),
        ("u", "i3", 4, False),  # logged twice
        ("u", "i1", 5, False),  # and clicked at once
        ("u", "i4", 6, None),  # nothing is said: it took place
        ("w", "i5", 6, False),  # a user without an event
    ]
    bucket = sort(tmp_path, rows)
    assert listed(bucket) == [("u", 1, 5), ("u", 4, 6)]
    assert listed(bucket, "impressions") == [("u", 3, 4), ("u", 2, 5)]
    noted = {name: count for name, count in bucket.noted.items() if count}
    assert noted == {"impressions": 2, "repeated_impressions": 2, "impressions_below_min_interactions": 1}
    assert (bucket.dropped_users, bucket.dropped_rows) == (0, 0)
    kept = sort(tmp_path, rows, unclicked_are_impressions=False)
    assert len(kept.interactions) == 5 and len(kept.impressions) == 0


def test_ties_in_time_are_counted_per_user(tmp_path):
    rows = [("u", f"i{k}", time, True) for k, time in enumerate([5, 5, 5, 6])] + [("v", "i1", 6, True)]
    assert sort(tmp_path, rows).noted["ties_in_time"] == 2
    assert sort(tmp_path, rows, has_times=False).noted["ties_in_time"] == 0


def test_rows_with_histories_become_sequences(tmp_path):
    columns = ("user_id", "item_id", "timestamp", "history", "rating")
    rows = [
        ("u", "i3", 7, ["i1", "i2"], 3.0),
        ("v", "i1", 6, [], 1.0),
        ("u", "i4", 8, ["i1", "i2", "i3"], 4.0),
        ("u", "i2", 9, ["i9"], 5.0),
        ("u", "i3", 9, ["i1", "i2"], 5.0),  # known, and at another time
    ]
    bucket = sort(tmp_path, rows, columns)
    assert [row for row in listed(bucket) if row[0] == "u"] == [
        ("u", 1, 7),
        ("u", 2, 7),
        ("u", 3, 7),
        ("u", 4, 8),
    ]
    ratings = dict(zip(listed(bucket), bucket.interactions.column("rating").to_pylist(), strict=True))
    assert ratings == {("u", 1, 7): None, ("u", 2, 7): None, ("u", 3, 7): 3, ("u", 4, 8): 4, ("v", 1, 6): 1}
    assert bucket.noted["events_from_histories"] == 2 and bucket.noted["ties_in_time"] == 0
    assert [(bad.file, bad.row, bad.column, bad.value) for bad in bucket.refused] == [
        ("f", 4, "history", "1 items"),
        ("f", 5, "history", "2 items"),
    ]
    assert "does not fit what the user's rows before say" in bucket.refused[0].reason


def test_a_repeated_item_in_a_history_stays(tmp_path):
    columns = ("user_id", "item_id", "timestamp", "history")
    bucket = sort(tmp_path, [("u", "i2", 7, ["i1", "i1", "i1"])], columns)
    assert listed(bucket) == [("u", 1, 7)] * 3 + [("u", 2, 7)]


def test_without_times_no_event_is_later_than_the_next(tmp_path):
    columns = ("user_id", "item_id", "history")
    rows = [("u", "i3", ["i1", "i2"]), ("v", "i5", []), ("u", "i2", ["i1"]), ("u", "i4", ["i2", "i3"])]
    bucket = sort(tmp_path, rows, columns, has_times=False)
    assert [row for row in listed(bucket) if row[0] == "u"] == [
        ("u", 1, 0),
        ("u", 2, 0),
        ("u", 3, 0),
        ("u", 4, 3),
    ]


@pytest.mark.parametrize("users", [1, 40])
def test_users_do_not_depend_on_the_number_of_buckets(tmp_path, monkeypatch, users):
    rows = [(f"u{user}", f"i{step}", step, step % 2 == 0) for user in range(users) for step in range(4)]
    whole = sort(tmp_path, rows)
    monkeypatch.setattr(partition, "BUCKET_ROWS", 1)
    index, cleaner = ItemIndex(ITEMS), LogCleaner(Rejections("interactions"), None)
    values = {
        name: pa.array(column)
        for name, column in zip(
            ("user_id", "item_id", "timestamp", "click"), zip(*rows, strict=True), strict=True
        )
    }
    batch = RawBatch(file="f", columns=values, rows=np.arange(1, len(rows) + 1))
    buckets = UserBuckets(tmp_path, 7)
    cleaned, numbers = cleaner.clean_rows(batch)
    buckets.add(cleaned, index, "f", numbers)
    buckets.close()
    rules = EventRules(min_interactions=1, unclicked_are_impressions=True, has_times=True)
    parts = list(buckets.read_sorted(index.order_rows()[1], rules))
    assert len(parts) == 7
    for number, part in enumerate(parts):  # a seventh of the hashes each
        assert all(zlib.crc32(user.encode()) * 7 >> 32 == number for user in part.user_ids)
    assert [user for part in parts for user in part.user_ids] == whole.user_ids
    assert pa.concat_tables([part.interactions for part in parts]).equals(whole.interactions)
    assert pa.concat_tables([part.impressions for part in parts]).equals(whole.impressions)


def test_users_stand_in_order_of_hash_and_id_and_rows_of_one_time_in_that_of_the_log(tmp_path):
    # zlib.crc32 of "plumless" and "buckeroo" is the same.
    users = ["plumless", "buckeroo", "ü", "a\0b", "a", "z" * 50]
    rows = [(user, f"i{step}", 5 - step // 2, True) for step in range(5) for user in users]
    bucket = sort(tmp_path, rows)
    order = sorted(users, key=lambda user: (zlib.crc32(user.encode()), user))
    assert bucket.user_ids == order and order.index("buckeroo") + 1 == order.index("plumless")
    assert listed(bucket) == [(user, item, 5 - item // 2) for user in order for item in (4, 2, 3, 0, 1)]


def test_a_directory_may_have_any_name_and_keeps_nothing(tmp_path):
    directory = tmp_path / "it's [1]*?"
    directory.mkdir()
    assert listed(sort(directory, [("u", "i1", 5, True)])) == [("u", 1, 5)]
    assert list(directory.iterdir()) == []


def test_what_does_not_fit_into_memory_is_sorted_on_disk(tmp_path, monkeypatch):
    rows = [(f"user-{k % 977:030d}", f"i{k % 10}", k % 7919, True) for k in range(200_000)]
    whole = sort(tmp_path, rows)
    monkeypatch.setattr(partition, "SORT_MEMORY", "40MB")
    seen = list[int]()
    read = partition._with_nulls
    spill = tmp_path / "rows.spill"
    monkeypatch.setattr(
        partition, "_with_nulls", lambda batch: (seen.append(len(list(spill.glob("*")))), read(batch))[1]
    )
    assert sort(tmp_path, rows).interactions.equals(whole.interactions)
    assert max(seen) > 0 and not spill.exists()


def test_a_sort_that_cannot_go_on_says_where(tmp_path, monkeypatch):
    monkeypatch.setattr(partition, "SORT_MEMORY", "1MB")
    with pytest.raises(DataError, match=rf"cannot be sorted in {tmp_path}: "):
        sort(tmp_path, [(f"user-{k}", "i1", k, True) for k in range(100_000)])
