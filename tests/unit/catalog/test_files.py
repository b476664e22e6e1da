"""Files are written whole or not at all, read up to their last whole line, and named by their content."""

import ast
import hashlib
import os
import stat
from pathlib import Path

import pytest

from sluice.catalog import files
from sluice.catalog.files import (
    cut_back,
    digest_files,
    directory_aside,
    find_damage,
    read_whole_lines,
    remove_leftovers,
    replace_directory,
    settle_directory,
    sha256_of,
    to_finite,
    was_moved_away,
    write_atomically,
)

ROOT = Path(__file__).parents[3]


@pytest.fixture
def calls(monkeypatch):
    """What is asked of the operating system that matters for durability, in order, with the last names."""
    made = []

    def spy(name):
        real = getattr(os, name)

        def called(first, *others):
            path = os.readlink(f"/proc/self/fd/{first}") if name == "fsync" else first
            made.append((name, *(Path(path).name for path in (path, *others))))
            return real(first, *others)

        monkeypatch.setattr(files.os, name, called)

    for name in ("fsync", "rename", "replace", "link"):
        spy(name)
    return made


@pytest.mark.parametrize(("content", "read"), [("grün\n", "grün\n".encode()), (b"\x00\xff", b"\x00\xff")])
def test_a_file_holds_what_was_written(tmp_path, content, read):
    write_atomically(tmp_path / "file", "an older and longer content")
    write_atomically(tmp_path / "file", content)
    assert (tmp_path / "file").read_bytes() == read
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_file_is_on_the_disk_before_its_name_is(tmp_path, calls):
    write_atomically(tmp_path / "file", "content")
    (synced, fresh), (renamed, old, new), last = calls
    assert (synced, renamed, old, new) == ("fsync", "replace", fresh, "file")
    assert fresh.startswith(".file.new-")
    assert last == ("fsync", tmp_path.name)


def test_a_file_that_must_not_be_there_is_never_overwritten(tmp_path, calls):
    write_atomically(tmp_path / "file", "first", overwrite=False)
    (_, fresh), linked, last = calls
    assert (linked, last) == (("link", fresh, "file"), ("fsync", tmp_path.name))
    with pytest.raises(FileExistsError):
        write_atomically(tmp_path / "file", "second", overwrite=False)
    assert (tmp_path / "file").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step):
    write_atomically(tmp_path / "file", "old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(files.os, step, fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_permissions_are_those_of_a_plain_open(tmp_path):
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "file", "content")
        with directory_aside(tmp_path / "directory"):
            pass
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("file", "directory")]
    assert modes == [0o640, 0o750]


def test_a_directory_takes_its_place_when_it_is_whole(tmp_path):
    place = tmp_path / "deep" / "place"
    for name in ("one", "two"):
        with directory_aside(place) as fresh:
            (fresh / name).touch()
            assert not (place / name).exists()
        assert [path.name for path in place.iterdir()] == [name]
        assert [path.name for path in place.parent.iterdir()] == ["place"]


def test_a_directory_is_on_the_disk_before_its_name_is(tmp_path, calls):
    fresh = tmp_path / "fresh"
    (fresh / "inner").mkdir(parents=True)
    (fresh / "file").touch()
    (fresh / "inner" / "leaf").touch()
    replace_directory(fresh, tmp_path / "place")
    names = [name for _, name in calls[:4]]
    assert [call for call, *_ in calls] == ["fsync"] * 4 + ["rename", "fsync"]
    assert sorted(names) == ["file", "fresh", "inner", "leaf"]
    assert names.index("leaf") < names.index("inner")
    assert calls[4:] == [("rename", "fresh", "place"), ("fsync", tmp_path.name)]


def test_a_block_that_fails_leaves_the_old_directory_and_nothing_else(tmp_path):
    place = tmp_path / "place"
    with directory_aside(place) as fresh:
        (fresh / "old").touch()
    with pytest.raises(KeyboardInterrupt), directory_aside(place) as fresh:
        (fresh / "half").touch()
        raise KeyboardInterrupt
    assert [path.name for path in place.iterdir()] == ["old"]
    assert [path.name for path in tmp_path.iterdir()] == ["place"]


def test_a_directory_that_cannot_be_moved_puts_the_old_one_back(tmp_path, monkeypatch):
    place, real = tmp_path / "place", os.rename
    with directory_aside(place) as fresh:
        (fresh / "old").touch()

    def fail(source, target):
        if (Path(source) / "new").exists():
            raise OSError("disk full")
        real(source, target)

    monkeypatch.setattr(files.os, "rename", fail)
    with pytest.raises(OSError, match="disk full"), directory_aside(place) as fresh:
        (fresh / "new").touch()
    assert [path.name for path in place.iterdir()] == ["old"]
    assert [path.name for path in tmp_path.iterdir()] == ["place"]


def test_what_a_dead_process_left_is_removed_and_nothing_else(tmp_path):
    for name in (".place.new-0a1b2c3d", ".places.new-0a1b2c3d", "place", "place.new-0a1b2c3d"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    remove_leftovers(tmp_path / "place")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".places.new-0a1b2c3d",
        "place",
        "place.new-0a1b2c3d",
    ]


