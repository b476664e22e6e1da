import io
from collections import Counter

import pytest
import yaml

from sluice.services.cli.main import main
from sluice.services.config import RunConfig, load_config
from sluice.services.operate.chaos import Hit, Outcome, _draw, overrides_of, show
from sluice.services.operate.faults import FAULTS


def test_kinds_come_equally_often_each_after_the_one_before():
    drawn = _draw(3, 10, ["kill queue", "stop queue", "kill driver"])
    assert set(Counter(fault.name for _, fault in drawn).values()) == {3, 4}
    steps = [step for step, _ in drawn]
    assert steps == sorted(steps)
    assert all(number * 12 < step < (number + 1) * 12 for number, step in enumerate(steps))
    assert drawn == _draw(3, 10, ["kill queue", "stop queue", "kill driver"])
    assert drawn != _draw(4, 10, ["kill queue", "stop queue", "kill driver"])


def test_both_runs_have_settings_that_the_config_takes(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"name": "small", "learner": {"steps": 5}}))
    control = tmp_path / "with space, and: signs"
    config = load_config(path, overrides_of(RunConfig(name="small"), 50, control))
    assert config.learner.steps == 612
    assert config.ranker.options == {"control": str(control)}
    longer = RunConfig.model_validate({"name": "small", "learner": {"steps": 5000}})
    assert "learner.steps=5000" in overrides_of(longer, 3, control)


def outcome(**changes):
    values = {
        "hits": (
            Hit(fault="kill queue", step=3, replaced_s=2.0, trained_s=9.0),
            Hit(fault="kill queue", step=30, replaced_s=1.0, trained_s=4.5),
            Hit(fault="ranker raises", step=20, replaced_s=None, trained_s=0.5),
        ),
        "starts": 2,
        "counts": {"issued": 8, "trained": 6, "stale": 1, "invalid": 0, "in_flight": 1},
        "problems": (),
        "same_weights": True,
        "metrics": {"disturbed": {"hr@10": 0.5}, "undisturbed": {"hr@10": 0.25}},
    }
    return Outcome(**(values | changes))


def shown(told):
    stream = io.StringIO()
    show(told, stream)
    return stream.getvalue()


def test_what_is_shown():
    told = shown(outcome())
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in told.splitlines() if "│" in line]
    assert ["kill queue", "2", "1.0 to 2.0", "4.5 to 9.0"] in rows
    assert ["ranker raises", "1", "", "0.5"] in rows
    assert "8 issued = 6 trained + 1 stale + 0 invalid + 1 in flight; the run was started 2 times" in told
    assert "disturbed: hr@10 0.5000" in told
    assert told.splitlines()[-1] == "sound: nothing lost, doubled or damaged"


def test_a_problem_or_a_fault_that_was_not_got_over_is_not_sound():
    never = Hit(fault="kill queue", step=3, replaced_s=None, trained_s=None)
    assert not outcome(hits=(never,)).sound
    told = shown(outcome(problems=("prompt 3 was trained while it was ended",)))
    assert "problem: prompt 3 was trained while it was ended" in told
    assert told.splitlines()[-1] == "NOT sound"


def test_an_unknown_kind_is_refused(tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"name": "small"}))
    code = main(
        ["chaos", "--config", str(path), "--kinds", "kill queue,flood", "--output", str(tmp_path / "o")]
    )
    assert code == 2
    assert f"--kinds 'flood' is none of {', '.join(FAULTS)}" in capsys.readouterr().err


@pytest.mark.parametrize("number", ["0", "-1", "many"])
def test_the_number_of_faults_is_a_count(number):
    with pytest.raises(SystemExit):
        main(["chaos", "--config", "x.yaml", "--faults", number])
