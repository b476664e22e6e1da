"""Histories with gaps: items left out at random, so that training meets more histories than the log has."""

from dataclasses import dataclass

import numpy as np


def drop_items(
    interactions: np.ndarray, most: float, generator: np.random.Generator, *, least: int
) -> np.ndarray:
    """Leave out each of `[n]` interactions with one probability that is drawn from 0..most.

    Where fewer than `least` would be left, all stay.
    """
    if most == 0:
        return interactions
    kept = interactions[generator.random(len(interactions)) >= generator.random() * most]
    return kept if len(kept) >= least else interactions


@dataclass(frozen=True, kw_only=True)
class Gaps:
    """The gaps of a run's prompts. A prompt that is issued again has the same ones.

    >>> Gaps(most=0.9, seed=1).cut(np.arange(8), 0)
    array([0, 1, 3, 6])
    """

    most: float = 0.0  # `learner.item_dropout`
    seed: int = 0

    def cut(self, history: np.ndarray, number: int) -> np.ndarray:
        """The history `[n]` of the prompt with this number in the run's feed. Its last item may be lost too,
        and at least one is left.
        """
        if self.most == 0:
            return history
        return drop_items(history, self.most, np.random.default_rng([self.seed, number]), least=1)


NO_GAPS = Gaps()
