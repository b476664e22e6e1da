"""All findings at once, in order, and what they mean for an exit code."""

import io

import pytest
from pydantic import TypeAdapter

from sluice.catalog.errors import ClusterError
from sluice.learner.objectives.settings.objective import Objective
from sluice.learner.training.objective import _BUILDERS, build_objective
from sluice.services.config import RunConfig
from sluice.services.preflight import preflight
from sluice.services.preflight.finding import Finding, exit_code
from sluice.services.preflight.preflight import check_run, has_rollouts
from sluice.services.preflight.resources import THIS_MACHINE, Machines
from sluice.services.preflight.show import show_findings
from tests.tiny_data import tiny_dataset

LARGE = Machines(name="the cluster", nodes=({"CPU": 64.0},))
TYPES = sorted(kind.model_fields["type"].default for kind in _BUILDERS)


def config(tmp_path, **parts):
    data = tiny_dataset(tmp_path / "data").settings.model_dump(mode="json")
    data["semantic_ids"]["level_sizes"] = [5, 4]
    fitting = {
        "rollout": {"decode": {"candidates": 8}},
        "evaluation": {"beam_width": 10},
        "output": str(tmp_path / "runs"),
    }
    return RunConfig.model_validate({"name": "t", "data": data} | fitting | parts)


def told(config, machines=LARGE, environment=None):
    findings = check_run(config, lambda with_gpus: machines, environment or {})
    return [(finding.kind, finding.field) for finding in findings]


def test_a_run_with_nothing_wrong_has_no_finding(tmp_path):
    assert told(config(tmp_path)) == []


def test_everything_that_is_wrong_is_told_at_once_and_errors_first(tmp_path):
    (tmp_path / "file").write_text("")
    wrong = config(
        tmp_path,
        output=str(tmp_path / "file"),
        policy={"base": str(tmp_path / "gone")},
        evaluation={"beam_width": 30},
        rollout={"cpus": 100, "decode": {"candidates": 32}},
        ranker={"use": "no_such_module:R"},
    )
    machine = Machines(name=THIS_MACHINE, nodes=LARGE.nodes)
    assert told(wrong, machine, {"RAY_TMPDIR": "/" + "n" * 90}) == [
        ("error", "policy.base"),
        ("error", "output"),
        ("error", "ranker.use"),
        ("error", "RAY_TMPDIR"),
        ("error", "rollout.cpus"),
        ("error", "cluster"),
        ("warning", "rollout.decode.candidates"),
        ("warning", "evaluation.beam_width"),
    ]


def test_a_run_without_rollouts_needs_neither_their_settings_nor_their_places(tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "check_ranker", lambda _: pytest.fail("nobody asks the ranker"))
    from_logs = config(
        tmp_path,
        objective={"type": "nll"},
        rollout={"cpus": 100, "decode": {"candidates": 32}},
        ranker={"use": "no_such_module:R"},
    )
    assert told(from_logs) == []
    assert told(from_logs, Machines(name="the cluster", nodes=({"CPU": 0.5},))) == [
        ("error", "cluster.learner_cpus"),
        ("error", "cluster"),
    ]


def test_a_cluster_that_does_not_answer_is_a_finding_with_its_code(tmp_path):
    def refuse(with_gpus):
        raise ClusterError("no Ray cluster answers at 'auto'")

    (finding,) = check_run(config(tmp_path), refuse, {})
    assert (finding.field, finding.exit_code) == ("cluster", 3)


def test_sockets_matter_where_a_head_is_started(tmp_path):
    assert told(config(tmp_path), environment={"RAY_TMPDIR": "/" + "n" * 90}) == []


def test_machines_that_are_not_known_yet_are_left_out(tmp_path):
    assert check_run(config(tmp_path, rollout={"cpus": 100, "decode": {"candidates": 8}}), None, {}) == ()


@pytest.mark.parametrize("gpus", [0, 1])
def test_gpus_are_counted_where_some_are_wanted(tmp_path, gpus):
    asked = []
    wanting = config(tmp_path, rollout={"gpus": gpus, "decode": {"candidates": 8}})
    check_run(wanting, lambda with_gpus: asked.append(with_gpus) or LARGE, {})
    assert asked == [gpus == 1]


@pytest.mark.parametrize("text", TYPES)
def test_who_has_rollouts_is_what_the_objective_says(text):
    variants = [{"type": text}]
    if text == "a_sft":
        variants = [{"type": text, "baseline": {"type": kind}} for kind in ("candidates", "value_head")]
    for variant in variants:
        settings = TypeAdapter(Objective).validate_python(variant)
        assert has_rollouts(settings) == build_objective(settings).needs_groups, variant


def finding(code, value="v\n  w"):
    return Finding(field="f", value=value, bound="b", remedy="r", exit_code=code)


@pytest.mark.parametrize(
    ("codes", "code"), [([], 0), ([0, 0], 0), ([0, 3], 3), ([3, 2], 2), ([2, 0], 2), ([3, 4], 4)]
)
def test_the_exit_code_of_findings(codes, code):
    assert exit_code(finding(code) for code in codes) == code


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_in_a_file_each_finding_is_one_line():
    stream = io.StringIO()
    without = Finding(field="g", value="v", bound="", remedy="", exit_code=0)
    show_findings([finding(2), without], stream)
    assert stream.getvalue() == "error: f: v w; must be: b; remedy: r\nwarning: g: v\n"


def test_in_a_terminal_they_are_a_table():
    stream = Terminal()
    show_findings([finding(2, "[red]")], stream)
    assert [word in stream.getvalue() for word in ("setting", "must be", "error", "[red]")] == [True] * 4
    stream = Terminal()
    show_findings([], stream)
    assert stream.getvalue() == ""
