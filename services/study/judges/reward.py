"""A reward model that no arm has learned from, as a judge of lists and of what a policy would say next.

It is an ensemble of the built-in ranker's sequence models, with seeds of its own, fitted on *all* logs, those
of test too, while an arm's ranker knows them until the fresh part alone. Its reward of an item is the logged
reward that it predicts (rating, dwell seconds). [ours]

    judge         mean over the top ten, and over the members
    judge_spread  deviation over the members (ddof 1) of the mean over the top ten
    judge_return  sum over the steps s = 0, 1, ... of discount^s times the reward of the policy's first item,
                  each generated after the one before was added to the history
    true_dwell    mean over the top ten of the dwell seconds to expect of a click, where the reward is that
                  and the truth is known

It shares its kind, and the early logs, with the ranker whose score is the reward, so it may share its
mistakes. Where the truth is known, judge less truth says how much.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from sluice.catalog.data.dataset import Dataset, Examples
from sluice.catalog.data.splits import SPLITS
from sluice.catalog.decoding import Decoding
from sluice.catalog.errors import ConfigError
from sluice.catalog.fingerprint import fingerprint_catalogue
from sluice.catalog.trie.vocabulary import Vocabulary
from sluice.learner.batches.collate import collate_histories
from sluice.learner.decoding.tree import TreeDecoder
from sluice.learner.evaluation.evaluate import TOP, UserResults
from sluice.learner.policy.policy import load_policy
from sluice.learner.ranker.contract import ask_ranker
from sluice.learner.ranker.fit import fit_ensemble
from sluice.learner.ranker.known_logs import KnownLogs
from sluice.learner.ranker.model import EnsembleRanker
from sluice.learner.ranker.settings import RankerSettings
from sluice.services.study.judges.settings import JudgeSettings
from sluice.services.study.judges.truth import TrueClickThrough

JUDGE, SPREAD, RETURN, TRUE_DWELL = "judge", "judge_spread", "judge_return", "true_dwell"
_SEED = 9_000  # the judge's members have other weights than any ranker of the study
_BATCH = 64
_BEAMS = 4  # of a step behind the first


def fit_judge(
    dataset: Dataset,
    ranker: RankerSettings,
    judge: JudgeSettings,
    seed: int,
    directory: Path,
    progress: Callable[[int, int, dict[str, float]], None],
) -> None:
    """Fit the members and leave them in `directory`; `ranker` says how large they are, and how they learn.

    Raises:
        ConfigError: the log has no reward to predict.
    """
    column = dataset.reward_column
    if column is None:
        raise ConfigError("the judge predicts the logged reward, and data.reward is none: name a column")
    settings = ranker.model_copy(update={"users": "all", "scores": "next_item"})
    if settings.head_weights[column] == 0:
        raise ConfigError(f"the judge predicts {column}, and ranker.{column}_weight is 0: raise it")
    logs = KnownLogs.until(dataset, SPLITS[-1])
    fit_ensemble(logs, settings, judge.members, _SEED + seed, progress).save(directory)


class RewardJudge:
    """Judges the lists of a policy on a data set."""

    def __init__(
        self, directory: Path, dataset: Dataset, settings: JudgeSettings, truth: TrueClickThrough | None
    ) -> None:
        """`directory` is what `fit_judge` left; `truth` is of the data set, where it is known."""
        ensemble = EnsembleRanker.load(directory, dataset)
        limit = dataset.settings.max_history
        self._members = [
            EnsembleRanker([member], ensemble.version, limit, dataset.reward_column)
            for member in ensemble.members
        ]
        self._dataset, self._settings, self._truth = dataset, settings, truth

    def __call__(self, policy: Path, results: UserResults) -> Mapping[str, np.ndarray]:
        """The columns of the module's docstring, float64 `[n]`, of the examples of `results`.

        A place without an item counts as 0. `policy` is a policy directory, which `results` is of.
        """
        histories = self._histories(results)
        of_lists = np.nan_to_num(self._rewards(histories, results.items[:, :TOP], results.users)).mean(axis=2)
        columns = {JUDGE: of_lists.mean(axis=0), SPREAD: of_lists.std(axis=0, ddof=1)}
        if self._settings.steps > 1:
            columns[RETURN] = self._returns(policy, results, histories)
        if self._truth is not None and self._dataset.reward_column == "dwell_seconds":
            examples = Examples(users=results.users, positions=results.positions)
            seconds = self._truth.dwell_of_items(self._dataset, examples, results.items[:, :TOP])
            columns[TRUE_DWELL] = seconds.mean(axis=1)
        return columns

    def _histories(self, results: UserResults) -> list[np.ndarray]:
        limit = self._dataset.settings.max_history
        return [
            self._dataset.history(user, position, limit)
            for user, position in zip(results.users.tolist(), results.positions.tolist(), strict=True)
        ]

    def _rewards(self, histories: list[np.ndarray], items: np.ndarray, users: np.ndarray) -> np.ndarray:
        """float64 `[members, n, m]` of item rows int32 `[n, m]`, NaN where there is no item."""
        batches = [slice(first, first + _BATCH) for first in range(0, len(histories), _BATCH)]
        parts = [
            np.stack(
                [
                    ask_ranker(member, histories[rows], items[rows], users[rows]).values
                    for member in self._members
                ]
            )
            for rows in batches
        ]
        rewards: np.ndarray = np.concatenate(parts, axis=1).astype(np.float64)
        return rewards

    def _returns(self, directory: Path, results: UserResults, histories: list[np.ndarray]) -> np.ndarray:
        dataset = self._dataset
        policy = load_policy(directory, fingerprint_catalogue(dataset.item_ids, dataset.codes))
        policy.model.float().eval()
        vocabulary = Vocabulary.of(dataset.codes, policy.layout)
        decoder = TreeDecoder(policy.model, vocabulary)
        seen = [
            dataset.seen(user, position) if dataset.settings.exclude_seen else np.empty(0, dtype=np.int32)
            for user, position in zip(results.users.tolist(), results.positions.tolist(), strict=True)
        ]
        items, total = results.items[:, 0], np.zeros(len(histories))
        for step in range(self._settings.steps):
            if step > 0:
                items = self._next_items(decoder, vocabulary, histories, seen)
            rewards = np.nan_to_num(self._rewards(histories, items[:, None], results.users))[:, :, 0]
            total += self._settings.discount**step * rewards.mean(axis=0)
            histories = [_appended(row, item, dataset) for row, item in zip(histories, items, strict=True)]
            if dataset.settings.exclude_seen:
                pairs = zip(seen, items[:, None], strict=True)
                seen = [np.append(row, item[item >= 0]) for row, item in pairs]
        return total

    def _next_items(
        self,
        decoder: TreeDecoder,
        vocabulary: Vocabulary,
        histories: list[np.ndarray],
        seen: list[np.ndarray],
    ) -> np.ndarray:
        decoding = Decoding(kind="beam", candidates=_BEAMS, constrained=True)
        found = []
        for first in range(0, len(histories), _BATCH):
            rows = slice(first, first + _BATCH)
            prefix = decoder.prefill(*collate_histories(histories[rows], vocabulary))
            beams = decoder.beams(prefix, decoding, seen[rows])
            best = vocabulary.trie.lookup(beams.tokens_BWL)[:, 0]
            found.append(np.where(np.isfinite(beams.log_probs_BW[:, 0]), best, -1))
        items: np.ndarray = np.concatenate(found).astype(np.int32)
        return items


def _appended(history: np.ndarray, item: int, dataset: Dataset) -> np.ndarray:
    if item < 0:
        return history
    longer: np.ndarray = np.append(history, np.int32(item))[-dataset.settings.max_history :]
    return longer


def keep_high_rewards(dataset: Dataset, results: UserResults) -> UserResults:
    """The results of those users whose mean logged reward in them is above the median of the users.

    Raises:
        ConfigError: the examples have no logged reward, or nobody is above the median.
    """
    rewards = dataset.logged_rewards(results.users, results.positions)
    if rewards is None or np.isnan(rewards).all():
        raise ConfigError("judge.high_rewards needs logged rewards, and these examples have none")
    known = ~np.isnan(rewards)
    users, owner = np.unique(results.users[known], return_inverse=True)
    means = np.bincount(owner, weights=rewards[known]) / np.bincount(owner)
    kept = np.isin(results.users, users[means > np.median(means)])
    if not kept.any():
        raise ConfigError(
            f"judge.high_rewards keeps nobody: more than half of the users have the highest mean reward, "
            f"{means.max():g}. Set it to false"
        )
    fields = {name: getattr(results, name)[kept] for name in UserResults.__dataclass_fields__}
    return replace(results, **fields)
