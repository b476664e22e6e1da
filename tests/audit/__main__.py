"""Recompute what a finished run reports, from the raw log and the files that it left.

    python -m tests.audit runs/ml100k-seed0 [--examples 100]

Nothing of the product is imported, so an error in it is not repeated here. Exits with 1 if anything differs.
"""

import argparse
import random
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.audit.data import Check, check_data, open_run
from tests.audit.policies import PLACES, judge_policy
from tests.audit.rankings import baselines, check_intervals, check_row, judge
from tests.audit.trust import check_trust


def audit(directory: Path, sample: int) -> list[Check]:
    """Every check; `sample` test examples are scored by policies, all when there are no more."""
    run = open_run(directory)
    checks, rows = check_data(run), {}
    for name, score, near in baselines(run):
        if name in run.summary["metrics"]:
            rows[name] = judge(run, score, near)
            ties = int((rows[name].best != rows[name].worst).sum())
            checks.append(check_row(run, name, rows[name], f"{ties} near-ties" if ties else ""))
    examples = run.examples("test")
    if sample < len(examples):
        examples = sorted(random.Random(0).sample(examples, sample))
    for name, place in PLACES.items():
        if name not in run.summary["metrics"]:
            continue
        if not (directory / place / "model.safetensors").is_file():
            checks.append(Check(what=f"metrics of {name}", values=0, differ=0, note="NOT CHECKED: no policy"))
            continue
        rows[name], elsewhere = judge_policy(run, directory / place, examples)
        scope = "" if rows[name].exact else f"a sample of {len(examples)}: within its error; "
        note = f"{scope}beams and exhaustive list differ in {elsewhere}"
        checks.append(check_row(run, name, rows[name], note))
    trust = check_trust(run)
    return [*checks, check_intervals(run, rows), *([] if trust is None else [trust])]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.audit", description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--examples", type=int, default=100, help="test examples that policies score")
    options = parser.parse_args(arguments)
    checks = audit(options.run, options.examples)
    print(f"{'recomputed':28} {'values':>8} {'differ':>7} {'largest':>10}  note")
    for check in checks:
        print(f"{check.what:28} {check.values:8} {check.differ:7} {check.largest:10.2e}  {check.note}")
    return int(any(check.differ for check in checks))


if __name__ == "__main__":
    sys.exit(main())
