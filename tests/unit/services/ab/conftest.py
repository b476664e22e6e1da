"""A small shop whose truth is known: its log prepared, and slates that are as good or bad as a test wants.

The log has 12 days. The last 8 are the test part.
"""

from types import SimpleNamespace

import numpy as np
import pytest

from sluice.catalog.data.dataset import Dataset
from sluice.catalog.simulator.sessions import START, STEP_SECONDS
from sluice.catalog.simulator.truth import Truth
from sluice.learner.policy.policy import build_policy, save_policy
from sluice.learner.settings import PolicySettings
from sluice.services.ab.serve import Ids
from sluice.services.config import load_config
from sluice.services.paths import RunPaths
from sluice.services.stages.prepare import prepare_data
from sluice.services.stages.simulate import simulate_world
from tests.unit.catalog.simulator.worlds import small_world


@pytest.fixture(scope="session")
def shop(tmp_path_factory):
    """A world of 400 users, the data set of a run, and two policies that know nothing."""
    directory = tmp_path_factory.mktemp("shop")
    simulate_world(small_world(users__count=400, items__count=200), directory / "world")
    changes = (
        f"data.source.interactions=[{directory / 'world' / 'interactions.parquet'}]",
        f"data.source.catalogue={directory / 'world' / 'items.parquet'}",
        "data.semantic_ids.level_sizes=[8, 8]",
        *(
            f"data.split.{part}_from={START + day * STEP_SECONDS}"
            for part, day in (("fresh", 2), ("valid", 3), ("test", 4))
        ),
        f"output={directory / 'runs'}",
        "evaluation.beam_width=10",
    )
    config = load_config("configs/half-wrong.yaml", changes)
    dataset = Dataset.open(prepare_data(config.data, RunPaths.of(config).data).directory)
    sizes, policies = PolicySettings(hidden_size=16, layers=1, heads=2), []
    for seed in (1, 2):
        policies.append(directory / f"p{seed}" / "last")
        save_policy(build_policy(sizes, dataset.level_sizes, 256, seed), policies[-1])
    truth = Truth.open(directory / "world")
    return SimpleNamespace(
        world=directory / "world",
        config=config,
        dataset=dataset,
        policies=tuple(policies),
        truth=truth,
        ids=Ids.of(dataset, truth.world),
    )


class Planted:
    """Makes slates of four by what an item is worth to all users together: a `SlateMaker` of known quality.

    `goodness` 1 shows the best items of those allowed, -1 the worst, 0 any.
    """

    def __init__(self, shop, goodness, seed=0):
        users = shop.ids.users
        liked = shop.truth.click_probability(users, np.full(len(users), 11)).mean(axis=0)
        self.worth, self.goodness = liked[shop.ids.items], goodness
        self.stream, self.asked = np.random.default_rng(seed), []

    def make(self, histories, excluded, done=lambda _count: None):
        self.asked.append(([history.copy() for history in histories], list(excluded)))
        slates = np.empty((len(histories), 4), dtype=np.int32)
        for row, barred in enumerate(excluded):
            score = self.goodness * self.worth + (
                self.stream.random(len(self.worth)) if not self.goodness else 0
            )
            score[barred] = -np.inf
            slates[row] = np.argsort(-score)[:4]
        done(len(histories))
        return slates


@pytest.fixture
def planted(shop):
    """Makes a maker of the shop."""
    return lambda goodness, seed=0: Planted(shop, goodness, seed)
