"""What a policy of a study is worth: each example of test and of the validation sample, and the means.

examples    one row for each example: user, position, rank of the target in the list; where the log has
            propensities, the example's weight in weighted metrics; where the truth of the data is known, the
            mean true click probability of the top ten; where the study has a reward judge, its columns
            (`sluice.services.study.judges.reward`)
means       `summary` of the lists, and the means of these columns
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from sluice.catalog.data.dataset import Dataset
from sluice.learner.evaluation.evaluate import UserResults
from sluice.learner.evaluation.exposure import weigh_examples
from sluice.services.config import RunConfig
from sluice.services.paths import RunPaths
from sluice.services.stages.evaluate import evaluate_run

TEST, VALID = "test", "valid"
TRUE_CTR, GROUP, WEIGHT = "true_ctr", "group", "weight"
# From the results of a policy: columns of its examples, which only a world with known truth can tell.
Truth = Callable[[Dataset, UserResults], Mapping[str, np.ndarray]]
# The same of a judge that has to know the policy's directory too.
Judge = Callable[[Path, UserResults], Mapping[str, np.ndarray]]


def judge_policy(
    config: RunConfig,
    policy: Path,
    examples: int | None,
    truth: Truth | None,
    judge: Judge | None = None,
    keep: Callable[[Dataset, UserResults], UserResults] | None = None,
) -> tuple[dict[str, pa.Table], dict[str, float]]:
    """The examples by split, and the means over them, those of validation as `valid_<name>`.

    Args:
        config: whose data set, and how lists are decoded; validation takes `evaluation.max_users` examples.
        policy: a policy directory.
        examples: of test, at most.
        truth: of the data set, where it is known.
        judge: a further judge.
        keep: chooses the examples that count.
    """
    dataset = Dataset.open(RunPaths.of(config).data)
    tables: dict[str, pa.Table] = {}
    means: dict[str, float] = {}
    for split, prefix in ((TEST, ""), (VALID, "valid_")):
        results = evaluate_run(config, policy, split, most=examples if split == TEST else None)
        results = results if keep is None else keep(dataset, results)
        known = dict(truth(dataset, results)) if truth else {}
        known |= judge(policy, results) if judge else {}
        weights = weigh_examples(dataset, results.users, results.positions, config.evaluation)
        tables[split] = pa.table(
            {
                "user": pa.array(results.users, pa.int32()),
                "position": pa.array(results.positions, pa.int32()),
                "rank": pa.array(results.ranks, pa.int32()),
                **({} if weights is None else {WEIGHT: pa.array(weights)}),
                **{name: pa.array(values) for name, values in known.items()},
            }
        )
        of_split = results.summary(dataset, config.evaluation)
        of_split |= {name: float(np.mean(values)) for name, values in known.items() if name != GROUP}
        means |= {prefix + name: value for name, value in of_split.items()}
    return tables, means
