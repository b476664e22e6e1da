"""Which files a directory stands for, and in which order."""

import gzip
import os

import pytest

from sluice.catalog.data.log_files import find_log_files
from sluice.catalog.errors import DataError


def written(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("user_id,item_id,timestamp\n")
    return root


def names(root, *paths, order_matters=False):
    log = find_log_files(tuple(map(str, paths or (root,))), order_matters=order_matters)
    return [str(file.path.relative_to(root)) for file in log.files]


def test_names_with_a_dot_or_an_underscore_are_skipped_at_any_depth(tmp_path):
    written(
        tmp_path / "_in" / ".here",  # how the directory itself is called does not matter
        "a.csv",
        "_hidden.csv",
        ".ipynb_checkpoints/a.csv",
        "day/_temporary/0/b.csv",
        "day/b.csv",
        "_SUCCESS",
        ".b.csv.crc",
        "notes.md",
    )
    root = tmp_path / "_in" / ".here"
    assert names(root) == ["a.csv", "day/b.csv"]
    log = find_log_files((str(root),), order_matters=False)
    assert [path.removeprefix(f"{root}/") for path in log.left_out] == [
        ".ipynb_checkpoints/a.csv",
        "_hidden.csv",
        "day/_temporary/0/b.csv",
        "notes.md",
    ]


def test_numbers_in_names_count_as_numbers(tmp_path):
    written(tmp_path, "p10/x-9.csv", "p10/x-11.csv", "p9/x-30.csv", "p9/x.csv")
    assert names(tmp_path) == ["p9/x-30.csv", "p9/x.csv", "p10/x-9.csv", "p10/x-11.csv"]


def test_names_with_the_same_number_are_refused(tmp_path):
    written(tmp_path, "part-1.csv", "part-01.csv")
    with pytest.raises(DataError, match=r"part-01\.csv and .*part-1\.csv have the same number.*rename one"):
        names(tmp_path)


def test_without_timestamps_the_numbers_must_give_the_order(tmp_path):
    written(tmp_path / "ok", "d=2024-01-09/b7.csv", "d=2024-01-10/a.csv", "d=2024-01-10/a2.csv")
    written(tmp_path / "spark", "part-00000-9f.csv", "part-00001-0a.csv", "part-00010-3.csv")
    written(tmp_path / "bad", "train.csv", "test.csv")
    assert names(tmp_path / "spark", order_matters=True)[-1] == "part-00010-3.csv"
    with pytest.raises(DataError, match=r"test\.csv or .*train\.csv comes first: list the files in order"):
        names(tmp_path / "bad", order_matters=True)
    assert names(tmp_path / "bad") == ["test.csv", "train.csv"]
    listed = [tmp_path / "bad" / name for name in ("train.csv", "test.csv")]
    assert names(tmp_path / "bad", *listed, order_matters=True) == ["train.csv", "test.csv"]
    with pytest.raises(DataError, match="comes first"):
        names(tmp_path / "ok", order_matters=True)  # a.csv, a2.csv
    (tmp_path / "ok" / "d=2024-01-10" / "a2.csv").unlink()
    assert names(tmp_path / "ok", order_matters=True) == ["d=2024-01-09/b7.csv", "d=2024-01-10/a.csv"]


def test_linked_directories_and_files_are_read_and_circles_left(tmp_path):
    written(tmp_path / "real", "a.csv")
    (tmp_path / "log").mkdir()
    os.symlink(tmp_path / "real", tmp_path / "log" / "day")
    os.symlink(tmp_path / "log", tmp_path / "real" / "back")
    assert names(tmp_path / "log") == ["day/a.csv"]


def test_a_link_to_nothing_is_refused(tmp_path):
    written(tmp_path, "a.csv")
    os.symlink(tmp_path / "gone.csv", tmp_path / "b.csv")
    with pytest.raises(DataError, match=r"b\.csv is a link to a file that is not there"):
        names(tmp_path)


def test_a_file_that_is_named_twice_is_refused(tmp_path):
    written(tmp_path, "log/a.csv", "b.csv")
    os.symlink(tmp_path / "log" / "a.csv", tmp_path / "c.csv")
    for paths in (("log", "log/a.csv"), ("b.csv", "b.csv"), ("c.csv", "log"), ("b.csv", "log/../b.csv")):
        with pytest.raises(DataError, match=r"is the same file as .*name it once"):
            find_log_files(tuple(str(tmp_path / path) for path in paths), order_matters=False)


def test_suffixes_are_read_in_any_case(tmp_path):
    (tmp_path / "LOG.CSV.GZ").write_bytes(gzip.compress(b"x\n"))
    (tmp_path / "B.TSV").write_text("x\n")
    log = find_log_files((str(tmp_path),), order_matters=False)
    assert [(file.path.name, file.delimiter, file.compression) for file in log.files] == [
        ("B.TSV", "\t", None),
        ("LOG.CSV.GZ", ",", "gzip"),
    ]
