"""What is said of a log before it is prepared: every file, its columns, its first rows."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sluice.catalog.data.settings import CatalogueColumns, DataSettings, TableSource
from sluice.services.preflight import logs
from sluice.services.preflight.logs import read_log

ROWS = {"user_id": ["u", "u", "v"], "item_id": ["a", "b", "a"], "timestamp": [1, 2, 3]}


def table(path: Path, **changes) -> str:
    rows = {name: values for name, values in (ROWS | changes).items() if values is not None}
    pq.write_table(pa.table(rows), path)
    return str(path)


def settings(*files: str, catalogue: str | None = None, codes: str | None = None, **more) -> DataSettings:
    columns = CatalogueColumns(codes=codes)
    source = TableSource(interactions=files, catalogue=catalogue, catalogue_columns=columns)
    return DataSettings(source=source, **more)


def told(facts) -> list[tuple[str, str]]:
    return [(finding.field, finding.value) for finding in facts.findings]


def test_a_good_log_is_counted(tmp_path):
    facts = read_log(settings(table(tmp_path / "a.parquet")))
    assert (facts.findings, facts.items, facts.has_codes) == ((), 2, False)
    assert facts.size_bytes == (tmp_path / "a.parquet").stat().st_size


def test_every_missing_file_is_told(tmp_path):
    good = table(tmp_path / "a.parquet")
    missing = [str(tmp_path / name) for name in ("b.parquet", "c.csv", "d.xlsx")]
    (tmp_path / "d.xlsx").write_text("")
    facts = read_log(settings(good, *missing, catalogue=str(tmp_path / "items.csv")))
    assert told(facts) == [
        ("data.source.interactions", f"there is no file {missing[0]}"),
        ("data.source.interactions", f"there is no file {missing[1]}"),
        ("data.source.interactions", told(facts)[2][1]),
        ("data.source.catalogue", f"there is no file {tmp_path / 'items.csv'}"),
    ]
    assert "has none of the suffixes that can be read" in told(facts)[2][1]
    assert all(finding.exit_code == 2 and finding.remedy for finding in facts.findings)


def test_every_file_with_a_wrong_column_is_told(tmp_path):
    good = table(tmp_path / "a.parquet")
    names = table(tmp_path / "b.parquet", item_id=None, sku=["a", "b", "a"])
    nested = table(tmp_path / "c.parquet", user_id=[["u"], ["u"], ["v"]])
    damaged = tmp_path / "d.parquet"
    damaged.write_bytes(b"PAR1 and no more")
    items = tmp_path / "items.csv"
    items.write_text("sku\na\n")
    values = told(read_log(settings(good, names, nested, str(damaged), catalogue=str(items))))
    assert [field for field, _ in values] == ["data.source.columns"] * 3 + ["data.source.catalogue_columns"]
    for (_, value), part in zip(
        values,
        ("no column 'item_id'", "list<", "cannot be read as Parquet", "no column 'item_id'"),
        strict=True,
    ):
        assert part in value


@pytest.mark.parametrize(
    ("share", "is_refused"), [(0.0, True), (0.3, True), (1 / 3, False)], ids=["none", "few", "enough"]
)
def test_more_unusable_rows_than_there_may_be_are_told_with_the_first_ones(tmp_path, share, is_refused):
    log = table(tmp_path / "a.parquet", timestamp=["1", "soon", "3"])
    facts = read_log(settings(log, max_bad_share=share))
    assert bool(facts.findings) == is_refused
    if is_refused:
        ((field, value),) = told(facts)
        assert field == "data.source"
        assert value.startswith("1 of the first 3 rows cannot be used (a.parquet row 2: timestamp='soon'")


def test_rows_of_items_that_the_catalogue_lacks_are_unusable(tmp_path):
    log = table(tmp_path / "a.parquet")
    items = tmp_path / "items.csv"
    items.write_text('item_id,codes\nb,"1 2"\nc,"1 3"\nd,"2 2"\n')
    facts = read_log(settings(log, catalogue=str(items), codes="codes"))
    assert "2 of the first 3 rows" in told(facts)[0][1] and "is not in the catalogue" in told(facts)[0][1]
    assert (facts.items, facts.has_codes) == (3, True)


def test_codes_that_are_none_are_told(tmp_path):
    log = table(tmp_path / "a.parquet")
    items = tmp_path / "items.csv"
    items.write_text("item_id,codes\na,x\nb,1 2\n")
    ((field, value),) = told(read_log(settings(log, catalogue=str(items), codes="codes")))
    assert field == "data.source" and "column codes of the catalogue" in value and "\n" not in value


def test_an_empty_log_is_told(tmp_path):
    log = tmp_path / "a.csv"
    log.write_text("user_id,item_id,timestamp\n")
    assert told(read_log(settings(str(log)))) == [("data.source", "the log holds no row")]


def test_of_a_log_that_was_not_read_to_its_end_the_items_are_unknown(tmp_path):
    files = [table(tmp_path / f"{name}.parquet") for name in "ab"]
    seconds = iter([0.0, 0.0, 0.0, 3.0, 3.0])
    facts = read_log(settings(*files), budget_s=2.0, clock=lambda: next(seconds))
    assert (facts.findings, facts.items) == ((), None)


def test_a_large_catalogue_is_left_to_prepare(tmp_path, monkeypatch):
    log = table(tmp_path / "a.parquet")
    items = tmp_path / "items.parquet"
    pq.write_table(pa.table({"item_id": ["b", "c"]}), items)
    monkeypatch.setattr(logs, "_CATALOGUE_ROWS", 1)
    facts = read_log(settings(log, catalogue=str(items)))
    assert (facts.findings, facts.items) == ((), None)


def test_a_row_of_no_part_is_told_before_the_log_is_prepared(tmp_path):
    log = table(tmp_path / "a.parquet", split=["train", "holdout", "test"])
    source = {"type": "table", "interactions": [log], "columns": {"part": "split"}}
    given = DataSettings.model_validate({"source": source, "split": {"type": "column"}})
    ((_, value),) = told(read_log(given))
    assert "a.parquet row 2: part='holdout' names no part of data.split" in value


def test_every_missing_file_of_a_part_is_told(tmp_path):
    good, missing = table(tmp_path / "a.parquet"), str(tmp_path / "v.parquet")
    source = {"type": "table", "interactions": [good], "valid": [missing], "test": [good]}
    given = DataSettings.model_validate({"source": source, "split": {"type": "files"}})
    assert told(read_log(given)) == [("data.source.valid", f"there is no file {missing}")]


def test_times_are_judged_in_the_unit_that_the_settings_give(tmp_path):
    """Numbers that tell another unit than theirs are no reason to refuse what `prepare` takes."""
    log = table(tmp_path / "a.parquet", timestamp=[1_700_000_000, 5, 9_000_000_000])
    source = TableSource(interactions=(log,), timestamp_unit="none")
    assert read_log(DataSettings(source=source)).findings == ()
    ((_, value),) = told(read_log(settings(log)))
    assert "is in the future, read as seconds" in value


def test_histories_that_nobody_named_are_told_before_a_run(tmp_path):
    log = table(tmp_path / "a.parquet", before=[[], ["a"], []], tags=[["x"], ["y"], []])
    (finding,) = read_log(settings(log)).findings
    assert (finding.field, finding.exit_code) == ("data.source.columns.history", 0)
    assert finding.remedy == "set it to before if that is it"
