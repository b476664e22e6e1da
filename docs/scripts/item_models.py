"""EASE and ItemKNN of this project against those of two libraries: `python docs/scripts/item_models.py
runs/ml100k-seed0/data` prints JSON.

The libraries are no part of this project. They go with Sluice into an environment of their own:

    pip install rectools==0.19.0 implicit==0.7.3
    pip install --no-deps "numpy>=2"        # RecTools asks for numpy below 2 and pyarrow for 2

Everybody is fitted on the logs before validation and ranks for the same validation examples. What the user
has is left out where the data set says so. A library ranks as it is meant to be used (`whole`, every item of
the history counts 1), and with the weights of our own part (`decayed`: the last items count, recent ones
more). Our parts rank both ways, too.

ItemKNN's `window` and `decay` were chosen on MovieLens-100K's validation, which favours ours there.

Seconds are those of the processor, on one thread, the median of three rounds that take everybody in turn.
Scoring is the way to lists of ten. Ours begins with the histories; theirs with matrices or tables that are
ready.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import scipy.sparse as sp

from sluice.catalog.data.dataset import Dataset, Examples
from sluice.learner.evaluation.baselines import judge_scores
from sluice.learner.ranker.item_models import Ease, ItemKNN
from sluice.learner.ranker.known_logs import KnownLogs
from sluice.learner.ranker.settings import EaseSettings, ItemKnnSettings
from sluice.learner.ranking_metrics import bootstrap_mean, per_user, rank_of

PLACES = 10
ROUNDS = 3
EXAMPLES = 2000
SEED = 0
NEIGHBOURS = (20, 200)  # of an item; 20 is implicit's default
UNCOUNTED = 1e-9  # the weight of an item that is only there to be left out of the list

Ranked = tuple[np.ndarray, float]  # lists int [n, 10], and the seconds that they took


@dataclass(frozen=True)
class Contender:
    """A model to be fitted and to rank."""

    model: str
    by: str
    history: str  # whole or decayed
    fit: Callable[[], Any]
    rank: Callable[[Any], Ranked]


def main(directory: str) -> None:
    """Print the comparison on a prepared data directory."""
    try:
        import implicit.nearest_neighbours  # noqa: F401
        import rectools.models  # noqa: F401
        from threadpoolctl import threadpool_limits
    except ImportError as error:
        sys.exit(f"this comparison needs rectools and implicit ({error}): see the head of {__file__}")
    dataset = Dataset.open(directory)
    everybody = dataset.examples("valid")
    count = min(EXAMPLES, len(everybody))
    chosen = np.sort(np.random.default_rng(SEED).choice(len(everybody), count, replace=False))
    examples = Examples(users=everybody.users[chosen], positions=everybody.positions[chosen])
    with threadpool_limits(1):
        rows = compare([*our_models(dataset, examples), *their_models(dataset, examples)], dataset, examples)
    facts = {
        "data": dataset.name,
        "items": dataset.items,
        "examples": len(examples),
        "rounds": ROUNDS,
        "versions": {name: version(name) for name in ("rectools", "implicit", "numpy", "scipy")},
    }
    print(json.dumps(facts | {"models": rows}, indent=1))


def compare(contenders: list[Contender], dataset: Dataset, examples: Examples) -> list[dict[str, Any]]:
    """One row per contender; the first of a model by us is what the others of that model are held against."""
    fit_s: list[list[float]] = [[] for _ in contenders]
    score_s: list[list[float]] = [[] for _ in contenders]
    lists: list[np.ndarray] = [np.empty(0)] * len(contenders)
    for _ in range(ROUNDS):
        for place, contender in enumerate(contenders):
            start = time.process_time()
            fitted = contender.fit()
            fit_s[place].append(time.process_time() - start)
            lists[place], seconds = contender.rank(fitted)
            score_s[place].append(seconds * 1000 / len(examples))
    targets = dataset.sequence[dataset.offsets[examples.users] + examples.positions]
    ours: dict[str, np.ndarray] = {}
    rows = []
    for place, contender in enumerate(contenders):
        metrics = per_user(rank_of(targets, lists[place]), PLACES)
        kind = contender.model.partition(" ")[0]
        difference = metrics["hr@10"] - ours.setdefault(kind, metrics["hr@10"])
        rows.append(
            {
                "model": contender.model,
                "by": contender.by,
                "history": contender.history,
                "fit_s": round(statistics.median(fit_s[place]), 3),
                "score_s_per_1000": round(statistics.median(score_s[place]), 3),
                "hr@10": round(float(metrics["hr@10"].mean()), 4),
                "ndcg@10": round(float(metrics["ndcg@10"].mean()), 4),
                "hr@10 - ours, decayed": round(float(difference.mean()), 4),
                "95%": [round(end, 4) for end in bootstrap_mean(difference, examples.users)],
            }
        )
    return rows


def our_models(dataset: Dataset, examples: Examples) -> list[Contender]:
    """EASE and ItemKNN as parts of the ranker, and both with a history in which all items count the same."""
    logs = KnownLogs.until(dataset, "fresh")
    longest = int(dataset.lengths_until("test").max())

    def rank(model: Ease | ItemKNN) -> Ranked:
        start = time.process_time()
        lists = judge_scores(dataset, examples, model.score, PLACES).items
        return lists, time.process_time() - start

    def with_whole_histories(model: Ease | ItemKNN) -> Ranked:
        model.settings = model.settings.model_copy(update={"window": longest, "decay": 1.0})
        return rank(model)

    return [
        Contender("EASE", "sluice", "decayed", lambda: Ease.fit(logs), rank),
        Contender("EASE", "sluice", "whole", lambda: Ease.fit(logs), with_whole_histories),
        Contender("ItemKNN", "sluice", "decayed", lambda: ItemKNN.fit(logs), rank),
        Contender("ItemKNN", "sluice", "whole", lambda: ItemKNN.fit(logs), with_whole_histories),
    ]


def their_models(dataset: Dataset, examples: Examples) -> list[Contender]:
    """EASE of RecTools, and the neighbours of implicit by cosine and by plain co-occurrence."""
    from implicit.nearest_neighbours import CosineRecommender, ItemItemRecommender

    users, items = KnownLogs.until(dataset, "fresh").interactions()
    bags = sp.csr_matrix((np.ones(len(users)), (users, items)), shape=(dataset.users, dataset.items))
    bags.data[:] = 1.0  # an item consumed twice counts once
    contenders = []
    for history in ("decayed", "whole"):
        queries = weigh_histories(dataset, examples, EaseSettings() if history == "decayed" else None)
        contenders.append(rectools_ease(bags, queries, history, dataset.settings.exclude_seen))
        queries = weigh_histories(dataset, examples, ItemKnnSettings() if history == "decayed" else None)
        contenders += [
            implicit_neighbours(kind, count, bags, queries, history, dataset.settings.exclude_seen)
            for kind in (CosineRecommender, ItemItemRecommender)
            for count in NEIGHBOURS
        ]
    return contenders


def weigh_histories(
    dataset: Dataset, examples: Examples, settings: EaseSettings | ItemKnnSettings | None
) -> sp.csr_matrix:
    """float64 `[n, N]`: the weight of every item of each example's history; 1 without settings.

    With them it is decay^a for the item a places before the newest, among the last `window`. An older item
    has next to no weight; it stands there so that the library leaves it out of the list.
    """
    rows, columns, weights = [], [], []
    for row, pair in enumerate(zip(examples.users.tolist(), examples.positions.tolist(), strict=True)):
        history = dataset.seen(*pair)
        age = np.arange(len(history) - 1, -1, -1)
        if settings is None:
            weight = np.ones(len(history))
        else:
            weight = np.where(age < settings.window, settings.decay**age, UNCOUNTED)
        rows.append(np.full(len(history), row))
        columns.append(history)
        weights.append(weight)
    triples = (np.concatenate(weights), (np.concatenate(rows), np.concatenate(columns)))
    return sp.csr_matrix(triples, shape=(len(examples), dataset.items))


def implicit_neighbours(
    kind: type, neighbours: int, bags: sp.csr_matrix, queries: sp.csr_matrix, history: str, exclude: bool
) -> Contender:
    """Neighbours of implicit: its class, fitted on users' bags `[U, N]`, ranks for `queries` `[n, N]`."""

    def fit() -> Any:
        model = kind(K=neighbours, num_threads=1)
        model.fit(bags, show_progress=False)
        return model

    def rank(model: Any) -> Ranked:
        start = time.process_time()
        rows = np.arange(queries.shape[0])
        lists, _ = model.recommend(rows, queries, N=PLACES, filter_already_liked_items=exclude)
        return lists, time.process_time() - start

    return Contender(f"ItemKNN {kind.__name__} K={neighbours}", "implicit", history, fit, rank)


