"""The machinery of gpu-check with fake steps; needs no GPU."""

import json
import os
import subprocess
import sys
import time

import psutil
import pytest

from sluice.services.bench.harness import BENCHES
from tests.gpu.check import device, figures, steps
from tests.gpu.check.probes import differing
from tests.gpu.check.runner import Runner
from tests.gpu.check.step import Budget, Result, Step, StepError
from tests.gpu.check.table import Record, exit_status, markdown, verdict

WAIT_S = 60.0


def fake(name="one", code="", **changes):
    """A step that runs a piece of Python."""
    values = {
        "shows": f"{name} shows",
        "figures": lambda _folder: {"rate": 1.5},
        "limit_s": WAIT_S,
        "least_s": 1.0,
    }
    return Step(name=name, command=(sys.executable, "-c", code), **(values | changes))


def ran(tmp_path, *chosen, total_s=WAIT_S, **changes):
    """The results by name, as they lie on disk."""
    expected = [Result(name=step.name, shows=step.shows) for step in chosen]
    record = Record(tmp_path, {"device": "none"}, expected)
    budget = Budget(total_s=total_s, clock=time.monotonic, started_s=time.monotonic())
    runner = Runner(budget=budget, output=tmp_path, environment=os.environ, record=record.add, **changes)
    runner.run(chosen)
    return {step["name"]: step for step in on_disk(tmp_path)["steps"]}


def on_disk(output):
    return json.loads((output / "gpu-check.json").read_text())


def test_a_bound_is_the_steps_own_or_what_is_left():
    now = [100.0]
    budget = Budget(total_s=480, clock=lambda: now[0], started_s=100.0)
    step = fake(limit_s=120, least_s=20)
    found = []
    for passed_s in (0, 300, 400, 460, 461, 500):
        now[0] = 100 + passed_s
        found.append(budget.bound_s(step))
    assert found == [120, 120, 80, 20, None, None]


def test_a_crash_takes_no_other_step_down(tmp_path):
    found = ran(
        tmp_path,
        fake("dies", "import os; print('about to', flush=True); os.abort()"),
        fake("says why", "import sys; print('ERROR: no such thing'); print('bye'); sys.exit(3)"),
        fake("works"),
    )
    assert {name: step["outcome"] for name, step in found.items()} == {
        "dies": "failed",
        "says why": "failed",
        "works": "passed",
    }
    assert found["dies"]["note"] == "exit status -6; about to"
    assert found["says why"]["note"] == "exit status 3; ERROR: no such thing"
    assert found["works"]["figures"] == {"rate": 1.5} and found["works"]["note"] == ""


def test_a_hang_is_ended_with_all_that_it_started(tmp_path):
    child = "import time; time.sleep(600)"
    code = f"""
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
other = subprocess.Popen([sys.executable, "-c", {child!r}], start_new_session=True)
print(other.pid, flush=True)
time.sleep(600)
"""
    found = ran(tmp_path, fake("hangs", code, limit_s=2.0), fake("works"))
    left_over = int((tmp_path / "hangs" / "output.txt").read_text())
    assert found["hangs"]["outcome"] == "failed"
    assert found["hangs"]["note"].startswith("no end within 2 s")
    assert not psutil.pid_exists(left_over) or psutil.Process(left_over).status() == psutil.STATUS_ZOMBIE
    assert found["works"]["outcome"] == "passed"


def test_what_the_budget_leaves_out_is_said(tmp_path):
    found = ran(tmp_path, fake("long", "import time; time.sleep(600)"), fake("late"), total_s=2.0)
    assert (found["long"]["outcome"], found["late"]["outcome"]) == ("out of time", "not run")
    assert found["long"]["note"].startswith("cut off after 2 s")
    assert found["late"]["note"] == "out of time: the 2 s are used up"
    assert on_disk(tmp_path)["verdict"] == "0 of 2 steps passed; long out of time, late not run"


def test_results_are_on_disk_before_the_next_step_begins(tmp_path):
    code = f"import json; print(json.load(open({str(tmp_path / 'gpu-check.json')!r}))['verdict'])"
    ran(tmp_path, fake("first"), fake("second", code))
    assert (tmp_path / "second" / "output.txt").read_text() == "1 of 2 steps passed; second not run\n"


def test_an_interrupt_ends_the_step_under_way(tmp_path):
    steps_run = []

    def interrupt(result):
        steps_run.append(result.name)
        raise KeyboardInterrupt

    budget = Budget(total_s=WAIT_S, clock=time.monotonic, started_s=time.monotonic())
    runner = Runner(budget=budget, output=tmp_path, environment=os.environ, record=interrupt, beside=2)
    started_s = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        runner.run([fake("first"), fake("other", "import time; time.sleep(600)"), fake("timed", alone=True)])
    assert "timed" not in steps_run and not (tmp_path / "timed").exists()
    assert time.monotonic() - started_s < WAIT_S


def test_timed_steps_run_alone(tmp_path):
    meet = "import pathlib, time\nmine, other = pathlib.Path({!r}), pathlib.Path({!r})\nmine.touch()\n"
    wait = "until = time.monotonic() + 30\nwhile not other.exists():\n  assert time.monotonic() < until\n"
    first, second = str(tmp_path / "1"), str(tmp_path / "2")
    found = ran(
        tmp_path,
        fake("timed", "", alone=True),
        fake("one", (meet + wait).format(first, second)),
        fake("two", (meet + wait).format(second, first)),
        beside=2,
    )
    assert {step["outcome"] for step in found.values()} == {"passed"}
    order = [tmp_path / name / "output.txt" for name in ("one", "two", "timed")]
    assert max(path.stat().st_ctime_ns for path in order[:2]) <= order[2].stat().st_ctime_ns


