"""Trust in a ranker for the user of a prompt: how well it placed what the user took last.

    trust(u, prompt) = mean of place(u, i) over the last n logged items i before the prompt

Each place is as of before its item: the ranker is asked with the history that ends there. The first item of a
user has no history, and so no place. A prompt with fewer places than `at_least` has no trust. [ours]

Two rankers are asked, each about the users that it was fitted without (`sluice.learner.trust.halves`).

Definition: docs/algorithms.md, Gate by user.
"""

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np

from sluice.catalog.data.dataset import Dataset, Examples
from sluice.learner.gate.settings import TrustSettings
from sluice.learner.ranker.contract import Ranker, ask_score, check_scores
from sluice.learner.ranker.known_logs import KnownLogs
from sluice.learner.ranker.settings import RankerSettings
from sluice.learner.trust.halves import HALVES, half_of, open_halves
from sluice.learner.trust.places import OthersItems, place_of, seed_of

REMEMBERED = 200_000  # places, about 50 MB
_BATCH = 256  # histories that the ranker is asked about at a time

_Key = tuple[str, int, int]  # the ranker's version, user, position


class TrustMeter:
    """Measures trust, and remembers places: the next prompt of a user shares most of them.

    Belongs to one thread at a time, since rankers do.
    """

    def __init__(
        self,
        dataset: Dataset,
        rankers: tuple[Ranker, ...],
        settings: TrustSettings,
        *,
        until: str,
        remember: int = REMEMBERED,
    ) -> None:
        """Places are remembered up to `remember`, the newest.

        Args:
            dataset: has the users' sequences.
            rankers: one for each half of the users, that was fitted without it.
            settings: how many items and others.
            until: a part of `sluice.catalog.data.splits.SPLITS`: the items of others are drawn from the logs
                until its end, and what a user took there is none of them.
            remember: places.
        """
        assert len(rankers) == HALVES
        logs = KnownLogs.until(dataset, until)
        self._dataset, self._rankers, self._settings = dataset, rankers, settings
        self._others, self._known = OthersItems(logs.item_counts()), logs.lengths
        self._places: OrderedDict[_Key, float] = OrderedDict()
        self._remember = remember
        self.measured = 0  # places that the rankers were asked for, so far
        self.remembered = 0  # places that needed no asking

    def measure(self, examples: Examples) -> np.ndarray:
        """Trust float32 `[B]` of the prompts before the examples, NaN where a user has too few logged items.

        Raises:
            RankerError: a score breaks the contract of rankers.
        """
        pairs = list(zip(examples.users.tolist(), examples.positions.tolist(), strict=True))
        keys = [
            [self._key(user, item) for item in range(max(1, position - self._settings.items), position)]
            for user, position in pairs
        ]
        places = self._places_of(list(dict.fromkeys(key for row in keys for key in row)))
        trust = np.full(len(pairs), np.nan, dtype=np.float32)
        for row, own in enumerate(keys):
            known = [place for key in own if not np.isnan(place := places[key])]
            if len(known) >= self._settings.at_least:
                trust[row] = np.mean(known)
        return trust

    def _key(self, user: int, position: int) -> _Key:
        half = half_of(self._dataset.user_ids[user])
        return self._rankers[half].version, user, position

    def _places_of(self, keys: list[_Key]) -> dict[_Key, float]:
        """The places of distinct keys."""
        places = {key: self._places[key] for key in keys if key in self._places}
        self.remembered += len(places)
        self.measured += len(keys) - len(places)
        missing: list[list[_Key]] = [[] for _ in self._rankers]
        # Like lengths together, so that little of a batch is padding.
        for key in sorted(keys, key=lambda key: key[2]):
            if key not in places:
                missing[half_of(self._dataset.user_ids[key[1]])].append(key)
        for ranker, own in zip(self._rankers, missing, strict=True):
            for first in range(0, len(own), _BATCH):
                batch = own[first : first + _BATCH]
                places |= zip(batch, self._ask(ranker, batch), strict=True)
        for key in keys:
            self._places[key] = places[key]
            self._places.move_to_end(key)
        while len(self._places) > self._remember:
            self._places.popitem(last=False)
        return places

    def _ask(self, ranker: Ranker, keys: list[_Key]) -> list[float]:
        """The places of logged items, each as of before itself."""
        dataset, count = self._dataset, self._settings.others
        histories, candidates = [], np.empty((len(keys), 1 + count), dtype=np.int32)
        for row, key in enumerate(keys):
            _, user, position = key
            histories.append(dataset.history(user, position, dataset.settings.max_history))
            candidates[row, 0] = dataset.target(user, position)
            own = dataset.seen(user, max(position + 1, int(self._known[user])))
            candidates[row, 1:] = self._others.draw(own, count, seed_of(*key))
        users = np.array([user for _, user, _ in keys])
        scores = check_scores(candidates, ask_score(ranker, histories, candidates, users))
        places: list[float] = place_of(scores).tolist()
        return places


def open_meter(
    ranker: Ranker,
    *,
    trust: TrustSettings,
    settings: RankerSettings,
    directory: str | Path,
    dataset_factory: Callable[[], Dataset],
    remember: int = REMEMBERED,
) -> TrustMeter:
    """The meter of a run, for a process that asks `ranker`; `directory` holds the ranker's halves.

    `remember` 0 makes the last bits of a place depend on what it is asked for with alone.

    Raises:
        RankerError: a half cannot be opened.
    """
    dataset = dataset_factory()
    rankers = open_halves(ranker, settings, directory, dataset)
    return TrustMeter(dataset, rankers, trust, until=settings.until, remember=remember)
