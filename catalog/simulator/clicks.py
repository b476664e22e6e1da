"""The truth of a click: logit = offset + sharpness <mood, item> + quality; mood = taste + weight x session.

R users, N items, D dimensions.
"""

import numpy as np

from sluice.catalog.simulator.settings import ClickDials, UserDials


def find_moods(users: UserDials, taste: np.ndarray, session: np.ndarray) -> np.ndarray:
    """Taste and session together, float32 [R, D]."""
    moods: np.ndarray = taste + np.float32(users.session_weight) * session
    return moods


def click_logits(click: ClickDials, affinity: np.ndarray, quality: np.ndarray) -> np.ndarray:
    """The logits of clicks, were the items looked at, float32 [...]; `affinity` [...] is <mood, item>."""
    logits: np.ndarray = np.float32(click.offset) + np.float32(click.sharpness) * affinity + quality
    return logits


def to_probability(logits: np.ndarray) -> np.ndarray:
    """The logistic function; it does not overflow."""
    probability: np.ndarray = (1 + np.tanh(logits / 2)) / 2
    return probability


def affinity_to_all(moods: np.ndarray, segment: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """<mood, item> for every item, float32 [R, N], as each user's `segment` int8 [R] sees the items.

    `vectors` float32 [2, N, D] are the items by segment.
    """
    affinity = np.empty((len(moods), vectors.shape[1]), dtype=np.float32)
    for number, seen in enumerate(vectors):
        rows = segment == number
        affinity[rows] = moods[rows] @ seen.T
    return affinity
