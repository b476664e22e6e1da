"""A ranker that fails on demand, for `sluice chaos`: EASE and ItemKNN, stacked, and a file that says what it
does wrong.

    ranker: {use: "sluice.services.operate.faulty_ranker:FaultyRanker", options: {control: FILE}}

The file holds `raise` or `crash`, which happens once, or `slow`, which lasts as long as the file is there.
"""

import os
import time
from pathlib import Path

import numpy as np

from sluice.catalog.data.dataset import Dataset
from sluice.catalog.errors import RankerError
from sluice.learner.ranker.wrong_for_some import WrongForSome

SLOW_S = 2.0  # for an answer


class FaultyRanker(WrongForSome):
    """Right about everybody, as long as it works."""

    def __init__(self, dataset: Dataset, control: str, without_users: np.ndarray | None = None) -> None:
        """Fit it; `control` is the file."""
        super().__init__(dataset, share=0.0, without_users=without_users)
        self._control = Path(control)

    def score(self, histories: list[np.ndarray], candidates: np.ndarray) -> np.ndarray:
        """See `sluice.learner.ranker.contract.Ranker.score`."""
        try:
            fault = self._control.read_text().strip()
        except FileNotFoundError:
            return super().score(histories, candidates)
        if fault == "slow":
            time.sleep(SLOW_S)
            return super().score(histories, candidates)
        self._control.unlink(missing_ok=True)
        if fault == "crash":
            os._exit(1)
        raise RankerError(f"told to {fault} by {self._control}")
