"""What measures trust in a run's ranker, and the trust of its test examples, which is left in a file.

`trust.parquet` has the columns `user_id`, `position` (of the test example in the user's sequence) and
`trust`, null where the user has too few logged items.
"""

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sluice.catalog.data.dataset import Dataset, Examples
from sluice.learner.ranker.contract import Ranker
from sluice.learner.trust.meter import REMEMBERED, TrustMeter, open_meter
from sluice.services.config import RunConfig
from sluice.services.paths import RunPaths


def meter_factory(
    config: RunConfig, paths: RunPaths, open_dataset: Callable[[], Dataset]
) -> Callable[[Ranker], TrustMeter] | None:
    """What makes the meter of a process that asks the ranker; None where no gate asks for trust."""
    if config.trust is None:
        return None
    return functools.partial(
        open_meter,
        trust=config.trust,
        settings=config.ranker,
        directory=paths.ranker_halves,
        dataset_factory=open_dataset,
        remember=0 if config.deterministic else REMEMBERED,
    )


def measure_trust(config: RunConfig, paths: RunPaths, dataset: Dataset, ranker: Ranker) -> np.ndarray | None:
    """Trust float32 `[n]` of the n test examples; None, and no file, where the gate does not ask for it.

    Raises:
        RankerError: the ranker's halves cannot be opened, or a score breaks the contract of rankers.
    """
    make_meter = meter_factory(config, paths, lambda: dataset)
    if make_meter is None:
        paths.trust.unlink(missing_ok=True)
        return None
    examples = dataset.examples("test")
    trust = make_meter(ranker).measure(examples)
    write_trust(paths.trust, dataset, examples, trust)
    return trust


def write_trust(path: Path, dataset: Dataset, examples: Examples, trust: np.ndarray) -> None:
    """Leave the trust `[n]` of the prompts before n examples in a file."""
    columns = {
        "user_id": pa.array([dataset.user_ids[user] for user in examples.users.tolist()], pa.string()),
        "position": pa.array(examples.positions, pa.int32()),
        "trust": pa.array(trust, pa.float32(), from_pandas=True),
    }
    pq.write_table(pa.table(columns), path)