def test_what_was_moved_away_is_put_back_and_the_newest_of_it(tmp_path):
    place = tmp_path / "place"
    settle_directory(place)
    assert not place.exists() and not was_moved_away(place)
    for number, name in enumerate((".place.old-ffffffff", ".place.old-0a1b2c3d")):
        (tmp_path / name).mkdir()
        (tmp_path / name / str(number)).touch()
        os.utime(tmp_path / name, (number, number))
    assert was_moved_away(place)
    settle_directory(place)
    assert [path.name for path in place.iterdir()] == ["1"] and not was_moved_away(place)
    settle_directory(place)  # it is there, so the other one is only a leftover
    remove_leftovers(place)
    assert [path.name for path in tmp_path.iterdir()] == ["place"]


def test_a_leftover_that_is_all_there_is_is_put_back_before_leftovers_go(tmp_path):
    (tmp_path / ".place.old-0a1b2c3d").mkdir()
    (tmp_path / ".place.new-0a1b2c3d").mkdir()
    remove_leftovers(tmp_path / "place")
    assert [path.name for path in tmp_path.iterdir()] == ["place"]


def test_damage_is_found_by_the_sums(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("deep/a", "b"):
        (tmp_path / name).write_text("abc")
    sums = digest_files(tmp_path)
    assert list(sums) == ["b", "deep/a"] and sums["b"].startswith("ba7816bf")
    assert find_damage(tmp_path, sums) is None
    (tmp_path / "deep" / "a").write_text("abd")
    assert find_damage(tmp_path, sums).startswith("deep/a is not as it was written")
    (tmp_path / "b").unlink()
    assert find_damage(tmp_path, sums) == "b is missing"


def test_a_line_torn_at_any_byte_is_left_out(tmp_path):
    path, whole, lines = tmp_path / "lines", "eins\n\nzwölf\r\n".encode(), ["eins", "", "zwölf\r"]
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        ends = [end for end in (5, 6, len(whole)) if end <= cut]
        read = read_whole_lines(path)
        assert (read.lines, read.size) == (lines[: len(ends)], ends[-1] if ends else 0)


def test_a_file_that_is_not_there_has_no_lines(tmp_path):
    read = read_whole_lines(tmp_path / "lines")
    assert (read.lines, read.size) == ([], 0)


def test_a_hash_is_that_of_the_content(tmp_path):
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    (tmp_path / "a").write_bytes(b"abc")
    assert hashlib.sha256(b"abc").hexdigest() == expected
    assert sha256_of(tmp_path / "a") == sha256_of([b"a", b"", b"bc"]) == expected


WAYS = {
    "write_text",
    "write_bytes",
    "rename",
    "renames",
    "replace",
    "link",
    "fsync",
    "sha256",
    "md5",
    "file_digest",
}
# A switch of the kernel, and a file that lives as long as the process that reads it.
PLAIN_WRITES = {
    ("services/bench/engines/trie.py", "write_text"),
    ("learner/training/journal_file.py", "fsync"),  # it grows
    ("services/stages/catalogue.py", "rename"),  # of a whole directory that is set aside
    ("services/operate/faults.py", "write_bytes"),  # damage is what it is there for
    ("services/operate/faults.py", "write_text"),
    ("services/bench/system/coldstart.py", "write_text"),
}


def own_ways(source: str) -> set[str]:
    """Calls with which a module writes, moves or hashes files by itself: `path.write_text(...)`,
    `os.replace(...)`, `path.replace(target)`, `hashlib.sha256(...)`.
    """
    called = set()
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        owner, name = node.func.value, node.func.attr
        # A text's `replace` takes two arguments, `dataclasses.replace` a class and fields.
        is_module = isinstance(owner, ast.Name) and owner.id in ("os", "shutil")
        if name == "replace" and not is_module and (len(node.args) != 1 or node.keywords):
            continue
        if name in WAYS or (name == "move" and is_module):
            called.add(name)
    return called


def test_own_ways_are_noticed():
    source = "path.write_text(a)\nos.replace(a, b)\npath.rename(b)\nhashlib.sha256()\nshutil.move(a, b)"
    assert own_ways(source) == {"write_text", "replace", "rename", "sha256", "move"}
    assert own_ways("path.replace(other)") == {"replace"}
    assert own_ways("text.replace('a', 'b')\ndataclasses.replace(a, b=1)\ntorch.move(a)") == set()


def test_nobody_else_writes_aside_or_hashes():
    ways = {
        (path.relative_to(ROOT).as_posix(), name)
        for package in ("catalog", "learner", "actors", "services", "cluster")
        for path in (ROOT / package).rglob("*.py")
        for name in own_ways(path.read_text())
    }
    assert ("catalog/files.py", "fsync") in ways
    assert {way for way in ways if way[0] != "catalog/files.py"} == PLAIN_WRITES


def test_a_number_that_json_has_no_word_for_is_null():
    value = {"a": [1.0, float("nan")], "b": {"c": (float("inf"), 2)}, "d": "nan", "e": None}
    assert to_finite(value) == {"a": [1.0, None], "b": {"c": [None, 2]}, "d": "nan", "e": None}


def test_a_file_of_lines_is_cut_back_to_whole_lines(tmp_path):
    path = tmp_path / "new" / "log.jsonl"
    cut_back(path, 5)
    assert path.read_bytes() == b""
    path.write_bytes(b"one\ntwo\nhal")
    cut_back(path, 100)
    assert path.read_bytes() == b"one\ntwo\n"
    cut_back(path, 4)
    assert path.read_bytes() == b"one\n"
