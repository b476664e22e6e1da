import json

import pytest

from sluice.actors.queue.leases import Push
from sluice.actors.queue.ledger import RolloutLedger
from sluice.catalog.data.feed import PromptFeed
from sluice.catalog.errors import RunError
from sluice.learner.batches.sources import open_prompts
from sluice.learner.training.checkpoint import RunState, seal_part, write_checkpoint, write_rank
from sluice.learner.training.journal_file import JournalFile
from sluice.services.cli.main import main
from sluice.services.config import RunConfig, dump_config
from sluice.services.operate.doctor import examine
from sluice.services.paths import RunPaths
from tests.tiny_data import tiny_dataset
from tests.unit.learner.learner_cases import tiny_policy


def ledger_of(paths, steps, seed=0):
    """A ledger that has trained on steps of three prompts, and has three in flight."""
    prompts = open_prompts(paths.data, None)
    book = RolloutLedger(
        PromptFeed(prompts.users, prompts.positions, seed=seed),
        max_groups=8,
        max_bytes=10_000,
        max_staleness=4,
        lease_deadline_s=60.0,
        expected_bytes=100,
    )
    for step in range(steps + 1):
        leases = book.lease("a", "1", 3, 0.0)
        pushes = [
            Push(
                lease_id=lease.lease_id,
                attempt=1,
                reference="r",
                nbytes=100,
                version_min=0,
                version_max=0,
                ranker_version="r-1",
            )
            for lease in leases
        ]
        book.push("a", "1", pushes, 0.0)
        if step < steps:
            book.allot(step, 0, 1, 3, 0)
            book.ack(step, 0)
    return book


@pytest.fixture
def run(tmp_path):
    """A run directory after two steps, with a checkpoint at each."""
    dataset = tiny_dataset(tmp_path)
    config = RunConfig(name="tiny", output=str(tmp_path / "runs"), data=dataset.settings)
    paths = RunPaths.of(config)
    paths.root.mkdir(parents=True)
    (tmp_path / "data").rename(paths.data)
    (paths.root / "config.yaml").write_text(dump_config(config))
    policy = tiny_policy()
    for step in (1, 2):
        snapshot = ledger_of(paths, step).snapshot()
        events = snapshot.pop("journal")
        nbytes = JournalFile(paths.arm("train").journal, 0).append(events)
        state = RunState(
            step=step,
            version=0,
            best=(0.1, 0.1),
            source=json.loads(json.dumps(snapshot)),
            metrics_bytes=0,
            journal_bytes=nbytes,
        )
        place = paths.checkpoints / "train" / f"checkpoint_{step}"
        place.mkdir(parents=True)
        write_rank(place, 0, {"step": step})
        write_checkpoint(place, state, policy)
        seal_part(place, 0, 1)
    return paths


def test_a_whole_run_is_sound(run, capsys):
    assert main(["doctor", str(run.root)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "checkpoint  checkpoints/train/checkpoint_2: whole, step 2",
        "checkpoint  checkpoints/train/checkpoint_1: whole, step 1",
        "epoch 0     9 issued = 6 trained + 0 stale + 0 invalid + 3 in flight",
        "sound: every checkpoint is whole, and every prompt is accounted for",
    ]
    assert main(["doctor", "--json", str(run.root)]) == 0
    assert json.loads(capsys.readouterr().out)["counts"] == {
        "issued": 9,
        "trained": 6,
        "stale": 0,
        "invalid": 0,
        "in_flight": 3,
    }


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_what_a_resume_uses(run, capsys):
    weights = run.checkpoints / "train" / "checkpoint_2" / "policy" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert main(["doctor", str(run.root)]) == 1
    told = capsys.readouterr().out
    assert "checkpoints/train/checkpoint_2: damaged" in told
    assert "model.safetensors" in told
    assert told.splitlines()[-1] == "1 problem(s); a resume goes on from checkpoints/train/checkpoint_1"
    assert "epoch 0     6 issued = 3 trained" in told


def test_a_line_that_is_missing_from_the_journal_is_told(run):
    journal = run.arm("train").journal
    lines = journal.read_text().splitlines(keepends=True)
    gone = next(number for number, line in enumerate(lines) if '"returned"' in line)
    journal.write_text("".join(lines[:gone] + lines[gone + 1 :]))
    problems = examine(run.root).problems
    assert any("it has" in problem and "the checkpoint was taken at" in problem for problem in problems)


def test_a_prompt_that_was_trained_on_twice_is_told(run):
    journal = run.arm("train").journal
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    trained = [line for line in lines if line["event"] == "trained"]
    trained[1]["leases"][0] = trained[0]["leases"][0]
    text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
    journal.write_text(text)
    problems = examine(run.root).problems
    assert any("prompt 0 was trained while it was ended" in problem for problem in problems)
    assert any("prompts are in flight by the journal or by the checkpoint alone" in text for text in problems)


def test_counters_that_the_journal_does_not_bear_out_are_told(run):
    place = run.checkpoints / "train" / "checkpoint_2" / "state.json"
    state = json.loads(place.read_text())
    state["source"]["counters"]["trained"] += 1
    state["step"] = 3
    place.write_text(json.dumps(state))
    for sums in place.parent.glob("sums-*.json"):
        sums.unlink()  # a checkpoint of an earlier format has none
    state["format"] = 3
    place.write_text(json.dumps(state))
    assert examine(run.root).problems == [
        "the journal ends at step 2, and the checkpoint is of step 3",
        "the journal has 6 prompts trained, and the checkpoint 7",
    ]


def test_other_data_than_the_checkpoints_are_told(run):
    config = run.root / "config.yaml"
    config.write_text(config.read_text().replace("prompts_per_user: null", "prompts_per_user: 1"))
    assert any("the checkpoint was made with" in problem for problem in examine(run.root).problems)


def test_a_directory_that_is_no_run_is_refused(tmp_path, run):
    with pytest.raises(RunError, match=r"has no config\.yaml"):
        examine(tmp_path)
    (run.checkpoints / "train").rename(tmp_path / "elsewhere")
    with pytest.raises(RunError, match="holds no checkpoint"):
        examine(run.root)
