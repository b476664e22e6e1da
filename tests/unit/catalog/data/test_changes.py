"""Changes of a run's catalogue: what is refused, which codes a new item gets, and that every reader sees the
same.
"""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sluice.catalog.data import changes
from sluice.catalog.data.changes import CATALOGUE_CHANGE, ChangingCatalogue, read_item_rows
from sluice.catalog.errors import DataError
from sluice.catalog.tokens import TokenLayout
from sluice.catalog.trie.vocabulary import Vocabulary

CODES = np.array([[0, 0, 0], [0, 0, 1], [0, 0, 3], [1, 2, 0]])
IDS = ["a", "b", "c", "d"]
START = Vocabulary.of(CODES, TokenLayout.fresh((2, 3, 4)))


def opened(directory) -> ChangingCatalogue:
    return ChangingCatalogue(lambda: IDS, START, directory / "catalogue")


def rows(tmp_path, text: str, *, codes: bool):
    path = tmp_path / "rows.csv"
    path.write_text(text)
    return read_item_rows(path, codes=codes)


def pushed(directory, add: str = "", retire: str = "") -> Vocabulary:
    return opened(directory).push(
        rows(directory, "item_id,codes\n" + add, codes=True) if add else [],
        rows(directory, "item_id\n" + retire, codes=False) if retire else [],
    )


def codes_of(vocabulary: Vocabulary) -> list[list[int]]:
    return (vocabulary.item_tokens - np.asarray(START.layout.level_offsets)).tolist()


def test_every_reader_comes_to_the_catalogue_that_was_pushed(tmp_path):
    follower = opened(tmp_path)
    assert list(follower.follow()) == []
    first = pushed(tmp_path, add="e,1 0 2\n", retire="b\n")
    second = pushed(tmp_path, add="f,1 0 1\n", retire="e\nc\n")
    seen = list(follower.follow())
    assert [one.version for one in seen] == [1, 2] == [first.version, second.version]
    for ours, theirs in zip(seen, (first, second), strict=True):
        assert np.array_equal(ours.item_tokens, theirs.item_tokens)
        assert ours.retired.tolist() == theirs.retired.tolist()
    assert codes_of(seen[1]) == [*CODES.tolist(), [1, 0, 2], [1, 0, 1]]
    assert (seen[0].retired.tolist(), seen[1].retired.tolist()) == ([1], [1, 2, 4])
    assert list(follower.follow()) == []
    assert [one.version for one in opened(tmp_path).follow()] == [1, 2]  # whoever comes later


def test_a_missing_last_code_is_the_lowest_free_one(tmp_path):
    version = pushed(tmp_path, add="e,0 0\nf,1|2\ng,1;2\nh,1 1\ni,1 2\n")
    assert codes_of(version)[4:] == [[0, 0, 2], [1, 2, 1], [1, 2, 2], [1, 1, 0], [1, 2, 3]]


def test_codes_run_out(tmp_path):
    with pytest.raises(
        DataError, match=r"row 2, item 'f': all 4 items that codes \[0, 0\] can have are taken"
    ):
        pushed(tmp_path, add="e,0 0\nf,0 0\n")
    pushed(tmp_path, add="e,0 0\n", retire="a\n")
    with pytest.raises(DataError, match="all 4 items"):  # a retired item keeps its codes
        pushed(tmp_path, add="f,0 0\n")


@pytest.mark.parametrize(
    "add, retire, message",
    [
        ("e,0 0 1\n", "", r"rows.csv, row 1, item 'e': codes \[0, 0, 1\] belong to another item"),
        ("e,1 1 1\nf,1 1 1\n", "", r"row 2, item 'f': codes \[1, 1, 1\] belong to another item"),
        ("a,1 1 1\n", "", "row 1, item 'a': the catalogue has this item already"),
        ("e,0 3 1\n", "", r"code 3 of level 2 is none of the policy's 0\.\.2"),
        ("e,1\n", "", "has 1 codes; the catalogue has 3 levels, of which the last may be left out"),
        ("e,0 0.5 1\n", "", "codes must be whole numbers, one per level"),
        ("e,\n", "", "codes must be whole numbers, one per level, got None"),
        ("e,0 x 1\n", "", "codes must be whole numbers"),
        ("e,0 nan 1\n", "", "codes must be whole numbers"),
        ("e,0 inf 1\n", "", "codes must be whole numbers"),
        ("e,0 0 2\nf,1 1 1,9\n", "", r"rows.csv, row 2: has a wrong number of fields"),
        (" ,0 0 2\n", "", "row 1, item ' ': item_id is empty"),
        ("e,1 1\ne,1 0\n", "", "row 2, item 'e': item_id stands in an earlier row"),
        ("", "z\n", "row 1, item 'z': can't be retired, the catalogue has no such item"),
        ("", "a\nb\nc\nd\n", "the catalogue holds no item"),
        ("", "", "nothing to push"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_written(tmp_path, add, retire, message):
    with pytest.raises(DataError, match=message):
        pushed(tmp_path, add, retire)
    assert list(tmp_path.glob("catalogue/*")) == []


def test_an_item_is_retired_once(tmp_path):
    pushed(tmp_path, retire="b\n")
    with pytest.raises(DataError, match="row 1, item 'b': is retired already"):
        pushed(tmp_path, retire="b\n")


def test_two_who_push_at_once_do_not_overwrite_each_other(tmp_path, monkeypatch):
    late, write = opened(tmp_path), changes._write_new

    def after_somebody_else(table, path):
        monkeypatch.setattr(changes, "_write_new", write)
        pushed(tmp_path, retire="b\n")
        write(table, path)

    monkeypatch.setattr(changes, "_write_new", after_somebody_else)
    retired = rows(tmp_path, "item_id\nc\n", codes=False)
    with pytest.raises(DataError, match="has just been written by somebody else: push again"):
        late.push([], retired)
    (version,) = opened(tmp_path).follow()
    assert version.retired.tolist() == [1]


def test_files_that_cannot_be_read_say_so(tmp_path):
    with pytest.raises(DataError, match="there is no file"):
        read_item_rows(tmp_path / "none.csv", codes=True)
    with pytest.raises(DataError, match="has no column 'codes'; it has item_id"):
        rows(tmp_path, "item_id\ne\n", codes=True)
    (tmp_path / "rows.txt").write_text("item_id\ne\n")
    with pytest.raises(DataError, match="none of the suffixes"):
        read_item_rows(tmp_path / "rows.txt", codes=False)
    (tmp_path / "broken.parquet").write_text("item_id\ne\n")
    with pytest.raises(DataError, match="cannot be read"):
        read_item_rows(tmp_path / "broken.parquet", codes=False)


def test_parquet_with_lists_is_read_as_text_is(tmp_path):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"item_id": [7, 8], "codes": [[1, 1, 1], [1, 0]]}), path)
    found = read_item_rows(path, codes=True)
    assert [(row.item_id, row.codes) for row in found] == [("7", (1, 1, 1)), ("8", (1, 0))]


def test_a_foreign_file_in_the_directory_is_named(tmp_path):
    place = tmp_path / "catalogue"
    place.mkdir()
    pq.write_table(pa.table([["q"], [None]], schema=CATALOGUE_CHANGE), place / "00001.parquet")
    with pytest.raises(DataError, match=r"00001\.parquet is no change of this run's catalogue"):
        list(opened(tmp_path).follow())
