"""A prepared data directory as arrays: users, histories, targets and semantic IDs.

Users and items are row numbers. The sequences of all users lie in one array, user u's at `offsets[u] :
offsets[u + 1]`, so a history is a view and costs nothing. Columns that a part does not ask for are not read.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.sparse as sp
from pydantic import ValidationError

from sluice.catalog.data.items import attribute_matrix
from sluice.catalog.data.settings import OUTCOMES, DataSettings
from sluice.catalog.data.split_settings import LoggedSplit
from sluice.catalog.data.splits import (
    FRESH,
    SPLITS,
    Impressions,
    TimeCuts,
    count_earlier,
    label_splits,
    lengths_until,
)
from sluice.catalog.errors import DataError

FORMAT = 1  # of a prepared directory; another number means that it was written by another version
MANIFEST = "manifest.json"
IMPRESSIONS_FILE = "impressions.parquet"  # absent where the log has none
_OUTCOME_ARRAYS = {"rating": "ratings", "click": "clicks", "dwell_seconds": "dwell_seconds"}
FILES = ("users.parquet", "catalogue.parquet", "interactions.parquet", "examples.parquet")


@dataclass(frozen=True, kw_only=True)
class Examples:
    """n positions of users' sequences: the target is that interaction, the history everything before it."""

    users: np.ndarray  # int32 [n]
    positions: np.ndarray  # int32 [n], at least 1

    def __len__(self) -> int:
        return len(self.users)


