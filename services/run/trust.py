"""Trust in the ranker for the users of the test examples, measured as the gate does it and left in a file.

`trust.parquet` has the columns `user_id`, `position` (of the test example in the user's sequence) and
`trust`, null where the user has too few logged items.
"""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sluice.catalog.data.dataset import Dataset
from sluice.learner.ranker.contract import Ranker
from sluice.learner.trust.meter import open_meter
from sluice.services.config import RunConfig
from sluice.services.paths import RunPaths


def measure_trust(config: RunConfig, paths: RunPaths, dataset: Dataset, ranker: Ranker) -> np.ndarray | None:
    """Trust float32 `[n]` of the n test examples; None, and no file, where the gate does not ask for it.

    Raises:
        RankerError: the ranker's halves cannot be opened, or a score breaks the contract of rankers.
    """
    if config.trust is None:
        paths.trust.unlink(missing_ok=True)
        return None
    meter = open_meter(
        ranker,
        trust=config.trust,
        settings=config.ranker,
        directory=paths.ranker_halves,
        dataset_factory=lambda: dataset,
    )
    examples = dataset.examples("test")
    trust = meter.measure(examples)
    columns = {
        "user_id": pa.array([dataset.user_ids[user] for user in examples.users.tolist()], pa.string()),
        "position": pa.array(examples.positions, pa.int32()),
        "trust": pa.array(trust, pa.float32(), from_pandas=True),
    }
    pq.write_table(pa.table(columns), paths.trust)
    return trust
