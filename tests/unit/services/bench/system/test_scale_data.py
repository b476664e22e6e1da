"""The bench of growing logs, at tiny sizes."""

import pyarrow.parquet as pq
import pytest

from sluice.catalog.errors import ConfigError, RunError
from sluice.services.bench.harness import BenchOptions, run_bench
from sluice.services.bench.system import scale_data
from sluice.services.cli.parser import build_parser


def test_every_size_is_prepared_and_measured_in_a_process_of_its_own():
    result = scale_data.run(BenchOptions(rows=(2000, 4000), quick=True))
    assert [row["rows"] for row in result["rows"]] == [2000, 4000]
    for row in result["rows"]:
        assert 0 < row["users"] <= row["rows"] / 20 and 0 < row["items"] <= row["rows"] / 100
        assert set(row["seconds"]) == {"read", "sort", "split", "vectors", "codes", "other"}
        assert sum(row["seconds"].values()) == pytest.approx(row["total_s"], abs=0.05)
        assert row["rows_per_s"] == pytest.approx(row["rows"] / row["total_s"], rel=0.1)
        assert 50 < row["imports_mb"] < row["peak_mb"] < 2000
    assert set(result["growth"]) == {"total_s", "peak_mb"}


def test_the_log_has_its_rows_and_the_same_ones_by_the_same_seed(tmp_path, monkeypatch):
    monkeypatch.setattr(scale_data, "_CHUNK_ROWS", 3000)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        scale_data.write_log(tmp_path / name, 8000, seed)
    first, again, other = (pq.read_table(tmp_path / name) for name in "abc")
    assert first.num_rows == 8000 and first.equals(again) and not first.equals(other)
    share = first.column("item_id").value_counts().field("counts").to_numpy().max() / 8000
    assert share > 3 / 80  # popular items, of 80


def test_growth_is_the_slope_of_logarithms():
    table = [
        {"rows": n, "total_s": 3 * n**1.5, "peak_mb": 100 + n**0.5, "imports_mb": 100} for n in (10, 20, 80)
    ]
    assert scale_data.fit_growth(table) == {"total_s": 1.5, "peak_mb": 0.5}
    assert scale_data.fit_growth(table[:1]) == {"total_s": None, "peak_mb": None}


def test_a_process_that_dies_is_an_error(tmp_path):
    with pytest.raises(RunError, match=r"prepare of none\.parquet ended with code 1"):
        scale_data.prepare_apart(tmp_path / "none.parquet", tmp_path / "out")


def test_the_rows_are_for_this_bench_alone(capsys):
    assert build_parser().parse_args(["bench", "scale-data", "--rows", "1000,5000"]).rows == (1000, 5000)
    for text in ("10", "1000,1000", "many"):
        with pytest.raises(SystemExit):
            build_parser().parse_args(["bench", "scale-data", "--rows", text])
    with pytest.raises(ConfigError, match="--rows is for the bench scale-data"):
        run_bench("queue", BenchOptions(rows=(1000,)), None)
