"""The config of a run: shipped files, overrides, errors with field paths, and where output goes."""

import math
from pathlib import Path

import pytest

from sluice.actors.settings import TreeEngineSettings, VllmEngineSettings
from sluice.catalog.errors import ConfigError
from sluice.services.config import dump_config, load_config, place_output

ROOT = Path(__file__).parents[3]
SHIPPED = sorted((ROOT / "configs").glob("*.yaml"))


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return path


def test_configs_are_shipped():
    assert {path.stem for path in SHIPPED} >= {"ml100k", "quickstart", "gpu-cluster"}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_config_parses_and_survives_a_round_trip(path: Path, tmp_path: Path):
    config = load_config(path)
    assert load_config(written(tmp_path, dump_config(config))) == config


def test_overrides_are_yaml_and_the_last_one_wins(tmp_path: Path):
    path = written(tmp_path, "name: a\nlearner: {steps: 10}\n")
    config = load_config(
        path,
        [
            "learner.lr=1e-5",
            "learner.steps=20",
            "learner.steps=30",
            "objective.type=nll",
            "ranker.options={k: 2}",
        ],
    )
    assert (config.learner.lr, config.learner.steps, config.objective.type) == (1e-5, 30, "nll")
    assert config.ranker.options == {"k": 2}


def test_an_override_may_hold_an_equals_sign(tmp_path: Path):
    assert load_config(written(tmp_path, "name: a"), ["data.name=x=y"]).data.name == "x=y"


def test_every_error_is_listed_with_its_field_path_and_value(tmp_path: Path):
    path = written(tmp_path, "name: a\nlearner: {lr: -1, stepz: 3}\nrollout: {decode: {candidates: 1}}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{path} has 3 error(s):"
    assert "  learner.lr: Input should be greater than 0 (value: -1)" in lines
    assert "  learner.stepz: Extra inputs are not permitted (value: 3)" in lines
    assert "  rollout.decode.candidates: Input should be greater than or equal to 2 (value: 1)" in lines


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("learner.lr", "write it as some.field=value"),
        ("=3", "write it as some.field=value"),
        ("name.x=1", "name holds a value, not a group of settings"),
        ("learner.lr=[1", "the value is not valid YAML"),
    ],
)
def test_malformed_overrides(tmp_path: Path, override: str, message: str):
    with pytest.raises(ConfigError, match=message):
        load_config(written(tmp_path, "name: a"), [override])


@pytest.mark.parametrize(("text", "message"), [("[1, 2]", "must hold a mapping"), ("a: [", "not valid YAML")])
def test_files_that_are_no_config(tmp_path: Path, text: str, message: str):
    with pytest.raises(ConfigError, match=message):
        load_config(written(tmp_path, text))


def test_a_missing_file_is_named():
    with pytest.raises(ConfigError, match=r"cannot read the config nowhere\.yaml: No such file"):
        load_config("nowhere.yaml")


def test_the_queue_must_hold_a_step(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"queue\.max_groups 31 is below 32"):
        load_config(written(tmp_path, "name: a"), ["queue.max_groups=31", "learner.prompts_per_step=32"])


@pytest.mark.parametrize(
    ("source", "reward", "message"),
    [
        ("{type: movielens-100k}", "click", "MovieLens has ratings alone"),
        (
            "{type: table, interactions: [log]}",
            "dwell_seconds",
            r"name that .* in source\.columns\.dwell_seconds",
        ),
        (
            "{type: table, interactions: [log], columns: {click: c}}",
            "rating",
            r"reward 'rating' is no column",
        ),
    ],
)
def test_the_logged_reward_must_be_a_column_of_the_source(
    tmp_path: Path, source: str, reward: str, message: str
):
    with pytest.raises(ConfigError, match=r"data: .*" + message):
        load_config(written(tmp_path, f"name: a\ndata: {{source: {source}, reward: {reward}}}"))
    for possible in ("auto", "none"):
        load_config(written(tmp_path, f"name: a\ndata: {{source: {source}, reward: {possible}}}"))
    text = "name: a\ndata: {source: {type: table, interactions: [log], columns: {click: c}}, reward: click}"
    assert load_config(written(tmp_path, text)).data.reward == "click"


