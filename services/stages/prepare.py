"""`sluice prepare`: from raw logs and a catalogue to the Parquet contracts.

    source --batches--> clean --rows--> sort by user (DuckDB) --> interactions, users
                          |                                            | row group by row group
                      rejected.jsonl           examples, co-occurrence of the pretrain part
                                                                       |
                                             item vectors, semantic IDs, catalogue

Memory holds one batch or one bucket of rows at a time, beside what the sort may have and what grows with the
items (ids, attributes, co-occurrence up to a bound). Everything is written to a directory beside the output
and renamed into place at the end.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sluice.catalog.data.cleaning import LogCleaner, Rejections
from sluice.catalog.data.cooccurrence import CoOccurrence, PairCounts, SharedUsers, mix_counts
from sluice.catalog.data.dataset import FORMAT, IMPRESSIONS_FILE, MANIFEST, read_manifest
from sluice.catalog.data.items import Items, attribute_matrix, read_items, read_user_attributes
from sluice.catalog.data.partition import EventRules, ItemIndex, UserBuckets
from sluice.catalog.data.schema import (
    CATALOGUE,
    EXAMPLES,
    EXPOSURE,
    IMPRESSIONS,
    INTERACTIONS,
    KNOWN_USERS,
    USERS,
)
from sluice.catalog.data.semantic_ids import (
    fitting_level_sizes,
    item_vectors,
    level_sizes_of,
    residual_kmeans,
    resolve_collisions,
)
from sluice.catalog.data.settings import OUTCOMES, DataSettings, TableSource
from sluice.catalog.data.sources import LogSource, find_unread_histories, open_source
from sluice.catalog.data.split_settings import FreshLogs, GlobalTime, LoggedSplit
from sluice.catalog.data.splits import (
    PRETRAIN,
    SPLITS,
    TimeCuts,
    count_late_rows,
    find_cuts,
    label_splits,
    positions_of,
)
from sluice.catalog.errors import DataError
from sluice.catalog.files import directory_aside, sha256_of, write_atomically
from sluice.catalog.timestamps import TimeUnit
from sluice.services.interrupts import sigterm_interrupts
from sluice.services.progress import Progress
from sluice.services.stages.data_warnings import REJECTED, describe_codes, list_warnings
from sluice.services.stages.log_checks import check_exposure, check_reward, check_users
from sluice.services.stages.prepare_progress import PrepareProgress
from sluice.services.stages.staging import check_replaceable, is_current

_LIBRARIES = ("pyarrow", "duckdb", "numpy", "scipy", "faiss-cpu")


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What `prepare` left behind."""

    directory: Path
    reused: bool  # the directory already held exactly this, nothing was done
    manifest: dict[str, Any]
    warnings: tuple[str, ...]  # what a user should know of this data set
    seconds: dict[str, float] = field(default_factory=dict)  # of every stage, if anything was done

    def lines(self) -> list[str]:
        """What to print of it: its semantic IDs, then the warnings."""
        return [describe_codes(self.manifest), *(f"warning: {warning}" for warning in self.warnings)]


