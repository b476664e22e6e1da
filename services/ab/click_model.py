"""A simple model of clicks for doubly robust estimates, fitted on half of the users and used for the other.

Logistic regression on what is known without any truth: how often the item is clicked when shown, the place of
the slot, and how much of the user's history shares the item's attributes.
"""

from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression

from sluice.catalog.data.dataset import Dataset

_PRIOR = 20.0  # impressions at the mean rate that every item is given


@dataclass(frozen=True, kw_only=True)
class Shown:
    """n logged impressions."""

    users: np.ndarray  # int [n], rows
    histories: np.ndarray  # int [n], interactions of the user before it
    items: np.ndarray  # int [n], rows
    places: np.ndarray  # int [n], of the slot, from 1
    clicks: np.ndarray  # float [n]


def predict_clicks(dataset: Dataset, shown: Shown, items: np.ndarray) -> np.ndarray:
    """How likely each of `items` int [n, A] would be clicked in the slot of an impression, float64 [n, A].

    -1 is no item, and never clicked. What is said of a user is fitted on other users.
    """
    fold = shown.users % 2
    likeness = _likeness(dataset, shown, np.concatenate([items, shown.items[:, None]], axis=1))
    predicted = np.zeros(items.shape)
    for half in (0, 1):
        fitted, asked = fold != half, fold == half
        if not asked.any():
            continue
        rates = _item_rates(shown, fitted, dataset.items)
        own = _features(rates[shown.items], shown.places, likeness[:, -1])[fitted]
        model = _fit(own, shown.clicks[fitted])
        wanted = _features(rates[items[asked]], shown.places[asked, None], likeness[asked, :-1])
        predicted[asked] = _apply(model, wanted)
    return np.where(items >= 0, predicted, 0.0)


def _item_rates(shown: Shown, chosen: np.ndarray, items: int) -> np.ndarray:
    """Logits of the items' click rates over the `chosen` impressions, float64 [N], shrunk to the mean."""
    mean = np.clip(shown.clicks[chosen].mean() if chosen.any() else 0.5, 1e-4, 1 - 1e-4)
    clicks = np.bincount(shown.items[chosen], weights=shown.clicks[chosen], minlength=items)
    looks = np.bincount(shown.items[chosen], minlength=items)
    rate = (clicks + _PRIOR * mean) / (looks + _PRIOR)
    logits: np.ndarray = np.log(rate / (1 - rate))
    return logits


def _likeness(dataset: Dataset, shown: Shown, items: np.ndarray) -> np.ndarray:
    """Mean number of attributes that an item shares with an item of the user's history, float64 [n, A]."""
    attributes = dataset.attributes
    visits, visit = np.unique(np.stack([shown.users, shown.histories]), axis=1, return_inverse=True)
    profiles = np.stack(
        [
            np.asarray(attributes[dataset.history(user, before, None)].mean(axis=0)).ravel()
            for user, before in visits.T.tolist()
        ]
    )
    to_all: np.ndarray = np.asarray(attributes @ profiles.T).T  # [visits, N]
    likeness: np.ndarray = to_all[visit.ravel()[:, None], items]
    return likeness


def _features(rate: np.ndarray, place: np.ndarray, likeness: np.ndarray) -> np.ndarray:
    """[..., 3]."""
    return np.stack(np.broadcast_arrays(rate, np.log(place), likeness), axis=-1)


def _fit(features: np.ndarray, clicks: np.ndarray) -> LogisticRegression | float:
    """The regression; the plain rate where the clicks are all alike."""
    if len(np.unique(clicks)) < 2:
        return float(clicks.mean()) if len(clicks) else 0.0
    return LogisticRegression().fit(features, clicks)


def _apply(model: LogisticRegression | float, features: np.ndarray) -> np.ndarray:
    if isinstance(model, float):
        return np.full(features.shape[:-1], model)
    flat: np.ndarray = model.predict_proba(features.reshape(-1, features.shape[-1]))[:, 1]
    return flat.reshape(features.shape[:-1])
