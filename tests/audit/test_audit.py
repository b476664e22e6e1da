"""The audit on the recorded run, whole and tampered with, and its shortcuts against none."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch

from tests.audit.__main__ import audit, main
from tests.audit.data import label, open_run
from tests.audit.policies import next_log_probs, open_policy
from tests.audit.rankings import knn_similarity

RECORDED = Path(__file__).parents[1] / "data" / "run-of-0.1"
SKIPPED = {"metrics of control", "metrics of control_last"}  # policies that the recorded run left out
# Release 0.1 ranked baselines beyond the last place of a list.
KNOWN = {"metrics of popularity": "mrr 0.443355, here 0.436095"}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A copy of the recorded run, with the log that it was made from: user u takes u, u + 1, ... mod 20."""
    directory = tmp_path / "run"
    shutil.copytree(RECORDED, directory, ignore=shutil.ignore_patterns("checkpoints", "ranker"))
    rows = [(f"u{u:02d}", f"i{(u + k) % 20:02d}", 100 * u + k) for u in range(24) for k in range(9)]
    pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"]).to_parquet(directory / "log.parquet")
    return directory


def change_summary(run: Path, path: tuple[str, ...], value: object) -> None:
    summary = json.loads((run / "summary.json").read_text())
    place = summary
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    (run / "summary.json").write_text(json.dumps(summary))


def differing(run: Path) -> dict[str, str]:
    return {check.what: check.note for check in audit(run, 100) if check.differ}


def test_the_recorded_run_is_what_the_definitions_say(run: Path, capsys: pytest.CaptureFixture[str]):
    checks = audit(run, 100)
    assert {check.what: check.note for check in checks if check.differ} == KNOWN
    assert {check.what for check in checks if not check.values} == SKIPPED
    assert sum(check.values for check in checks) > 400
    change_summary(run, ("metrics", "popularity", "mrr"), 0.436095)
    assert main([str(run)]) == 1, "six digits are not enough"
    assert "metrics of popularity" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("path", "value", "row"),
    [
        (("metrics", "best", "hr@10"), 0.875, "metrics of best"),
        (("metrics", "start", "coverage"), 0.95, "metrics of start"),
        (("metrics", "itemknn", "ndcg@10"), 0.9, "metrics of itemknn"),
        (("intervals", "hr@10", "best-start"), [-0.1, 0.29], "bootstrap intervals"),
    ],
)
def test_a_wrong_figure_is_noticed(run: Path, path: tuple[str, ...], value: object, row: str):
    change_summary(run, path, value)
    assert differing(run).keys() == KNOWN.keys() | {row}


def test_a_wrong_example_and_a_wrong_sequence_are_noticed(run: Path):
    examples = pd.read_parquet(run / "data" / "examples.parquet")
    examples["split"] = ["valid", *examples["split"].tolist()[1:]]
    examples.to_parquet(run / "data" / "examples.parquet")
    log = pd.read_parquet(run / "log.parquet")
    log.loc[3, "item_id"] = "i19"
    log.to_parquet(run / "log.parquet")
    assert {"examples by split", "sequences from the raw log"} <= differing(run).keys()


def test_parts_by_hand():
    fresh = {"type": "fresh", "by": "user", "fresh_share": 0.2, "valid_share": 0.1, "test_share": 0.1}
    assert label([list(range(10))], fresh) == [["pretrain"] * 6 + ["fresh"] * 2 + ["valid", "test"]]
    # floor(3.6), floor(4.8), floor(5.4)
    assert label([list(range(6))], fresh) == [["pretrain"] * 3 + ["fresh"] + ["valid"] + ["test"]]
    by_time = fresh | {"by": "time"}
    assert label([[1, 2, 3, 7, 9], [4, 5, 6, 8, 10]], by_time) == [
        ["pretrain", "pretrain", "pretrain", "fresh", "valid"],
        ["pretrain", "pretrain", "pretrain", "fresh", "test"],
    ]
    assert label([[1, 2, 3]], {"type": "leave_last_two_out"}) == [["pretrain", "valid", "test"]]


def test_similarity_by_hand():
    similarity = knn_similarity([[0, 1, 2], [0, 1]], 3)
    assert similarity[0, 1] == pytest.approx(2 / 2)  # twice side by side, two occurrences each
    assert similarity[0, 2] == pytest.approx(2**-0.5 / 2**0.5)  # once two places apart
    assert similarity[1, 1] == 0


def test_beginnings_side_by_side_equal_single_sequences():
    run = open_run(RECORDED)
    policy = open_policy(RECORDED / "best", run.codes)
    history = run.sequences[3][:5]
    prompt = [policy.bos, *(token for item in history for token in policy.tokens[item])]
    following = next_log_probs(policy, history)
    with torch.no_grad():
        for own in policy.tokens:
            logits = policy.model(torch.tensor([[*prompt, *own]])).logits[0]
            for t, token in enumerate(own):
                expected = logits[len(prompt) - 1 + t].log_softmax(-1)[token]
                assert following[own[:t]][token] == pytest.approx(float(expected), abs=1e-5)