def prepare_data(
    settings: DataSettings, output: Path, progress: Progress = lambda done, total, fields: None
) -> Prepared:
    """Write the prepared data directory `output`, or leave it when it already holds the same.

    `progress` counts all stages as rows read (`PrepareProgress`).

    Raises:
        DataError: the source cannot be used; nothing is left behind then, and an earlier `output` is as it
            was. So it is after Ctrl-C and SIGTERM.
    """
    source = open_source(settings.source)
    fingerprint = source.fingerprint()
    if is_current(output, settings, fingerprint):
        manifest = read_manifest(output) or {}
        return Prepared(directory=output, reused=True, manifest=manifest, warnings=list_warnings(manifest))
    check_replaceable(output)
    with sigterm_interrupts(), directory_aside(output) as staging:
        preparation = _Preparation(settings, source, staging, progress)
        manifest = preparation.run()
        manifest["source"] = fingerprint
        manifest["files"] = {path.name: sha256_of(path) for path in sorted(staging.iterdir())}
        write_atomically(staging / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
    return Prepared(
        directory=output,
        reused=False,
        manifest=manifest,
        warnings=list_warnings(manifest),
        seconds=preparation.progress.seconds,
    )


class _Preparation:
    """One run of the pipeline, into an empty directory."""

    def __init__(
        self, settings: DataSettings, source: LogSource, directory: Path, progress: Progress
    ) -> None:
        self._settings = settings
        self._source = source
        self._directory = directory
        self.progress = PrepareProgress(progress, settings.semantic_ids, source.estimated_rows())
        self._counts: dict[str, Any] = {}
        self._noted: Counter[str] = Counter()  # of the log: what was set apart or left out, and is no fault
        table = settings.source if isinstance(settings.source, TableSource) else None
        self._unclicked_are_impressions = table is not None and table.unclicked == "impression"
        self._time_unit: TimeUnit | None = None  # what the timestamps turn out to count

    def run(self) -> dict[str, Any]:
        log, catalogue, users = self._clean_and_sort()
        cuts = self._cuts()
        popularity, counts = self._split(cuts)
        codes, level_sizes = self._semantic_ids(popularity, counts)
        self._write_catalogue(codes)
        self.progress.finish()
        judged = (log, catalogue) if self._user_attributes is None else (log, catalogue, users)
        return {
            "format": FORMAT,
            "name": self._settings.name,
            "settings": self._settings.model_dump(mode="json"),
            "counts": self._counts,
            "level_sizes": list(level_sizes),
            "time_cuts": None if cuts is None else asdict(cuts),
            "rejected": {rejections.table: rejections.summary() for rejections in judged},
            "log": {
                "time_unit": self._time_unit,
                "files_left_out": list(self._source.left_out),
                "unread_histories": list(find_unread_histories(self._source)),
                "catalogue_ids_with_outer_spaces": catalogue.noted["ids_with_outer_spaces"],
                **dict(sorted((log.noted + self._noted).items())),
            },
            "versions": {name: metadata.version(name) for name in _LIBRARIES},
        }

    def _clean_and_sort(self) -> tuple[Rejections, Rejections, Rejections]:
        """What was refused of the log, the catalogue and the users."""
        rejected = self._directory / REJECTED
        with rejected.open("w", encoding="utf-8") as sink:
            log, catalogue, users = (
                Rejections(table, sink) for table in ("interactions", "catalogue", "users")
            )
            self._user_attributes = read_user_attributes(self._source, users)
            users.check(self._settings.max_bad_share)
            items = read_items(self._source, catalogue)
            catalogue.check(self._settings.max_bad_share)
            self._fits = items is None or items.codes is None
            index = ItemIndex(items.ids if items else None)
            cleaner = LogCleaner.of(self._settings, log, index.contains if items else None)
            buckets = self._partition(index, cleaner, log)
            if log.rows == 0:
                raise DataError(f"the log is empty: {_named(self._source)} holds no row")
            log.check(self._settings.max_bad_share)
            ids, item_rows = index.order_rows()
            self._items = items or Items.bare(ids)
            self.progress.know(rows=log.rows, items=len(ids), fits=self._fits)
            self.progress.begin("sort")
            self._write_interactions(buckets, item_rows, log)
        self._time_unit = cleaner.time_unit
        if not log.bad + catalogue.bad + users.bad:
            rejected.unlink()
        return log, catalogue, users

    def _partition(self, index: ItemIndex, cleaner: LogCleaner, log: Rejections) -> UserBuckets:
        buckets = UserBuckets(self._directory, self._source.estimated_rows())
        try:
            for batch in self._source.batches():
                rows, numbers = cleaner.clean_rows(batch)
                buckets.add(rows, index, batch.file, numbers)
                self.progress.know(items=len(index), fits=self._fits)
                self.progress.advance(len(batch.rows), {"rejected": float(log.bad)})
        finally:
            buckets.close()
        return buckets

    def _write_interactions(self, buckets: UserBuckets, item_rows: np.ndarray, log: Rejections) -> None:
        users = interactions = dropped_users = dropped_rows = 0
        user_id = ""  # any
        # A log that does not say how it was shown is prepared to the same bytes as ever.
        named = [field for field in EXPOSURE if field.name in self._source.columns]
        schema = pa.schema([*INTERACTIONS, *named])
        outcomes = dict.fromkeys((*OUTCOMES, *(field.name for field in named)), 0)
        rules = EventRules(
            min_interactions=self._settings.min_interactions,
            unclicked_are_impressions=self._unclicked_are_impressions,
            has_times="timestamp" in self._source.columns,
        )
        with (
            pq.ParquetWriter(self._directory / "users.parquet", self._user_schema) as user_file,
            pq.ParquetWriter(self._directory / "interactions.parquet", schema) as interaction_file,
            pq.ParquetWriter(self._directory / IMPRESSIONS_FILE, IMPRESSIONS) as impression_file,
        ):
            for bucket in buckets.read_sorted(item_rows, rules):
                self._noted += bucket.noted
                for bad in bucket.refused:
                    log.add(bad)
                impression_file.write_table(bucket.impressions)
                dropped_users += bucket.dropped_users
                dropped_rows += bucket.dropped_rows
                rows = bucket.interactions.num_rows
                if rows:
                    user_file.write_table(self._user_table(bucket.user_ids))
                    # One row group holds whole users: what follows works on one row group at a time.
                    interaction_file.write_table(
                        bucket.interactions.select(schema.names), row_group_size=rows
                    )
                    for name in outcomes:
                        outcomes[name] += rows - bucket.interactions.column(name).null_count
                users += len(bucket.user_ids)
                user_id = user_id or next(iter(bucket.user_ids), "")
                interactions += rows
                self.progress.advance(rows + bucket.dropped_rows, {"users": float(users)})
        log.check(self._settings.max_bad_share)
        if not self._noted["impressions"]:
            (self._directory / IMPRESSIONS_FILE).unlink()
        if users == 0:
            raise DataError(
                f"no user of {_named(self._source)} has data.min_interactions "
                f"{self._settings.min_interactions} usable interactions ({dropped_users} users with "
                f"{dropped_rows} interactions have fewer{self._set_apart()})"
            )
        self._check_columns(outcomes, users, user_id)
        self._counts = {
            "users": users,
            "items": len(self._items.ids),
            "interactions": interactions,
            "interactions_with": outcomes,
            "users_below_min_interactions": dropped_users,
            "interactions_below_min_interactions": dropped_rows,
        }

    @property
    def _user_schema(self) -> pa.Schema:
        return USERS if self._user_attributes is None else KNOWN_USERS

    def _user_table(self, ids: list[str]) -> pa.Table:
        columns: dict[str, Any] = {"user_id": ids}
        if self._user_attributes is not None:
            columns["attributes"] = [self._user_attributes.get(user, []) for user in ids]
            self._noted["users_without_attributes"] += sum(not texts for texts in columns["attributes"])
        return pa.table(columns, schema=self._user_schema)

    def _check_columns(self, outcomes: dict[str, int], users: int, user_id: str) -> None:
        """Refuse what settings name and the log has not; `outcomes` are the interactions that have each."""
        log, columns = _named(self._source), self._source.columns
        check_reward(self._settings, outcomes, self._noted["impressions"], log)
        check_exposure({f.name: outcomes[f.name] for f in EXPOSURE if f.name in outcomes}, columns, log)
        if self._user_attributes is not None and isinstance(self._settings.source, TableSource):
            known = users - self._noted["users_without_attributes"]
            check_users(self._settings.source, self._user_attributes, known, user_id)

    def _set_apart(self) -> str:
        """What of the log is no interaction, to go on a sentence with."""
        repeated = self._noted["repeated_events"]
        shown = self._noted["impressions"] + self._noted["impressions_below_min_interactions"]
        return f", {repeated} rows repeat an event" * (repeated > 0) + f", {shown} rows have no click" * (
            shown > 0
        )

    def _row_groups(self, columns: list[str]) -> Iterator[pa.Table]:
        with pq.ParquetFile(self._directory / "interactions.parquet", memory_map=True) as file:
            for group in range(file.num_row_groups):
                yield file.read_row_group(group, columns=columns, use_threads=False)

    def _cuts(self) -> TimeCuts | None:
        split = self._settings.split
        if not isinstance(split, GlobalTime) and not (isinstance(split, FreshLogs) and split.by == "time"):
            return None
        return find_cuts(
            lambda: (table.column(0).to_numpy() for table in self._row_groups(["timestamp"])),
            split,
            self._time_unit,
        )

    def _split(self, cuts: TimeCuts | None) -> tuple[np.ndarray, tuple[PairCounts, ...]]:
        """Write the examples. Count how often each item stands in the pretrain part `[N]`, and, where codes
        are to be fitted, what stands together there and what has users in common.
        """
        popularity = np.zeros(len(self._items.ids), dtype=np.int64)
        counts: tuple[PairCounts, ...] = ()
        self.progress.begin("split")
        if self._fits:
            near = CoOccurrence(len(popularity), self._settings.semantic_ids.window)
            counts = (near, SharedUsers(len(popularity)))
        examples, repeats = np.zeros(len(SPLITS), dtype=np.int64), np.zeros(len(SPLITS), dtype=np.int64)
        late = 0
        with pq.ParquetWriter(self._directory / "examples.parquet", EXAMPLES) as file:
            for table in self._row_groups(["user", "item", "timestamp", "part"]):
                user, item, timestamp = (table.column(i).to_numpy() for i in range(3))
                _, starts = np.unique(user, return_index=True)
                offsets = np.append(starts, len(user))
                if isinstance(self._settings.split, LoggedSplit):
                    labels = table.column("part").to_numpy()
                    late += count_late_rows(offsets, timestamp)
                else:
                    labels = label_splits(offsets, timestamp, self._settings.split, cuts)
                positions = positions_of(offsets)
                own = labels == PRETRAIN
                popularity += np.bincount(item[own], minlength=len(popularity))
                for pairs in counts:
                    pairs.add(user[own], item[own])
                kept = positions > 0
                examples += np.bincount(labels[kept], minlength=len(SPLITS))
                repeats += np.bincount(
                    labels[_seen_before(user, item, len(self._items.ids))], minlength=len(SPLITS)
                )
                split = pa.DictionaryArray.from_arrays(pa.array(labels[kept]), list(SPLITS))
                columns = [pa.array(user[kept]), pa.array(positions[kept]), split]
                file.write_table(pa.table(columns, schema=EXAMPLES), row_group_size=max(1, int(kept.sum())))
                self.progress.advance(len(user), {"examples": float(examples.sum())})
        self._counts["pretrain_interactions"] = int(popularity.sum())
        self._counts["interactions_before_an_earlier_part"] = late
        self._counts["examples"] = dict(zip(SPLITS, examples.tolist(), strict=True))
        self._counts["repeated_targets"] = dict(zip(SPLITS, repeats.tolist(), strict=True))
        self._counts["items_without_pretrain_interactions"] = int((popularity == 0).sum())
        self._check_splits()
        return popularity, counts

    def _check_splits(self) -> None:
        optional = () if isinstance(self._settings.split, FreshLogs) else ("fresh",)
        for split, count in self._counts["examples"].items():
            if count == 0 and split not in optional:
                raise DataError(
                    f"the {split} split of {_named(self._source)} has no example (an interaction with a "
                    f"history): {self._counts['users']} users have {self._counts['interactions']} "
                    f"interactions. Give a longer log, or change data.split"
                )

    def _semantic_ids(
        self, popularity: np.ndarray, counts: tuple[PairCounts, ...]
    ) -> tuple[np.ndarray, tuple[int, ...]]:
        settings, items = self._settings.semantic_ids, self._items
        fitted: tuple[int, ...] = ()
        codes = items.codes
        if codes is None:
            attributes, names = attribute_matrix(items.attributes)
            mixed = mix_counts(counts[0].matrix(), counts[1].matrix(), settings.user_share)
            self.progress.begin("vectors")
            report = partial(self.progress.advance, fields={"items": float(len(items.ids))})
            vectors = item_vectors(mixed, attributes, names, items.embedding, settings, report)
            self.progress.begin("codes")
            fitted = settings.level_sizes or fitting_level_sizes(len(vectors))
            codes = residual_kmeans(vectors, fitted, settings, report)
        unique = resolve_collisions(codes, popularity)
        self._counts["items_with_shared_codes"] = _sharing(codes)
        return unique, level_sizes_of(unique, fitted)

    def _write_catalogue(self, codes: np.ndarray) -> None:
        offsets = pa.array(np.arange(0, codes.size + 1, codes.shape[1], dtype=np.int32))
        columns = [
            pa.array(self._items.ids, pa.string()),
            pa.ListArray.from_arrays(offsets, pa.array(codes.reshape(-1))),
            pa.array(self._items.attributes, pa.list_(pa.string())),
            pa.array(self._items.titles, pa.string()),
        ]
        pq.write_table(pa.table(columns, schema=CATALOGUE), self._directory / "catalogue.parquet")


def _seen_before(user: np.ndarray, item: np.ndarray, items: int) -> np.ndarray:
    """bool [n]: the user has consumed the item at an earlier position."""
    _, first = np.unique(user.astype(np.int64) * items + item, return_index=True)
    repeated = np.ones(len(user), dtype=bool)
    repeated[first] = False
    return repeated


def _sharing(codes: np.ndarray) -> int:
    _, inverse, counts = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
    return int((counts[inverse.reshape(-1)] > 1).sum())


def _named(source: LogSource) -> str:
    first = str(source.files[0].path)
    return first if len(source.files) == 1 else f"{first} and {len(source.files) - 1} more files"
