"""The arms of `compare: full`: what each is, where it lies, when it is trained again, and what it costs."""

import functools
import json
from types import SimpleNamespace

import pytest

from sluice.catalog.errors import ConfigError
from sluice.learner.gate.settings import GateSettings
from sluice.learner.objectives.settings.objective import (
    AdaGrpoObjective,
    GrpoObjective,
    GrpoSettings,
    MixtureObjective,
    NllObjective,
)
from sluice.services.config import RunConfig
from sluice.services.paths import RunPaths
from sluice.services.run import arms, train
from sluice.services.run.metrics_file import seconds_of
from sluice.services.run.summary import policies_of
from tests.tiny_data import tiny_dataset

OBJECTIVE = AdaGrpoObjective(
    weight=16.0, grpo=GrpoSettings(kl_beta=0.05), gate=GateSettings(tau=0.75, rho=0.125)
)
FRESH = SimpleNamespace(prompt_part="fresh")


def config_of(tmp_path, **changes) -> RunConfig:
    settings = {"name": "a", "output": str(tmp_path), "compare": "full", "learner": {"steps": 4}}
    return RunConfig.model_validate(settings | changes)


def write_metrics(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_mixture_is_the_objective_without_its_gate():
    mixture = arms.rolled_out_arms(OBJECTIVE, 0.3)["mixture"]
    assert mixture == MixtureObjective(weight=16.0, grpo=GrpoSettings(kl_beta=0.05))


def test_the_random_gate_admits_as_many_and_changes_nothing_else():
    random = arms.rolled_out_arms(OBJECTIVE, 0.3)["random_gate"]
    assert (random.weight, random.grpo) == (OBJECTIVE.weight, OBJECTIVE.grpo)
    assert random.gate == GateSettings(mode="random", random_rate=0.3)
    soft = OBJECTIVE.model_copy(update={"gate": GateSettings(mode="soft", softness=2.0, parts="difficulty")})
    assert arms.rolled_out_arms(soft, 0.4)["random_gate"].gate.random_rate == 0.4


def test_a_random_gate_is_not_compared_with_itself_and_no_gate_has_no_arms():
    random = OBJECTIVE.model_copy(update={"gate": GateSettings(mode="random", random_rate=0.2)})
    assert set(arms.rolled_out_arms(random, 0.2)) == {"mixture"}
    assert arms.rolled_out_arms(GrpoObjective(), 0.2) == {}


def test_nothing_to_compare_with_is_refused(tmp_path):
    dataset = tiny_dataset(tmp_path)  # without a fresh part
    config = config_of(tmp_path, objective={"type": "grpo"})
    with pytest.raises(ConfigError, match="compare full has nothing to train: objective grpo has no gate"):
        arms.check_compare(config, dataset)
    arms.check_compare(config.model_copy(update={"compare": "basic"}), dataset)
    arms.check_compare(config_of(tmp_path), dataset)
    arms.check_compare(config, FRESH)


def test_every_training_has_a_place_of_its_own(tmp_path):
    paths = RunPaths(tmp_path)
    places = [paths.arm(name) for name in ("train", "control", *arms.ROLLED_OUT)]
    assert (places[0].best, places[0].metrics) == (tmp_path / "best", tmp_path / "metrics.jsonl")
    assert (places[1].last, places[1].metrics) == (
        tmp_path / "control-last",
        tmp_path / "metrics-control.jsonl",
    )
    assert places[2].best == tmp_path / "arms" / "mixture" / "best"
    for part in ("best", "last", "metrics", "best_checkpoint"):
        assert len({getattr(place, part) for place in places}) == len(places)


def test_an_arm_is_trained_when_it_has_ended_with_the_same_settings(tmp_path):
    paths, config = RunPaths(tmp_path), config_of(tmp_path)
    inputs = arms.arm_inputs(config, OBJECTIVE)
    paths.arm("mixture").last.mkdir(parents=True)  # it was interrupted before its end
    assert not arms.is_trained(paths, "mixture", inputs)
    arms.mark_trained(paths, "mixture", inputs)
    assert arms.is_trained(paths, "mixture", inputs)
    for changed in (
        arms.arm_inputs(config_of(tmp_path, learner={"steps": 5}), OBJECTIVE),
        arms.arm_inputs(config_of(tmp_path, seed=1), OBJECTIVE),
        arms.arm_inputs(config, OBJECTIVE.model_copy(update={"weight": 1.0})),
    ):
        assert not arms.is_trained(paths, "mixture", changed)


def test_other_groups_are_other_inputs_of_an_arm_with_rollouts_alone(tmp_path):
    config = config_of(tmp_path)
    for changes in (
        {"rollout": {"decode": {"candidates": 8}}},
        {"rollout": {"distractors": 2}},
        {"weights": {"publish_every": 1}},
        {"queue": {"max_staleness": 9}},
    ):
        other = config_of(tmp_path, **changes)
        assert arms.arm_inputs(other, OBJECTIVE) != arms.arm_inputs(config, OBJECTIVE)
        assert arms.arm_inputs(other, NllObjective()) == arms.arm_inputs(config, NllObjective())
    faster = config_of(tmp_path, rollout={"actors": 3})
    assert arms.arm_inputs(faster, OBJECTIVE) == arms.arm_inputs(config, OBJECTIVE)


def leave_arm(paths, name, inputs=None):
    """What a training leaves; without `inputs` it was interrupted."""
    for place in (paths.arm(name).best, paths.arm(name).last):
        place.mkdir(parents=True, exist_ok=True)
    write_metrics(paths.arm(name).metrics, {"kind": "start", "step": 0, "time_s": 0.1})
    if inputs is not None:
        arms.mark_trained(paths, name, inputs)


def test_arms_that_do_not_belong_to_the_run_are_not_judged_with_it(tmp_path):
    config = config_of(tmp_path, compare="basic")
    paths, objectives = RunPaths.of(config), arms.rolled_out_arms(config.objective, 0.3)
    leave_arm(paths, "control", arms.arm_inputs(config, NllObjective()))
    leave_arm(paths, "mixture")  # stopped, and the run is resumed without it
    leave_arm(paths, "random_gate", arms.arm_inputs(config, objectives["random_gate"]))
    assert arms.discard_outdated(config, paths, 0.3) == ("mixture",)
    assert not policies_of(paths)["mixture"].exists()
    assert set(arms.costs_of(paths)) == {"control", "random_gate"}
    longer = config_of(tmp_path, compare="basic", learner={"steps": 9})
    assert arms.discard_outdated(longer, paths, 0.3) == ("control", "random_gate")
    assert arms.discard_outdated(longer, paths, 0.3) == ()


def test_sft_on_all_logs_of_another_start_is_not_judged(tmp_path):
    config = config_of(tmp_path)
    paths = RunPaths.of(config)
    for place, inputs in ((paths.policy, {"seed": 0}), (paths.sft_all, {"seed": 0, "until": "fresh"})):
        place.mkdir(parents=True)
        (place / "inputs.json").write_text(json.dumps(inputs))
    assert arms.discard_outdated(config, paths, 0.3) == ()
    (paths.policy / "inputs.json").write_text('{"seed": 1}')
    assert arms.discard_outdated(config, paths, 0.3) == ("sft_all",)
    assert not paths.sft_all.exists()


def test_costs_add_up_over_the_starts_of_a_training(tmp_path):
    paths = RunPaths(tmp_path)
    write_metrics(
        paths.arm("train").metrics,
        {"kind": "start", "step": 0, "time_s": 0.1},
        {"kind": "step", "step": 1, "time_s": 5.0},
        {"kind": "start", "step": 1, "time_s": 0.2},
        {"kind": "step", "step": 2, "time_s": 4.0},
        {"kind": "time", "step": 2, "time_s": 4.5},
    )
    assert seconds_of(paths.arm("train").metrics) == 9.5
    assert seconds_of(tmp_path / "absent.jsonl") is None
    paths.sft_all.mkdir(parents=True)
    (paths.sft_all / "cost.json").write_text('{"seconds": 61.5}')
    assert arms.costs_of(paths) == {"best": 9.5, "sft_all": 61.5}


class Reporter:
    def __init__(self):
        self.lines = []

    def line(self, text):
        self.lines.append(text)


@pytest.fixture
def trained(monkeypatch, tmp_path):
    """What `_train_arms` starts, and a fleet that is only counted."""
    seen = SimpleNamespace(learned=[], tasks=[], fleets=0, fresh=True)

    def with_rollouts(_config, _paths, _reporter, learn):
        seen.fleets += 1
        learn("fleet")
        return {}

    def learner(_config, paths, name, objective, reporter, fleet=None):
        seen.learned.append((name, objective.type, fleet))
        paths.arm(name).last.mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr(train, "_train_with_rollouts", with_rollouts)
    monkeypatch.setattr(train, "run_learner", learner)
    monkeypatch.setattr(train, "_run_phases", lambda _config, _reporter, jobs: seen.tasks.extend(jobs))
    part = {True: "fresh", False: "pretrain"}
    monkeypatch.setattr(train.Dataset, "open", lambda _path: SimpleNamespace(prompt_part=part[seen.fresh]))
    return seen


def test_each_arm_has_rollouts_of_its_own_and_a_resumed_run_trains_what_is_missing(tmp_path, trained):
    config, reporter = config_of(tmp_path), Reporter()
    paths = RunPaths.of(config)
    train._train_arms(config, paths, reporter, 0.3)
    assert trained.learned == [("mixture", "mixture", "fleet"), ("random_gate", "adagrpo", "fleet")]
    assert (trained.fleets, trained.tasks, reporter.lines) == (2, ["sft_all"], [])
    train._train_arms(config, paths, reporter, 0.35)  # the run went on, and its gate has another rate
    assert [name for name, *_ in trained.learned] == ["mixture", "random_gate", "random_gate"]
    train._train_arms(config, paths, reporter, 0.35)
    assert len(trained.learned) == 3


def test_a_control_that_has_ended_is_left_as_it_is(tmp_path, trained):
    config = config_of(tmp_path)
    paths = RunPaths.of(config)
    for _ in range(2):
        learn = functools.partial(train.run_learner, reporter=Reporter())
        train._train_once(config, paths, "control", NllObjective(), learn)
    assert trained.learned == [("control", "nll", None)]


def test_an_arm_that_is_interrupted_has_no_stamp_of_the_training_before(tmp_path, trained, monkeypatch):
    config = config_of(tmp_path)
    paths = RunPaths.of(config)
    train._train_arms(config, paths, Reporter(), 0.3)

    def interrupted(*_arguments, **_more):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "run_learner", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train._train_arms(config_of(tmp_path, learner={"steps": 5}), paths, Reporter(), 0.3)
    mixture = arms.rolled_out_arms(config.objective, 0.3)["mixture"]
    assert not arms.is_trained(paths, "mixture", arms.arm_inputs(config, mixture))


def test_without_a_fresh_part_sft_on_all_logs_is_said_to_be_the_start(tmp_path, trained):
    trained.fresh, reporter = False, Reporter()
    config = config_of(tmp_path)
    train._train_arms(config, RunPaths.of(config), reporter, 0.3)
    assert trained.tasks == []
    assert reporter.lines == [
        "compare: the split has no fresh part, so SFT on all logs is the start and no arm of its own"
    ]


def test_a_random_gate_has_no_trust_and_its_stamp_none_either(tmp_path):
    """An arm that the release before trained is not trained again."""
    gated, otherwise = (
        AdaGrpoObjective.model_validate({"gate": {"parts": "trust", "trust": {"items": items}}})
        for items in (10, 5)
    )
    random = arms.rolled_out_arms(gated, 0.3)["random_gate"]
    assert random.gate.trust is None and random.gate.random_rate == 0.3
    config = config_of(tmp_path)
    assert arms.arm_inputs(config, gated) != arms.arm_inputs(config, otherwise)
    inputs = json.loads(arms.arm_inputs(config, random))
    assert inputs["objective"]["gate"]["mode"] == "random" and "trust" not in inputs["objective"]["gate"]