class Dataset:
    """Read-only view of what `sluice prepare` wrote."""

    def __init__(self, directory: Path, manifest: dict[str, Any], settings: DataSettings) -> None:
        """Use `open`."""
        self.directory = directory
        self.manifest = manifest
        self.settings = settings

    @classmethod
    def open(cls, directory: str | Path) -> "Dataset":
        """Open a prepared directory.

        >>> dataset = Dataset.open(directory)
        >>> dataset.users, dataset.items, dataset.level_sizes[:2]
        (24, 20, (4, 4))
        >>> [dataset.item_ids[row] for row in dataset.history(user=1, position=3, limit=2)]
        ['i02', 'i03']

        Raises:
            DataError: there is none, a file is missing, or another version wrote it.
        """
        directory = Path(directory)
        manifest = read_manifest(directory)
        remedy = f"prepare it again: `sluice prepare` with the output {directory}"
        if manifest is None:
            raise DataError(f"{directory} is no prepared data set (it has no {MANIFEST}); {remedy}")
        if manifest.get("format") != FORMAT:
            raise DataError(
                f"{directory / MANIFEST} has format {manifest.get('format')!r}, this version reads {FORMAT}; "
                f"{remedy}"
            )
        absent = [name for name in FILES if not (directory / name).is_file()]
        if absent:
            raise DataError(f"{directory} lacks {', '.join(absent)}; {remedy}")
        try:
            settings = DataSettings.model_validate(manifest["settings"])
        except (KeyError, ValidationError) as error:
            raise DataError(
                f"{directory / MANIFEST} holds settings that cannot be read ({error}); {remedy}"
            ) from None
        return cls(directory, manifest, settings)

    @property
    def name(self) -> str:
        """Of the data set, from its settings."""
        return self.settings.name

    @property
    def users(self) -> int:
        """U, the number of users."""
        return len(self.offsets) - 1

    @property
    def items(self) -> int:
        """N, the number of items."""
        return len(self.codes)

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """[L] codes per level, the collision level included."""
        return tuple(self.manifest["level_sizes"])

    @cached_property
    def user_ids(self) -> list[str]:
        """[U] the ids of users in the log."""
        return list(self._column("users.parquet", "user_id").to_pylist())

    @cached_property
    def codes(self) -> np.ndarray:
        """int32 [N, L] semantic IDs."""
        column = self._column("catalogue.parquet", "codes")
        flat: np.ndarray = column.flatten().to_numpy()
        return flat.reshape(len(column), -1)

    @cached_property
    def item_ids(self) -> list[str]:
        """[N] the ids of items in the log and the catalogue."""
        return list(self._column("catalogue.parquet", "item_id").to_pylist())

    @cached_property
    def titles(self) -> list[str | None]:
        """[N] titles, None for an item without one."""
        return list(self._column("catalogue.parquet", "title").to_pylist())

    @property
    def attributes(self) -> sp.csr_matrix:
        """float32 [N, A] multi-hot."""
        return self._attributes[0]

    @property
    def attribute_names(self) -> list[str]:
        """[A], such as "genre=Comedy"."""
        return self._attributes[1]

    @cached_property
    def user_attributes(self) -> tuple[sp.csr_matrix, list[str]] | None:
        """float32 [U, A] multi-hot, and [A] names such as "age=30"; None where nothing is known of users."""
        if "attributes" not in pq.read_schema(self.directory / "users.parquet").names:
            return None
        return attribute_matrix(self._column("users.parquet", "attributes").to_pylist())

    @cached_property
    def offsets(self) -> np.ndarray:
        """int64 [U + 1], where each user's sequence begins in the arrays of interactions."""
        counts = np.bincount(self._interactions("user"), minlength=self.manifest["counts"]["users"])
        return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    @cached_property
    def sequence(self) -> np.ndarray:
        """int32 [n] item rows of all interactions, user by user, in order of time."""
        return self._interactions("item")

    @cached_property
    def timestamps(self) -> np.ndarray:
        """int64 [n], of all interactions, in the unit of the log (microseconds since 1970 for dates)."""
        return self._interactions("timestamp")

    @cached_property
    def ratings(self) -> np.ndarray | None:
        """float32 [n], NaN where missing; None when no interaction has one."""
        return self._optional("rating")

    @cached_property
    def clicks(self) -> np.ndarray | None:
        """float32 [n], 1 clicked and 0 not, NaN where missing; None when no interaction says.

        Where the log has impressions all are 1: what was shown and not taken is no interaction.
        """
        if len(self._impressions):
            return np.ones(len(self.sequence), dtype=np.float32)
        return self._optional("click")

    @cached_property
    def dwell_seconds(self) -> np.ndarray | None:
        """float32 [n], NaN where missing; None when no interaction has it."""
        return self._optional("dwell_seconds")

    @cached_property
    def propensities(self) -> np.ndarray | None:
        """float32 [n] in (0, 1], the chance that the item was shown where it was, NaN where unknown.

        None when no interaction has one.
        """
        return self._optional("propensity")

    @cached_property
    def slate_positions(self) -> np.ndarray | None:
        """float32 [n], the item's place in the slate from 1 on, NaN where unknown; None when none has one."""
        return self._optional("slate_position")

    def outcome(self, column: str) -> np.ndarray | None:
        """The ratings, clicks or dwell times, float32 [n]; None when no interaction has one.

        `column` is one of `sluice.catalog.data.settings.OUTCOMES`.
        """
        outcomes: np.ndarray | None = getattr(self, _OUTCOME_ARRAYS[column])
        return outcomes

    @cached_property
    def reward_column(self) -> str | None:
        """Which outcome is the logged reward (`data.reward`); None when there is none.

        Raises:
            DataError: the settings name one that no interaction has.
        """
        reward = self.settings.reward
        if reward == "auto":
            return "rating" if self.ratings is not None else None
        if reward in OUTCOMES and self.outcome(reward) is None:
            raise DataError(
                f"data.reward is {reward}, but no interaction of {self.directory} has one; set it to none"
            )
        return reward if reward in OUTCOMES else None

    def logged_rewards(self, users: np.ndarray, positions: np.ndarray) -> np.ndarray | None:
        """The logged rewards of n interactions, float32 [n] in the log's unit, NaN where the logs have none.

        `users` and `positions` are int [n]. None when the data set has no logged reward at all.
        """
        outcomes = None if self.reward_column is None else self.outcome(self.reward_column)
        if outcomes is None:
            return None
        rewards: np.ndarray = outcomes[self.offsets[users] + positions]
        return rewards

    def known_until(self, part: str) -> np.ndarray:
        """bool [n]: the interaction lies before the end of the part."""
        known: np.ndarray = self._labels <= SPLITS.index(part)
        return known

    def item_shares(self, part: str) -> np.ndarray:
        """float32 [N], each item's share of the interactions before the end of the part; they add up to 1."""
        counts = self._item_counts[SPLITS.index(part)]
        shares: np.ndarray = counts / counts.sum()
        return shares.astype(np.float32)

    def lengths_until(self, part: str) -> np.ndarray:
        """int64 [U], how many leading interactions of each user lie before the end of the part."""
        return self._lengths[part]

    def impressions(self, until: str) -> Impressions:
        """What was shown and not taken before the end of a part; empty where the log tells of no such thing.

        A part ends at its cut in time, or for each user at the first interaction that lies behind it; where
        the log names the parts, it names these too. An impression is of the first part that it is before the
        end of, and behind the user's interactions with an earlier time (or an earlier part, where the log
        names them).
        """
        return self._impressions.where(self._impressions.parts <= SPLITS.index(until))

    @cached_property
    def _impressions(self) -> Impressions:
        path = self.directory / IMPRESSIONS_FILE
        if not path.is_file():
            none = np.empty(0, dtype=np.int32)
            return Impressions(users=none, items=none, positions=none, parts=none.astype(np.int8))
        users, items, times = (
            self._column(path.name, name).to_numpy() for name in ("user", "item", "timestamp")
        )
        owners = np.repeat(np.arange(self.users), np.diff(self.offsets))
        keys, rows = [users, times], [owners, self.timestamps]
        if isinstance(self.settings.split, LoggedSplit):
            parts = self._column(path.name, "part").to_numpy()
            keys, rows = [users, parts, times], [owners, self._labels, self.timestamps]
        else:
            parts = sum((times >= self._ends(part)[users]).astype(np.int8) for part in SPLITS)
        earlier = count_earlier(keys, rows)
        positions = (earlier - self.offsets[users]).astype(np.int32)
        return Impressions(users=users, items=items, positions=positions, parts=parts)

    def _ends(self, part: str) -> np.ndarray:
        """int64 [U], the time at which a part has ended for each user."""
        if self.manifest["time_cuts"]:
            ends = TimeCuts(**self.manifest["time_cuts"]).ends
            return np.full(self.users, ends[SPLITS.index(part)])
        never = np.iinfo(np.int64).max
        following = self.offsets[:-1] + self.lengths_until(part)
        times = np.append(self.timestamps, never)
        return np.where(following < self.offsets[1:], times[following], never)

    @property
    def prompt_part(self) -> str:
        """The part that prompts are drawn from: fresh, or pretrain where the split has no fresh part."""
        return "fresh" if (self._labels == FRESH).any() else "pretrain"

    @cached_property
    def _labels(self) -> np.ndarray:
        """int8 [n], the part of every interaction, as a place in `SPLITS`."""
        if isinstance(self.settings.split, LoggedSplit):
            return self._interactions("part")
        cuts = self.manifest["time_cuts"]
        return label_splits(
            self.offsets, self.timestamps, self.settings.split, TimeCuts(**cuts) if cuts else None
        )

    @cached_property
    def _lengths(self) -> dict[str, np.ndarray]:
        return {part: lengths_until(self.offsets, self._labels, number) for number, part in enumerate(SPLITS)}

    @cached_property
    def _item_counts(self) -> np.ndarray:
        """int64 [parts, N], the interactions of each item before the end of each part."""
        cells = self._labels.astype(np.int64) * self.items + self.sequence
        own = np.bincount(cells, minlength=len(SPLITS) * self.items).reshape(len(SPLITS), -1)
        return own.cumsum(axis=0)

    def items_of(self, user: int) -> np.ndarray:
        """The user's whole sequence, int32 item rows, oldest first (a view)."""
        return self.sequence[self.offsets[user] : self.offsets[user + 1]]

    def examples(self, split: str) -> Examples:
        """The examples of a part, "pretrain", "fresh", "valid" or "test", in order of users.

        Raises:
            ValueError: `split` is none of these.
        """
        if split not in SPLITS:
            raise ValueError(f"split {split!r} is none of {', '.join(SPLITS)}")
        users, positions, labels = self._examples
        chosen = labels == SPLITS.index(split)
        return Examples(users=users[chosen], positions=positions[chosen])

    def history(self, user: int, position: int, limit: int | None) -> np.ndarray:
        """The last `limit` items before `position`, int32 item rows, oldest first (a view); None: all."""
        start = self.offsets[user]
        first = 0 if limit is None else max(0, position - limit)
        return self.sequence[start + first : start + position]

    def seen(self, user: int, position: int) -> np.ndarray:
        """int32 item rows consumed before `position` (a view; an item consumed twice stands twice)."""
        return self.history(user, position, None)

    def target(self, user: int, position: int) -> int:
        """The item row at `position`."""
        return int(self.items_of(user)[position])

    @cached_property
    def _attributes(self) -> tuple[sp.csr_matrix, list[str]]:
        return attribute_matrix(self._column("catalogue.parquet", "attributes").to_pylist())

    @cached_property
    def _examples(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        split = self._column("examples.parquet", "split")
        # Data of the release before call the pretrain part "train".
        names = [{"train": "pretrain"}.get(name, name) for name in split.dictionary.to_pylist()]
        label = np.asarray([SPLITS.index(name) for name in names], dtype=np.int8)
        users, positions = (
            self._column("examples.parquet", name).to_numpy() for name in ("user", "position")
        )
        return users, positions, label[split.indices.to_numpy()]

    def _optional(self, name: str) -> np.ndarray | None:
        if name not in pq.read_schema(self.directory / "interactions.parquet").names:
            return None
        column = self._column("interactions.parquet", name)
        if column.null_count == len(column):
            return None
        values: np.ndarray = column.cast(pa.float32()).to_numpy(zero_copy_only=False)
        return values

    def _interactions(self, name: str) -> np.ndarray:
        values: np.ndarray = self._column("interactions.parquet", name).to_numpy()
        return values

    def _column(self, file: str, name: str) -> pa.Array:
        path = self.directory / file
        try:
            table = pq.read_table(path, columns=[name], memory_map=True)
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"{path} cannot be read: {error}; run `sluice prepare` again") from None
        return table.unify_dictionaries().column(0).combine_chunks()


def read_manifest(directory: Path) -> dict[str, Any] | None:
    """The manifest of a prepared directory, None when there is none.

    Raises:
        DataError: it cannot be read as JSON.
    """
    path = directory / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
        return manifest
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read: {error}; delete {directory} and run `sluice prepare` again"
        ) from None
