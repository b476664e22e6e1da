"""Trust in the ranker for the users of the test examples, worked out again without a draw.

The product draws what others took; here a place is over all of it, each item by how often it was taken. So
a reported trust must lie within the error of its draws, and the mean over users within a smaller one. Scores
are those of the ranker without the user's half: item models are fitted again by `tests.audit.rankings`, and
of the sequence model the weights are read.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file

from tests.audit.data import Check, Run
from tests.audit.rankings import (
    DEVIATIONS,
    EASE_DECAY,
    KNN_DECAY,
    NEAR,
    RIDGE,
    WINDOW,
    decayed,
    ease_weights,
    knn_similarity,
    popularity,
)

OF_ONE = 5.0  # deviations that a single trust may be off by: there are thousands
WHAT = "trust of test users"
_KNN = {"window": WINDOW, "decay": KNN_DECAY}
_EASE = {"window": WINDOW, "decay": EASE_DECAY, "l2": RIDGE}
Score = Callable[[list[int]], np.ndarray]  # of all items, under a history


def check_trust(run: Run) -> Check | None:
    """The file of trust against ours; None where the run has none."""
    path = run.directory / "trust.parquet"
    if not path.is_file():
        return None
    settings = run.config["objective"]["gate"]["trust"]
    known = run.before("valid" if run.config["ranker"].get("until", "fresh") == "fresh" else "fresh")
    try:
        scores = [_ranker(run, known, half) for half in (0, 1)]
    except _Unknown as reason:
        return Check(what=WHAT, values=0, differ=0, note=f"NOT CHECKED: {reason}")
    counts, rows = popularity(known, len(run.items)), pd.read_parquet(path)
    reported = {
        (user, int(at)): value
        for user, at, value in zip(rows["user_id"], rows["position"], rows["trust"], strict=True)
    }
    differ, largest, of_users = 0, 0.0, {}
    for user, position in run.examples("test"):
        score = scores[hashlib.blake2b(run.users[user].encode(), digest_size=1).digest()[0] % 2]
        places = [
            _place(run, known[user], user, at, score, counts)
            for at in range(max(1, position - settings["items"]), position)
        ]
        value = reported.pop((run.users[user], position), -1.0)
        if len(places) < settings["at_least"]:
            differ += not np.isnan(value)
            continue
        mean, variance, slack = np.mean(places, axis=0)
        error = np.sqrt(variance / settings["others"] / len(places))
        gap = abs(value - mean)
        largest = max(largest, gap)
        differ += not gap <= OF_ONE * error + slack + 1e-6
        of_users.setdefault(user, (value - mean, error, slack))
    gaps = np.array(list(of_users.values()))
    off, allowed = abs(gaps[:, 0].mean()), DEVIATIONS * np.sqrt((gaps[:, 1] ** 2).sum()) / len(gaps)
    differ += len(reported) + bool(off > allowed + gaps[:, 2].mean() + 1e-6)
    note = f"mean off by {off:.5f}, by chance {allowed:.5f} at most"
    return Check(what=WHAT, values=len(run.examples("test")), differ=differ, largest=largest, note=note)


def _place(
    run: Run, known: list[int], user: int, at: int, score: Score, counts: np.ndarray
) -> tuple[float, float, float]:
    """The expected place of a logged item, the variance of one draw, and what near-ties may move it by."""
    sequence = run.sequences[user]
    scores = score(sequence[:at])
    weights = counts.copy()
    weights[list(set(known) | set(sequence[: at + 1]))] = 0
    shares, own = weights / weights.sum(), scores[sequence[at]]
    value = (scores < own) + 0.5 * (scores == own)
    mean = float(shares @ value)
    near = np.abs(scores - own) <= NEAR * np.abs(scores).max()
    return mean, float(shares @ (value - mean) ** 2), float(shares @ near)


class _Unknown(Exception):
    """A ranker that this audit cannot work out."""


def _ranker(run: Run, known: list[list[int]], half: int) -> Score:
    """The ranker that was fitted without one half of the users."""
    directory = run.directory / "ranker-halves" / f"without-{half}"
    if run.config["ranker"]["use"] != "builtin" or not directory.is_dir():
        raise _Unknown("the ranker is not the built-in one, or its halves are gone")
    others = [
        own
        for name, own in zip(run.users, known, strict=True)
        if hashlib.blake2b(name.encode(), digest_size=1).digest()[0] % 2 != half
    ]
    if not (directory / "stack.json").is_file():
        return _sequence_model(run, directory)
    facts = json.loads((directory / "stack.json").read_text())
    parts: dict[str, Score] = {}
    if "sequence" in facts["weights"]:
        parts["sequence"] = _sequence_model(run, directory)
    for name, expected in (("itemknn", _KNN), ("ease", _EASE)):
        if name in facts["weights"]:
            if expected.items() - facts["settings"][name].items():
                raise _Unknown(f"{name} has settings of its own")
            parts[name] = (_knn if name == "itemknn" else _ease)(others, len(run.items), run)
    return lambda history: sum(facts["weights"][name] * part(history) for name, part in parts.items())


def _knn(sequences: list[list[int]], items: int, run: Run) -> Score:
    similarity, counts = knn_similarity(sequences, items), popularity(sequences, items)
    most = run.data["max_history"]
    return lambda history: decayed(similarity, history[-most:], KNN_DECAY) + 1e-9 * counts / counts.max()


def _ease(sequences: list[list[int]], items: int, run: Run) -> Score:
    weights, most = ease_weights(sequences, items), run.data["max_history"]
    return lambda history: decayed(weights, history[-most:], EASE_DECAY)


def _sequence_model(run: Run, directory: Path) -> Score:
    """The mean over members of <W gru(history) + c, v> + b, v = embedding + attributes A."""
    attributes = pd.read_parquet(run.directory / "data" / "catalogue.parquet")["attributes"].tolist()
    names = sorted({name for own in attributes for name in own})
    hot = torch.tensor([[float(name in own) for name in names] or [0.0] for own in map(set, attributes)])
    paths = sorted(directory.glob("member-*.safetensors"))
    members = [_Member(load_file(path), hot, run.data["max_history"]) for path in paths]
    return lambda history: np.mean([member.score(history) for member in members], axis=0)


class _Member:
    def __init__(self, weights: dict[str, Any], hot: torch.Tensor, most: int) -> None:
        self.weights, self.most = weights, most
        self.vectors = (
            weights["embedding.weight"][:-1] + hot @ weights["attribute_projection.weight"].T
        ).double()

    def score(self, history: list[int]) -> np.ndarray:
        """The recurrence of a GRU, step by step."""
        w = {name: value.double() for name, value in self.weights.items()}
        state = torch.zeros(self.vectors.shape[1], dtype=torch.float64)
        for item in history[-self.most :]:
            inner = (w["encoder.weight_ih_l0"] @ self.vectors[item] + w["encoder.bias_ih_l0"]).chunk(3)
            outer = (w["encoder.weight_hh_l0"] @ state + w["encoder.bias_hh_l0"]).chunk(3)
            reset, update = (torch.sigmoid(a + b) for a, b in zip(inner[:2], outer[:2], strict=True))
            state = (1 - update) * torch.tanh(inner[2] + reset * outer[2]) + update * state
        query = w["query.weight"] @ state + w["query.bias"]
        return (self.vectors @ query + w["bias"][:-1]).numpy()
