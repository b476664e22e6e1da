"""A small log whose order is known, and audits of rankers whose worth is known."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sluice.services.audit.audit import run_audit
from sluice.services.config import RunConfig
from sluice.services.progress import Reporter

USERS, ITEMS, LENGTH = 100, 80, 30
HERE = "tests.unit.services.audit.rankers"


@pytest.fixture(scope="package")
def audited(tmp_path_factory):
    """`audited(ranker, **settings)`: config and audit of a run whose start has hardly learned anything.

    Every user goes around the catalogue from a place of their own, one item or two at a time.
    """
    directory = tmp_path_factory.mktemp("audit")
    draw = np.random.default_rng(0)
    places = draw.integers(ITEMS, size=(USERS, 1)) + draw.integers(1, 3, size=(USERS, LENGTH)).cumsum(axis=1)
    rows = [
        (f"u{user:03d}", f"i{places[user, step] % ITEMS:02d}", 1000 * step + user)
        for user in range(USERS)
        for step in range(LENGTH)
    ]
    users, items, times = zip(*rows, strict=True)
    log = directory / "log.parquet"
    pq.write_table(pa.table({"user_id": users, "item_id": items, "timestamp": times}), log)

    def run(ranker, *, trust=False, prompts=1000, options=None, **changes):
        config = RunConfig.model_validate(
            {
                "name": "planted",
                "output": str(directory),
                "data": {
                    "name": "planted",
                    "source": {"type": "table", "interactions": [str(log)]},
                    "split": {"type": "fresh"},
                    "semantic_ids": {"level_sizes": [8, 8], "vector_dims": 8, "window": 2},
                },
                "policy": {"hidden_size": 32, "layers": 1, "heads": 1, "feed_forward_size": 32},
                "pretrain": {"epochs": 1, "batch_interactions": 600, "lr": 1e-5},
                "ranker": {"use": ranker, "options": options or {}},
                "rollout": {
                    "decode": {"candidates": 16},
                    "distractors": 2,
                    "engine": {"type": "tree"},
                },
                "objective": {"type": "adagrpo", "gate": {"tau": 0.25, "rho": 0.25}},
                "evaluation": {"beam_width": 30},
                **changes,
            }
        )
        with Reporter.for_stream(io.StringIO()) as reporter:
            return config, run_audit(config, prompts, trust, reporter)

    return run