def test_figures_that_are_missing_or_bad_fail_a_step(tmp_path):
    def bad(_folder):
        raise StepError("no test ran; 5 were skipped")

    found = ran(tmp_path, fake("missing", figures=figures.of_json), fake("bad", figures=bad))
    assert {step["outcome"] for step in found.values()} == {"failed"}
    assert found["missing"]["note"].startswith("its figures cannot be read: FileNotFoundError")
    assert found["bad"]["note"] == "no test ran; 5 were skipped"


def test_counts_are_read_from_pytest(tmp_path):
    suite = '<testsuites><testsuite tests="{}" skipped="{}" errors="0" failures="0" /></testsuites>'
    (tmp_path / "junit.xml").write_text(suite.format(7, 2))
    assert figures.of_tests(tmp_path) == {"passed": 5, "skipped": 2}
    (tmp_path / "junit.xml").write_text(suite.format(2, 2))
    with pytest.raises(StepError, match="2 were skipped"):
        figures.of_tests(tmp_path)


def test_the_extremes_of_a_benchs_rows_are_read(tmp_path):
    rows = [{"speedup": 3.0}, {"speedup": None}, {"speedup": 2.0}]
    (tmp_path / "bench.json").write_text(json.dumps({"ratio": 0.5, "rows": rows}))
    assert figures.of_bench("ratio", rows=("speedup",))(tmp_path) == {"ratio": 0.5, "speedup": [2.0, 3.0]}


def test_the_table_says_what_failed_and_why():
    figure = {"rate": [1.0, 2.0]}
    results = [
        Result(name="good", shows="this", outcome="passed", seconds=12.4, figures=figure, note=""),
        Result(name="bad", shows="that", outcome="failed", seconds=3.0, note="a | b\nc"),
    ]
    text = markdown({"device": "an H200"}, results)
    assert "| good | passed | 12 | rate 1 to 2 | this |" in text
    assert r"| bad | failed | 3 |  | a \| b c |" in text
    assert "Verdict: 1 of 2 steps passed; bad failed." in text and "- device: an H200" in text
    assert verdict(results[:1]) == "passed"


def test_a_check_passes_when_every_step_has():
    good = Result(name="good", shows="", outcome="passed", note="")
    for other in ("failed", "out of time", "not run"):
        assert exit_status([good, Result(name="other", shows="", outcome=other)], on_cpu=False) == 1
    gpu_alone = Result(name="other", shows="", note="needs a GPU")
    assert exit_status([good], on_cpu=False) == 0
    assert exit_status([good, gpu_alone], on_cpu=True) == 0
    assert exit_status([good, gpu_alone], on_cpu=False) == 1
    assert exit_status([gpu_alone], on_cpu=True) == 1


def test_packages_are_compared_with_the_lock():
    lock = f"# Every package\npsutil=={psutil.__version__}\npytest===0.1\nno-such-package==1.2\n"
    assert differing(lock) == [f"pytest {pytest.__version__} (0.1)", "no-such-package missing (1.2)"]


def test_the_steps_fit_together():
    every = steps.steps(on_cpu=False, check_versions=True)
    names = [step.name for step in every]
    assert len(names) == len(set(names))
    assert {"environment", "tests", "vllm", "transport", "learner", "tree", "train"} < set(names)
    assert {name.removeprefix("bench-") for name in names if name.startswith("bench-")} <= BENCHES.keys()
    files = [part for step in every for part in step.command if part.startswith("tests/")]
    assert len(files) >= 5 and all((steps.ROOT / file).is_file() for file in files)
    assert all(step.least_s <= step.limit_s for step in every)
    train = next(step for step in every if step.name == "train")
    assert "rollout.gpus=0.4" in train.command
    assert "rollout.gpus=0.4" not in next(s for s in steps.steps(True, False) if s.name == "train").command


def test_the_train_steps_settings_are_valid():
    from sluice.services.config import load_config

    train = steps.train(on_cpu=False)
    command = [part.replace("{out}", "folder") for part in train.command]
    overrides = [command[at + 1] for at, part in enumerate(command) if part == "--set"]
    config = load_config(command[command.index("--config") + 1], overrides)
    assert (config.learner.steps, config.learner.precision, config.rollout.gpus) == (6, "bfloat16", 0.4)


def test_a_machine_without_a_gpu_is_told_so_at_once(monkeypatch, tmp_path):
    monkeypatch.setattr(device, "DRIVER", tmp_path / "nothing")
    monkeypatch.setattr(device.shutil, "which", lambda _name: None)
    assert device.gpus() == []
    (tmp_path / "0000:01:00.0").mkdir()
    monkeypatch.setattr(device, "DRIVER", tmp_path)
    assert device.gpus() == ["0000:01:00.0"]


def test_the_device_is_asked_for_before_anything_is_installed():
    code = "import sys; import tests.gpu.check.device; print({'torch', 'psutil', 'rich'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(steps.ROOT)!r}); {code}"],
        capture_output=True,
        text=True,
        check=True,
        timeout=WAIT_S,
    )
    assert done.stdout == "set()\n"


def test_the_command_line_names_its_steps_and_refuses_others(capsys, monkeypatch):
    from tests.gpu.check import __main__ as check

    monkeypatch.setattr(sys, "argv", ["check", "--list"])
    assert check.main() == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert listed == [step.name for step in steps.steps(on_cpu=False, check_versions=True)]
    monkeypatch.setattr(sys, "argv", ["check", "--only", "tree", "--only", "nothing"])
    assert check.main() == 2
    assert "no step nothing" in capsys.readouterr().err
    monkeypatch.setattr(check.device, "gpus", lambda: [])
    monkeypatch.setattr(sys, "argv", ["check"])
    assert check.main() == 1
    assert "no NVIDIA GPU" in capsys.readouterr().err