def test_relative_output_belongs_to_the_working_directory(tmp_path: Path):
    config = load_config(written(tmp_path, "name: a\nseed: 3"))
    placed = place_output(config, Path("/somewhere"), Path("/home/me"))
    assert placed.directory == Path("/somewhere/runs/a-seed3")


def test_relative_output_of_a_job_leaves_the_copied_working_directory(tmp_path: Path):
    copy = Path("/tmp/ray/session_1/runtime_resources/working_dir_files/_ray_pkg_ab12")
    config = load_config(written(tmp_path, "name: a"))
    assert place_output(config, copy, Path("/home/me")).output == "/home/me/sluice/runs"


def test_absolute_output_stays(tmp_path: Path):
    copy = Path("/tmp/ray/session_1/runtime_resources/working_dir_files/_ray_pkg_ab12")
    config = load_config(written(tmp_path, "name: a\noutput: /shared/runs"))
    assert place_output(config, copy, Path("/home/me")).output == "/shared/runs"


def test_the_engine_is_vllm_unless_named_otherwise(tmp_path: Path):
    path = written(tmp_path, "name: a")
    assert load_config(path, ["rollout.engine.threads=2"]).rollout.engine == VllmEngineSettings(threads=2)
    tree = load_config(path, ["rollout.engine.type=tree", "rollout.engine.prompts_per_step=8"])
    assert tree.rollout.engine == TreeEngineSettings(prompts_per_step=8)
    assert load_config(written(tmp_path, dump_config(tree))) == tree


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rollout.engine.type=tree", "rollout.engine.block_size=32"], r"tree\.block_size: Extra inputs"),
        (
            ["rollout.engine.type=tree", "rollout.engine.tensor_parallel=2"],
            r"tree\.tensor_parallel: Extra inputs",
        ),
        (["rollout.engine.prefix_cache_mib=1"], r"vllm\.prefix_cache_mib: Extra inputs"),
        (["rollout.engine.type=sglang"], r"rollout\.engine: .*'sglang'.*'vllm', 'tree'"),
        (["rollout.engine=3"], r"rollout\.engine.* dict"),
    ],
)
def test_an_engine_takes_its_own_settings_only(tmp_path: Path, overrides: list[str], message: str):
    with pytest.raises(ConfigError, match=message):
        load_config(written(tmp_path, "name: a"), overrides)


def test_head_sizes_are_vllms_concern(tmp_path: Path):
    small = ["policy.hidden_size=16", "policy.heads=2"]
    for sizes in (small, ["policy.hidden_size=96", "policy.heads=2"], [*small, "rollout.gpus=1"]):
        with pytest.raises(ConfigError, match="vLLM's attention kernels"):
            load_config(written(tmp_path, "name: a"), sizes)
    assert load_config(
        written(tmp_path, "name: a"), ["policy.hidden_size=96", "policy.heads=2", "rollout.gpus=1"]
    )
    assert load_config(written(tmp_path, "name: a"), [*small, "rollout.engine.type=tree"]).policy.heads == 2


@pytest.mark.parametrize(
    ("objective", "refused"),
    [
        ("{type: grpo}", True),
        ("{type: ecpo}", True),
        ("{type: gbpo}", True),
        ("{type: rere}", True),
        ("{type: ecpo, grpo: {old_policy: batch_start}}", False),
        ("{type: gbpo, grpo: {old_policy: batch_start, correction: {level: token}}}", True),
        ("{type: grpo_sr}", False),
        ("{type: nll}", False),
    ],
)
def test_a_nucleus_is_refused_where_a_ratio_would_be_biased(tmp_path: Path, objective: str, refused: bool):
    path = written(tmp_path, f"name: a\nrollout: {{decode: {{top_p: 0.9}}}}\nobjective: {objective}\n")
    if refused:
        with pytest.raises(ConfigError, match=r"top_p 0\.9 makes the engine normalise over a nucleus"):
            load_config(path)
    else:
        assert load_config(path).rollout.decode.top_p == 0.9


