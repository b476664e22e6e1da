"""The last days of a world's log as rounds for off-policy estimates, beside what is true of them.

What is estimated (docs/studies/ab.md): the log's slots stay, and each is filled with an item that is drawn
uniformly from the target policy's slate for that user and day. A click hangs on user, item and place alone
(the item-position model of Li, Abbasi-Yadkori, Kveton, Muthukrishnan, Vinay and Wen, KDD 2018, arXiv
1804.10488), so a slot's propensity is all that is needed of the logger.

n impressions of C visits, S items of a slate.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sluice.catalog.data.dataset import Dataset
from sluice.catalog.errors import ConfigError, DataError
from sluice.catalog.simulator.clicks import examination
from sluice.catalog.simulator.items import SEGMENTS
from sluice.catalog.simulator.sessions import START, STEP_SECONDS
from sluice.catalog.simulator.tables import read_log
from sluice.catalog.simulator.truth import Truth
from sluice.services.ab.click_model import Shown, predict_clicks
from sluice.services.ab.estimates import Rounds
from sluice.services.ab.serve import Ids
from sluice.services.ab.slates import NO_ITEM, SlateMaker
from sluice.services.progress import Progress

_COLUMNS = ["user_id", "item_id", "timestamp", "position", "propensity", "click"]


@dataclass(frozen=True, kw_only=True)
class LoggedVisits:
    """Slates of the log, of users whose every impression is logged."""

    users: np.ndarray  # int64 [C], rows of the data set
    histories: np.ndarray  # int64 [C], how many interactions the user had before that day
    steps: np.ndarray  # int64 [C]
    visit: np.ndarray  # int64 [n], which of the C an impression is of
    items: np.ndarray  # int64 [n], rows
    places: np.ndarray  # int64 [n], from 1
    propensity: np.ndarray  # float64 [n]
    clicks: np.ndarray  # float64 [n]

    def take(self, chosen: np.ndarray) -> "LoggedVisits":
        """The visits that `chosen`, bool [C], names, and their impressions."""
        kept = chosen[self.visit]
        number = np.cumsum(chosen) - 1
        return LoggedVisits(
            users=self.users[chosen],
            histories=self.histories[chosen],
            steps=self.steps[chosen],
            visit=number[self.visit[kept]],
            items=self.items[kept],
            places=self.places[kept],
            propensity=self.propensity[kept],
            clicks=self.clicks[kept],
        )


def is_test_window(truth: Truth, dataset: Dataset, days: int) -> bool:
    """Whether the last `days` steps of the log are of the test part.

    False where the data are not split at a moment: then no day is of one part.

    Raises:
        ConfigError: they begin before the test part, or before the steps whose truth was kept.
    """
    world = truth.world
    end, begins = START + world.steps * STEP_SECONDS, world.steps - days
    if begins < world.truth_from:
        raise ConfigError(
            f"--log-days is {days}, and the truth of the world {world.name} is kept of the last "
            f"{world.steps - world.truth_from} days of its log: give at most so many"
        )
    cuts = dataset.manifest["time_cuts"]
    if cuts is None:
        return False
    whole_days = (end - cuts["test_from"]) // STEP_SECONDS
    if days > whole_days:
        raise ConfigError(
            f"--log-days is {days}, and of the log's last days {whole_days} are wholly of the test part "
            "(data.split): policies may have learned from the others. Give at most so many, or a split with "
            "a longer test part"
        )
    return True


def read_visits(
    directory: Path, truth: Truth, dataset: Dataset, ids: Ids, days: int, served: np.ndarray
) -> LoggedVisits:
    """The visits of the last `days` steps of the log in `directory`, of those who had a history before.

    `served` are the rows of users to take. Users of segment B are left out unless all their impressions are
    logged: their clicks are likelier to be logged than the rest, so a slate of theirs that happens to be
    logged whole is one of many clicks.

    Raises:
        DataError: no user is left.
    """
    first = truth.world.steps - days
    since = START + first * STEP_SECONDS
    table = read_log(directory, _COLUMNS, ("timestamp", ">=", since))
    columns = {name: table[name].to_numpy() for name in _COLUMNS}
    row_of = np.full(truth.world.users.count, -1)
    row_of[ids.users] = np.arange(len(ids.users))
    users, steps = row_of[columns["user_id"]], truth.steps_of(columns["timestamp"])
    pairs, visit = np.unique(np.stack([users, steps]), axis=1, return_inverse=True)
    owners, days_of = pairs
    known = np.isin(owners, served)
    if truth.world.segment_b.leak < 1:
        known &= truth.segment[ids.users[owners]] == SEGMENTS.index("A")
    histories = np.array(
        [
            np.searchsorted(
                dataset.timestamps[dataset.offsets[user] : dataset.offsets[user + 1]],
                START + step * STEP_SECONDS,
            )
            for user, step in zip(owners.tolist(), days_of.tolist(), strict=True)
        ]
    )
    visits = LoggedVisits(
        users=owners,
        histories=histories,
        steps=days_of,
        visit=visit.ravel(),
        items=ids.item_rows[columns["item_id"]],
        places=columns["position"].astype(np.int64),
        propensity=columns["propensity"].astype(np.float64),
        clicks=columns["click"].astype(np.float64),
    ).take(known & (histories > 0))
    if not len(visits.users):
        raise DataError(
            f"in the last {days} days of the log in {directory} none of the {len(served)} users of the test "
            "has all impressions logged, and off-policy estimates need those without a click: simulate with "
            "segment_b.share below 1 or segment_b.leak 1, or take more --users"
        )
    return visits


def judge_visits(
    maker: SlateMaker,
    truth: Truth,
    dataset: Dataset,
    ids: Ids,
    visits: LoggedVisits,
    progress: Progress,
) -> tuple[Rounds, float]:
    """The rounds of a policy, and what its value truly is: see the module."""
    slates = _fill(maker, truth, dataset, ids, visits, progress)
    there = slates != NO_ITEM
    chances = there / there.sum(axis=1, keepdims=True)
    shown = Shown(
        users=visits.users[visits.visit],
        histories=visits.histories[visits.visit],
        items=visits.items,
        places=visits.places,
        clicks=visits.clicks,
    )
    offered = slates[visits.visit]
    same = offered == visits.items[:, None]
    # the columns: the slate's places, and one more for a shown item that is not in the slate
    action = np.where(same.any(axis=1), same.argmax(axis=1), slates.shape[1])
    rounds = Rounds(
        users=shown.users,
        action=action,
        reward=visits.clicks,
        propensity=visits.propensity,
        target=np.pad(chances[visits.visit], ((0, 0), (0, 1))),
        predicted=predict_clicks(dataset, shown, np.concatenate([offered, visits.items[:, None]], axis=1)),
    )
    liked = truth.click_probability(ids.users[visits.users], visits.steps, ids.to_items(slates))
    mean = (chances * liked).sum(axis=1)
    looked_at = examination(truth.world.click, int(visits.places.max()))[visits.places - 1]
    return rounds, float((mean[visits.visit] * looked_at).mean())


def _fill(
    maker: SlateMaker, truth: Truth, dataset: Dataset, ids: Ids, visits: LoggedVisits, progress: Progress
) -> np.ndarray:
    """The policy's slates for the visits, int32 [C, S] item rows."""
    histories, excluded, finished = [], [], 0
    for user, before, step in zip(
        visits.users.tolist(), visits.histories.tolist(), visits.steps.tolist(), strict=True
    ):
        history = dataset.items_of(user)[:before]
        gone = ids.rows_of((truth.first_step > step) | (truth.last_step < step))
        histories.append(history)
        excluded.append(np.concatenate([history, gone]) if dataset.settings.exclude_seen else gone)

    def advance(count: int) -> None:
        nonlocal finished
        finished += count
        progress(finished, len(histories), {})

    return maker.make(histories, excluded, advance)
