"""The truth of a click: logit = offset + sharpness <mood, item> + quality; mood = taste + weight x session.

R users, N items, S slots of a slate, D dimensions.
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


def slate_logits(
    click: ClickDials, moods: np.ndarray, vectors: np.ndarray, quality: np.ndarray
) -> np.ndarray:
    """The logits of a slate's slots, float32 [R, S].

    `vectors` float32 [R, S, D] and `quality` float32 [R, S] are those of the slots, as each user's segment
    has them.
    """
    return click_logits(click, np.einsum("rd,rsd->rs", moods, vectors), quality)


def examination(click: ClickDials, slots: int) -> np.ndarray:
    """How likely each place of a slate is looked at, float32 [S]: 1 / position^bias."""
    chances: np.ndarray = np.arange(1, slots + 1, dtype=np.float32) ** np.float32(-click.position_bias)
    return chances


def draw_clicks(
    click: ClickDials, logits: np.ndarray, shown: np.ndarray, stream: np.random.Generator
) -> np.ndarray:
    """Which slots are clicked, bool [R, S]: looked at and liked. `shown` bool [R, S] has an item."""
    chances = to_probability(logits) * examination(click, logits.shape[1])
    clicked: np.ndarray = shown & (stream.random(logits.shape) < chances)
    return clicked


def draw_dwell(click: ClickDials, logits: np.ndarray, stream: np.random.Generator) -> np.ndarray:
    """Seconds [R, S] that are spent on a slot's item, where it is clicked."""
    noise = click.dwell_noise * stream.standard_normal(logits.shape)
    seconds: np.ndarray = np.exp(click.dwell_base + click.dwell_slope * logits + noise)
    return seconds