@pytest.mark.parametrize(
    ("gate", "refused"), [("{}", True), ("{mode: soft}", True), ("{mode: random, random_rate: 0.3}", False)]
)
def test_a_gate_needs_a_head_unless_it_is_random(tmp_path: Path, gate: str, refused: bool):
    gated = f"objective: {{type: adagrpo, gate: {gate}}}"  # tau 0.25
    path = written(tmp_path, f"name: a\nrollout: {{decode: {{candidates: 2}}}}\n{gated}\n")
    if refused:
        with pytest.raises(ConfigError, match=r"tau 0.25 of 2 candidates is less than one place"):
            load_config(path)
    else:
        assert load_config(path).objective.gate.random_rate == 0.3


def test_weights_need_propensities(tmp_path: Path):
    path = tmp_path / "config.yaml"
    source = "source: {type: table, interactions: [log.csv], columns: {COLUMNS}}"
    text = "name: weighted\nevaluation: {select_by: weighted}\ndata: {" + source + "}\n"
    path.write_text(text.replace("COLUMNS", "rating: rating"))
    with pytest.raises(ConfigError, match=r"select_by is weighted, and the log has no propensities"):
        load_config(path)
    path.write_text(text.replace("COLUMNS", "slate_position: place"))
    with pytest.raises(ConfigError, match=r"slate_position says nothing without the propensity"):
        load_config(path)
    path.write_text(text.replace("COLUMNS", "propensity: chance, slate_position: place"))
    assert load_config(path).data.source.columns.slate_position == "place"
    path.write_text("name: weighted\nevaluation: {select_by: weighted}\n")
    with pytest.raises(ConfigError, match=r"select_by is weighted, and the log has no propensities"):
        load_config(path)


@pytest.mark.parametrize(("name", "value"), [("propensity_clip", 50.0), ("examination", "none")])
def test_settings_of_weights_need_propensities_too(tmp_path: Path, name: str, value: object):
    path = tmp_path / "config.yaml"
    path.write_text("name: weighted\ndata: {source: {type: table, interactions: [log.csv]}}\n")
    override = f"evaluation.{name}={value}"
    with pytest.raises(ConfigError, match=rf"evaluation.{name} is {value}, and the log has no propensities"):
        load_config(path, [override])
    load_config(path, [override, "data.source.columns.propensity=chance"])


def test_settings_that_came_later_are_written_down_once_they_are_changed(tmp_path: Path):
    path = tmp_path / "config.yaml"
    path.write_text("name: later\n")
    weighed = "data={source: {type: table, interactions: [log.csv], columns: {propensity: chance}}}"
    later = ("propensity", "slate_position", "propensity_clip", "examination", "select_by")
    assert not any(name in dump_config(load_config(path)) for name in later)
    changed = load_config(path, [weighed, "evaluation.propensity_clip=50", "evaluation.examination=none"])
    assert {"propensity_clip: 50.0", "examination: none"} <= {
        line.strip() for line in dump_config(changed).splitlines()
    }


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan"])
def test_a_number_that_is_not_finite_is_refused(tmp_path, value):
    with pytest.raises(ConfigError, match=r"learner\.lr"):
        load_config(_plain(tmp_path), [f"learner.lr={value}"])
    with pytest.raises(ConfigError, match=r"cluster\.start_timeout_s"):
        load_config(_plain(tmp_path), [f"cluster.start_timeout_s={value}"])


def test_a_clip_may_be_turned_off_by_infinity(tmp_path):
    assert (
        load_config(
            _plain(tmp_path), ["objective={type: ppo, clip: .inf}", "learner.updates_per_batch=2"]
        ).objective.clip
        == math.inf
    )


def _plain(tmp_path):
    path = tmp_path / "plain.yaml"
    path.write_text("name: plain\n")
    return path
