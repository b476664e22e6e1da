"""Several models as one ranker: a weighted sum of their scores.

    score(x, i) = sum over parts p of w_p * s_p(x, i)

The weights are those of a conditional logit (McFadden 1974) of what users took next, on logs that the parts
were not fitted on, so that a part that remembers its logs does not win for that. They are at least 0. So the
score is a log-odds, up to a term of the history alone.

Definition: docs/algorithms.md, Built-in ranker.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from sluice.catalog.data.dataset import Dataset, Examples
from sluice.catalog.errors import RankerError
from sluice.catalog.files import sha256_of, write_atomically
from sluice.learner.ranker.contract import ask_score
from sluice.learner.ranker.item_models import Ease, ItemKNN
from sluice.learner.ranker.model import EnsembleRanker, SequenceRanker
from sluice.learner.ranker.output import RankerOutput
from sluice.learner.ranker.settings import EaseSettings, ItemKnnSettings

FILE = "stack.json"

_EXAMPLES = 4000  # that weights are fitted on, at most
_RIVALS = 2000  # items that an example's target is compared with, at most
_BATCH = 128

RankerPart = EnsembleRanker | Ease | ItemKNN


class StackedRanker:
    """The weighted sum of the parts' scores."""

    def __init__(self, parts: Mapping[str, RankerPart], weights: Mapping[str, float], version: str) -> None:
        """`parts` and their `weights` by the same names; `version` names what was fitted."""
        self.parts = dict(parts)
        self.weights = dict(weights)
        self.version = version

    @property
    def sequence(self) -> EnsembleRanker | None:
        """The part that is a sequence model."""
        return cast(EnsembleRanker | None, self.parts.get("sequence"))

    @property
    def members(self) -> list[SequenceRanker]:
        """The networks of the sequence model."""
        return [] if self.sequence is None else self.sequence.members

    @property
    def heads(self) -> list[str]:
        """The outcomes that the sequence model predicts."""
        return [] if self.sequence is None else self.sequence.heads

    @property
    def needs_users(self) -> bool:
        """Whether the sequence model has to be told whose a history is."""
        return self.sequence is not None and self.sequence.needs_users

    def score(
        self, histories: list[np.ndarray], candidates: np.ndarray, users: np.ndarray | None = None
    ) -> np.ndarray:
        """See `UserRanker.score`."""
        total = sum(
            self.weights[name] * score_part(part, histories, candidates, users).astype(np.float64)
            for name, part in self.parts.items()
        )
        return np.asarray(total, dtype=np.float32)

    def predict(
        self, histories: list[np.ndarray], candidates: np.ndarray, users: np.ndarray | None = None
    ) -> RankerOutput:
        """The score, the deviation that the members of the sequence model give it, and the logged reward that
        they predict.
        """
        scores = self.score(histories, candidates, users)
        if self.sequence is None:
            return RankerOutput.of(scores)
        known = self.sequence.predict(histories, candidates, users)
        spread = (self.weights["sequence"] * known.spread).astype(np.float32)
        return RankerOutput.of(scores, spread=spread, values=known.values)

    def expected_outcomes(
        self, histories: list[np.ndarray], items: np.ndarray, users: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """See `EnsembleRanker.expected_outcomes`."""
        return {} if self.sequence is None else self.sequence.expected_outcomes(histories, items, users)

    def save(self, directory: Path) -> None:
        """Write the parts and what is needed to load them."""
        directory.mkdir(parents=True, exist_ok=True)
        settings = {}
        for name, part in self.parts.items():
            part.save(directory)
            if isinstance(part, Ease | ItemKNN):
                settings[name] = part.settings.model_dump(mode="json")
        facts = {"version": self.version, "weights": self.weights, "settings": settings}
        write_atomically(directory / FILE, json.dumps(facts, indent=1))

    @classmethod
    def load(cls, directory: str | Path, dataset: Dataset) -> "StackedRanker":
        """The ranker that `save` wrote.

        Raises:
            RankerError: the directory holds no such ranker, or one for another catalogue.
        """
        place = Path(directory)
        try:
            facts = json.loads((place / FILE).read_text())
            settings = facts["settings"]
            parts: dict[str, RankerPart] = {}
            if "sequence" in facts["weights"]:
                parts["sequence"] = EnsembleRanker.load(place, dataset)
            if "ease" in settings:
                parts["ease"] = Ease.load(place, EaseSettings(**settings["ease"]))
            if "itemknn" in settings:
                parts["itemknn"] = ItemKNN.load(place, ItemKnnSettings(**settings["itemknn"]))
        except (OSError, ValueError, KeyError) as error:
            raise RankerError(
                f"{directory} holds no fitted ranker ({error}); run `sluice fit-ranker`"
            ) from None
        for part in parts.values():
            if isinstance(part, Ease | ItemKNN) and part.items != dataset.items:
                raise RankerError(
                    f"the ranker in {directory} knows {part.items} items, the catalogue has {dataset.items}; "
                    "run `sluice fit-ranker` again"
                )
        return cls(parts, facts["weights"], facts["version"])


def score_part(
    part: "RankerPart | StackedRanker",
    histories: list[np.ndarray],
    candidates: np.ndarray,
    users: np.ndarray | None = None,
) -> np.ndarray:
    """One part's scores `[B, C]`, NaN at padding; an item that came later is judged as the mean item.

    `users` int `[B]` are whose the histories are, -1 and None: not known.
    """
    if not isinstance(part, Ease | ItemKNN):
        return ask_score(part, histories, candidates, users)
    scores_BN = part.score(histories)
    items = scores_BN.shape[1]
    padded = np.concatenate([scores_BN, scores_BN.mean(axis=1, keepdims=True)], axis=1)
    columns = np.where((candidates < 0) | (candidates >= items), items, candidates)
    scores = np.take_along_axis(padded, columns, axis=1)
    return np.where(candidates < 0, np.float32(np.nan), scores)


def name_version(parts: Mapping[str, RankerPart], weights: Mapping[str, float]) -> str:
    """Names what was fitted: parts, how they score, and weights."""
    texts = [
        [part.version]
        if isinstance(part, EnsembleRanker)
        else [sha256_of(part.contents()), part.settings.model_dump(mode="json")]
        for part in parts.values()
    ]
    return sha256_of([json.dumps([texts, weights]).encode()])[:12]


def fit_weights(
    parts: Mapping[str, RankerPart], dataset: Dataset, held_out: Examples, generator: np.random.Generator
) -> dict[str, float]:
    """The weights of a conditional logit of the held-out targets, each against rivals drawn uniformly.

    With a uniform draw of rivals the estimate is that over the whole catalogue (McFadden 1978). Items that
    the user has are no rivals where the data set leaves them out.

    Raises:
        RankerError: nothing was held out.
    """
    if len(held_out) == 0:
        raise RankerError(
            "no user has enough logs to fit the weights of the ranker's parts on: leave one part on alone"
        )
    chosen = generator.permutation(len(held_out))[:_EXAMPLES]
    pairs = list(zip(held_out.users[chosen].tolist(), held_out.positions[chosen].tolist(), strict=True))
    features = np.concatenate(
        [
            _part_scores(parts, dataset, pairs[start : start + _BATCH], generator)
            for start in range(0, len(pairs), _BATCH)
        ]
    )
    known = np.isfinite(features).all(axis=2)
    scale = np.array([features[..., p][known].std() for p in range(features.shape[2])])
    scale[scale == 0] = 1.0
    features = np.where(known[..., None], features / scale, 0.0)

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        scores = np.where(known, features @ weights, -np.inf)
        likelihood = log_softmax(scores, axis=1)[:, 0].mean()
        expected = np.einsum("nc,ncp->np", softmax(scores, axis=1), features)
        return -likelihood, -(features[:, 0] - expected).mean(axis=0)

    start = np.ones(len(parts))
    fitted = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(0, None)] * len(parts))
    return dict(zip(parts, (fitted.x / scale).tolist(), strict=True))


def _part_scores(
    parts: Mapping[str, RankerPart],
    dataset: Dataset,
    pairs: list[tuple[int, int]],
    generator: np.random.Generator,
) -> np.ndarray:
    """float64 `[n, 1 + C, parts]` of n examples: the target's scores, then its rivals'; NaN is no rival."""
    histories = [dataset.history(*pair, dataset.settings.max_history) for pair in pairs]
    targets = np.array([dataset.target(*pair) for pair in pairs], dtype=np.int32)
    rivals = generator.permutation(dataset.items)[:_RIVALS].astype(np.int32)
    candidates = np.concatenate([targets[:, None], np.tile(rivals, (len(pairs), 1))], axis=1)
    no_rival = candidates == targets[:, None]
    if dataset.settings.exclude_seen:
        for row, pair in enumerate(pairs):
            no_rival[row] |= np.isin(candidates[row], dataset.seen(*pair))
    no_rival[:, 0] = False
    candidates = np.where(no_rival, np.int32(-1), candidates)
    users = np.array([user for user, _ in pairs])
    scores = [score_part(part, histories, candidates, users) for part in parts.values()]
    return np.stack(scores, axis=2).astype(np.float64)