def rectools_ease(bags: sp.csr_matrix, queries: sp.csr_matrix, history: str, exclude: bool) -> Contender:
    """EASE of RecTools, with the ridge penalty of our own part. It knows only items that it was fitted on.

    Its matrix is ours, and it ranks with the transpose of it: score(i) = sum_j x_j B_ij, where the paper has
    B_ji.
    """
    import pandas as pd
    from rectools import Columns
    from rectools.dataset import Dataset as Table
    from rectools.dataset import IdMap, Interactions
    from rectools.models import EASEModel

    def table(matrix: sp.csr_matrix) -> Table:
        cells = matrix.tocoo()
        columns = {Columns.User: cells.row, Columns.Item: cells.col, Columns.Weight: cells.data}
        frame = pd.DataFrame(columns | {Columns.Datetime: pd.Timestamp("2000-01-01")})
        maps = [IdMap.from_values(np.arange(size)) for size in matrix.shape]
        return Table(user_id_map=maps[0], item_id_map=maps[1], interactions=Interactions(frame))

    known = np.flatnonzero(bags.getnnz(axis=0))
    rows = np.flatnonzero(queries[:, known].getnnz(axis=1))
    # RecTools sizes a table by the largest item in it: a last row, which is not ranked for, has them all.
    everything = sp.csr_matrix(np.ones((1, len(known))))
    fitted_on, ranked_for = table(bags[:, known]), table(sp.vstack([queries[:, known], everything]).tocsr())

    def fit() -> EASEModel:
        return EASEModel(regularization=EaseSettings().l2, recommend_n_threads=1).fit(fitted_on)

    def rank(model: EASEModel) -> Ranked:
        start = time.process_time()
        listed = model.recommend(rows, ranked_for, k=PLACES, filter_viewed=exclude)
        seconds = time.process_time() - start
        lists = np.full((queries.shape[0], PLACES), -1)
        lists[listed[Columns.User], listed[Columns.Rank] - 1] = known[listed[Columns.Item]]
        return lists, seconds

    return Contender("EASE", "rectools", history, fit, rank)


if __name__ == "__main__":
    main(sys.argv[1])
