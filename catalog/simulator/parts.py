"""A world that is being written, in parts of some users each, so that a run that was killed can go on.

    begun.json                      of which world these parts are
    parts/interactions-00000.parquet, users-..., truth-...        users of one chunk, a row group per block
    parts/00000.json                the tally of the chunk; written last, so a chunk that has it is whole
    truth/tastes.npy, sessions.npy  of all users; a chunk writes its rows

When all parts are there they are joined, and only the files of a finished world are left.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sluice.catalog.errors import DataError
from sluice.catalog.files import write_atomically
from sluice.catalog.simulator.items import WorldItems
from sluice.catalog.simulator.sessions import BlockLog, Tally, block_count, simulate_block
from sluice.catalog.simulator.settings import BLOCK_USERS, WorldSettings
from sluice.catalog.simulator.tables import (
    INTERACTIONS,
    LOG_FILE,
    TRUE_USERS,
    USERS,
    log_table,
    true_user_table,
    user_table,
)

WORLD_FILE = "world.json"  # what a finished world says of itself
TRUTH = "truth"
STATES = ("tastes", "sessions")  # arrays float32 [users, steps kept, D] of the truth
_BEGUN = "begun.json"
# Name of the parts -> file of the world, schema, and how a block becomes rows of it.
_FILES: dict[str, tuple[str, pa.Schema, Callable[[BlockLog], pa.Table]]] = {
    "interactions": (LOG_FILE, INTERACTIONS, log_table),
    "users": ("users.parquet", USERS, user_table),
    "truth": (f"{TRUTH}/users.parquet", TRUE_USERS, true_user_table),
}
# Ids and places repeat; times, propensities and seconds hardly do.
_REPEATING = ["user_id", "item_id", "position", "exposed_by", "favourite_category", "segment"]


class WorldParts:
    """The parts of one world in a directory of their own."""

    def __init__(self, world: WorldSettings, directory: Path) -> None:
        """The parts in `directory`, which is made, or gone on with.

        Raises:
            DataError: there are parts of another world.
        """
        self._world, self._directory = world, directory
        begun = {"fingerprint": world.fingerprint, "chunk_users": world.chunk_users}
        if directory.is_dir() and (directory / _BEGUN).is_file():
            _check_same(json.loads((directory / _BEGUN).read_text()), begun, directory)
            return
        (directory / "parts").mkdir(parents=True, exist_ok=True)
        (directory / TRUTH).mkdir(exist_ok=True)
        shape = (world.users.count, world.steps - world.truth_from, world.items.dims)
        for name in STATES:
            np.lib.format.open_memmap(  # type: ignore[no-untyped-call]
                self._state(name), mode="w+", dtype=np.float32, shape=shape
            )
        write_atomically(directory / _BEGUN, json.dumps(begun))

    @property
    def chunks(self) -> int:
        """Parts that the world has in the end."""
        return -(-self._world.users.count // self._world.chunk_users)

    def write_missing(self, items: WorldItems) -> Iterator[tuple[int, Tally]]:
        """Write all chunks that are not there, block by block; yields the users done so far and their tally.

        What was there already is yielded first, as one.
        """
        tallies = [self._read_tally(chunk) for chunk in range(self.chunks)]
        total = sum((tally for tally in tallies if tally), Tally.empty())
        yield sum(total.users), total
        for chunk, before in enumerate(tallies):
            if before is not None:
                continue
            tally = Tally.empty()
            for block_tally in self._write_chunk(chunk, items):
                tally += block_tally
                yield sum(total.users) + sum(tally.users), total + tally
            write_atomically(self._tally(chunk), json.dumps(asdict(tally)))
            total += tally

    def join(self) -> None:
        """Make the files of the world of all parts, and remove the parts."""
        for name, (file, schema, _) in _FILES.items():
            with _writer(self._directory / file, schema) as writer:
                for chunk in range(self.chunks):
                    with pq.ParquetFile(self._part(name, chunk)) as part:
                        for group in range(part.num_row_groups):
                            table = part.read_row_group(group, use_threads=False)
                            writer.write_table(table.cast(schema), row_group_size=max(1, len(table)))
        for pattern in ("*.json", "*.parquet"):  # whoever goes on from here finds no tally without its rows
            for path in (self._directory / "parts").glob(pattern):
                path.unlink()
        (self._directory / "parts").rmdir()
        (self._directory / _BEGUN).unlink()

    def _write_chunk(self, chunk: int, items: WorldItems) -> Iterator[Tally]:
        """Write the tables and states of a chunk, all but its tally."""
        per_chunk = self._world.chunk_users // BLOCK_USERS
        blocks = range(chunk * per_chunk, min((chunk + 1) * per_chunk, block_count(self._world)))
        writers = {name: _writer(self._part(name, chunk), schema) for name, (_, schema, _) in _FILES.items()}
        states = {name: np.load(self._state(name), mmap_mode="r+") for name in STATES}
        try:
            for number in blocks:
                log = simulate_block(self._world, items, number)
                for name, (_, _, to_table) in _FILES.items():
                    table = to_table(log)
                    writers[name].write_table(table, row_group_size=max(1, len(table)))
                rows = slice(log.users.ids[0], log.users.ids[-1] + 1)
                states["tastes"][rows], states["sessions"][rows] = log.tastes, log.sessions
                yield log.tally
        finally:
            for writer in writers.values():
                writer.close()
        for state in states.values():
            state.flush()

    def _read_tally(self, chunk: int) -> Tally | None:
        path = self._tally(chunk)
        return Tally(**json.loads(path.read_text())) if path.is_file() else None

    def _part(self, name: str, chunk: int) -> Path:
        return self._directory / "parts" / f"{name}-{chunk:05d}.parquet"

    def _tally(self, chunk: int) -> Path:
        return self._directory / "parts" / f"{chunk:05d}.json"

    def _state(self, name: str) -> Path:
        return self._directory / TRUTH / f"{name}.npy"


def _writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    return pq.ParquetWriter(
        path, schema, use_dictionary=[name for name in _REPEATING if name in schema.names]
    )


def _check_same(begun: dict[str, object], wanted: dict[str, object], directory: Path) -> None:
    differing = [name for name in wanted if begun.get(name) != wanted[name]]
    if differing:
        name = differing[0]
        what = "with other settings" if name == "fingerprint" else f"with chunk_users {begun.get(name)}"
        raise DataError(
            f"{directory} holds a world that was begun {what} ({name} {begun.get(name)}, now "
            f"{wanted[name]}): go on with the settings that it was begun with, remove it, or give another "
            "name, seed or --output"
        )
