"""What a study's file may say."""

import json
from pathlib import Path

import pytest

from sluice.catalog.errors import ConfigError
from sluice.services.study.settings import arm_config, load_study, set_config
from tests.unit.services.study.conftest import write_study


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seeds": [1, 1]}, "seeds [1, 1] must be different"),
        ({"seeds": [-1]}, "at least 0"),
        ({"seeds": []}, "seeds"),
        ({"against": ["nobody"]}, "'nobody', which is no arm: one of best-mixture, gate, heavy"),
        ({"strata": ["nobody"]}, "strata names 'nobody', which is no arm"),
        ({"arms": {"start": {}}}, "'start' cannot be a name"),
        ({"arms": {"a/b": {}}}, "'a/b' cannot be a name"),
        ({"arms": {"nll": {}}, "against": ["nll"], "best_of": {"nll": ["nll"]}}, "has the name of an arm"),
        ({"arms": {"nll": {}}, "against": ["nll"], "best_of": {"b": ["gone"]}}, "['gone']"),
        ({"arms": {"nll": {}}, "against": ["nll"], "best_of": {"b": []}}, "best_of.b names []"),
        (
            {"arms": {"nll": {}, "r": {"rate_of": "q"}}, "against": ["nll"], "best_of": {}},
            "arms.r.rate_of names 'q'",
        ),
        (
            {
                "arms": {"g": {}, "r": {"rate_of": "s"}, "s": {"rate_of": "g"}},
                "against": ["g"],
                "best_of": {},
            },
            "arms.r.rate_of names 's'",
        ),
        ({"sets": {"tiny": {"config": "gone.yaml"}}}, "sets.tiny: cannot read the config gone.yaml"),
        (
            {"arms": {"nll": {"set": ["learner.steps=0"]}}, "against": ["nll"], "best_of": {}},
            "sets.tiny with arms.nll: ",
        ),
        ({"colour": "blue"}, "colour"),
        (
            {"arms": {"nll": {"set": ["policy.layers=2"]}}, "against": ["nll"], "best_of": {}},
            "sets.tiny with arms.nll changes policy, and the arms of a data set share it",
        ),
        (
            {"arms": {"nll": {"oracle": True}}, "against": ["nll"], "best_of": {}},
            "arms.nll.oracle needs a truth, and sets.tiny has no world",
        ),
        ({"sets": {"tiny": {"config": "c.yaml", "world_set": ["seed=1"]}}}, "world names none"),
    ],
)
def test_a_wrong_study_is_refused_with_the_place(tmp_path, changes, named):
    with pytest.raises(ConfigError) as error:
        load_study(write_study(tmp_path, **changes))
    assert named in str(error.value)


def test_an_arm_changes_the_runs_config_alone(tmp_path):
    study = load_study(write_study(tmp_path))
    shared, arm = set_config(study, "tiny", 1), arm_config(study, "tiny", "heavy", 1, None)
    assert arm.objective.type == "mixture" and arm.objective.weight == 50
    assert arm.directory == shared.directory == study.directory / "tiny-seed1"
    assert arm.model_copy(update={"objective": shared.objective}) == shared


def test_a_gate_by_chance_takes_the_others_settings_and_its_rate(tmp_path):
    arms = {
        "gate": {"set": ["objective={type: adagrpo, weight: 9, gate: {tau: 0.5, rho: 0.5}}"]},
        "random": {"rate_of": "gate", "set": ["learner.lr=0.5"]},
    }
    study = load_study(write_study(tmp_path, arms=arms, against=["gate"], best_of={}))
    arm = arm_config(study, "tiny", "random", 0, 0.125)
    assert (arm.objective.weight, arm.learner.lr) == (9, 0.5)
    assert (arm.objective.gate.mode, arm.objective.gate.random_rate) == ("random", 0.125)


@pytest.mark.parametrize("has_users", [True, False])
def test_a_world_brings_its_own_users_where_the_config_names_some(tmp_path, has_users):
    config = {"name": "own", "data": {"source": {"type": "table", "interactions": ["log.parquet"]}}}
    if has_users:
        config["data"]["source"] |= {"users": "others.parquet", "user_columns": {"attributes": ["age"]}}
    (tmp_path / "own.yaml").write_text(json.dumps(config))
    sets = {"w": {"config": str(tmp_path / "own.yaml"), "world": "configs/worlds/half-wrong.yaml"}}
    study = load_study(write_study(tmp_path, sets=sets, arms={"nll": {}}, against=["nll"], best_of={}))
    source = set_config(study, "w", 0).data.source
    world = study.directory / "worlds" / "w"
    assert source.interactions == (str(world / "interactions.parquet"),)
    assert source.users == (str(world / "users.parquet") if has_users else None)
    assert source.user_columns.attributes == (("age",) if has_users else ())


@pytest.mark.parametrize("path", sorted(Path("configs/studies").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_study_that_comes_with_the_code_can_be_read(path):
    study = load_study(path)
    assert study.name == path.stem and study.seeds
