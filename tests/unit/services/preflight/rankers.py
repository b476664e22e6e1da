"""Rankers that a process of its own imports, good ones and all kinds of wrong ones."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from tests.rollout_fakes import RowRanker


class Careful(RowRanker):
    """Says no to anything but a whole data set, and to one that has not `codes` codes of the first level."""

    def __init__(self, dataset, bonus: float = 0.0, codes: int | None = None):
        super().__init__(dataset)
        assert codes in (None, dataset.level_sizes[0])
        assert dataset.attributes.shape[0] == dataset.items == len(dataset.titles)
        assert dataset.known_until("fresh").any()
        self._bonus = bonus

    def score(self, histories, candidates):
        return super().score(histories, candidates) + np.float32(self._bonus)


class Parted(RowRanker):
    """Can be fitted without some users, unless it `fails`."""

    def __init__(self, dataset, fails: bool = False, without_users=None):
        super().__init__(dataset)
        if without_users is not None:
            assert not fails, "users left out: fewer than none"
            assert without_users.max() < dataset.users


class Forgetful(RowRanker):
    """Wrong in two ways: no text as version, no NaN at padding."""

    version = 3

    def score(self, histories, candidates):
        return np.zeros(candidates.shape, dtype=np.float32)


class Drawn(RowRanker):
    """Every replica is another."""

    def __init__(self, dataset):
        super().__init__(dataset, scale=float(np.random.default_rng().uniform(1, 100)))
        self.version = f"drawn-{self.scale}"


class Sleeper(RowRanker):
    """Never answers."""

    def score(self, histories, candidates):
        time.sleep(600)


class Parent(Sleeper):
    """Starts a process of its own, and notes down both."""

    def __init__(self, dataset, note: str):
        super().__init__(dataset)
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        Path(note).write_text(f"{os.getpid()} {child.pid}")


class SlowStarter(RowRanker):
    """Never ready."""

    def __init__(self, dataset):
        time.sleep(600)


class Quitter(RowRanker):
    """Takes the process with it."""

    def score(self, histories, candidates):
        print("out of luck", flush=True)
        os._exit(7)
