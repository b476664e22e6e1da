"""The command line: quick, honest exit codes, and dispatch to the services by name."""

import argparse
import errno
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

import sluice.services.run
from sluice.catalog.data.settings import DataSettings
from sluice.catalog.errors import ClusterError
from sluice.services.bench.harness import BENCHES, RENAMED_BENCHES
from sluice.services.cli import commands
from sluice.services.cli import main as cli
from sluice.services.config import dump_config, load_config
from sluice.services.paths import RunPaths
from sluice.services.preflight import show
from sluice.services.run import fork, inputs, leftovers
from sluice.services.run_lock import hold_run
from sluice.services.stages import prepare

ROOT = Path(__file__).parents[4]
CONFIG = str(ROOT / "configs" / "ml100k.yaml")

COMMANDS = (
    "simulate",
    "prepare",
    "pretrain",
    "fit-ranker",
    "train",
    "evaluate",
    "report",
    "submit",
    "catalogue",
    "config",
)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["submit", "--help"],
        ["config", "check", CONFIG],
        ["config", "explain", "learner.lr", "--config", CONFIG],
    ],
)
def test_nothing_heavy_is_imported(arguments: list[str]):
    script = (
        "import sys\nfrom sluice.services.cli import main as cli\n"
        f"try:\n    cli.main({arguments!r})\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'ray', 'vllm', 'transformers', 'matplotlib', 'pyarrow', 'numpy'} & "
        "set(sys.modules)\n"
        "print('HEAVY', sorted(heavy))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "HEAVY []"


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as end:
        cli.main(["--help"])
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert all(f"    {command}" in out for command in COMMANDS)


def test_config_check_prints_the_resolved_config(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["config", "check", CONFIG, "--set", "learner.lr=1e-5", "--seed", "7"]) == 0
    out = capsys.readouterr().out
    assert "lr: 1.0e-05" in out and "seed: 7" in out and "max_staleness:" in out


def test_config_check_takes_stochastic_beams(capsys: pytest.CaptureFixture[str]):
    changes = ["--set", "rollout.decode.kind=stochastic_beam", "--set", "rollout.decode.constrained=true"]
    assert cli.main(["config", "check", CONFIG, *changes, "--set", "rollout.decode.temperature=0.8"]) == 0
    assert "kind: stochastic_beam" in capsys.readouterr().out
    assert cli.main(["config", "check", CONFIG, *changes, "--set", "rollout.decode.top_p=0.9"]) == 2
    message = capsys.readouterr().err
    assert (
        "rollout.decode: " in message and "top_p is 0.9, but stochastic beams are drawn from all" in message
    )


def test_a_users_mistake_is_one_message_and_its_code(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["config", "check", CONFIG, "--set", "learner.lr=-1"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("sluice: ") and "learner.lr" in captured.err
    assert captured.out == "" and "Traceback" not in captured.err


def test_simulate_writes_a_world_where_it_belongs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "shop.yaml"
    config.write_text("name: shop\nsteps: 4\nitems: {count: 60, categories: 5}\nusers: {count: 30}\n")
    arguments = ["simulate", str(config), "--set", "logger.slate=3", "--seed", "2"]
    assert cli.main(arguments) == 0
    out = capsys.readouterr().out
    assert "30 users, 60 items, 360 impressions" in out and str(tmp_path / "worlds" / "shop-seed2") in out
    assert (tmp_path / "worlds/shop-seed2/truth/users.parquet").is_file()
    assert cli.main([*arguments, "--output", str(tmp_path / "there")]) == 0
    assert (tmp_path / "there" / "world.json").is_file()


def test_simulate_refuses_what_is_no_world(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = tmp_path / "shop.yaml"
    config.write_text("name: shop\nseed: 1\nseed: 2\n")
    assert cli.main(["simulate", str(config)]) == 2
    assert "line 3: the key seed stands twice" in capsys.readouterr().err
    config.write_text("name: shop\nlogger: {slates: 8}\n")
    assert cli.main(["simulate", str(config), "--set", "users.count=0"]) == 2
    message = capsys.readouterr().err
    assert f"{config} has 2 error(s):" in message
    assert "users.count: Input should be greater than or equal to 1 (value: 0)" in message
    assert "logger.slates: Extra inputs are not permitted (value: 8)" in message


def replace_train(monkeypatch: pytest.MonkeyPatch, run: Callable[..., int]) -> None:
    """Nothing is trained, whether or not another test has imported the module already; nothing is
    wrong before that.
    """
    monkeypatch.setattr(show, "check_and_show", lambda *_: 0)
    fake = types.SimpleNamespace(run_training=run)
    monkeypatch.setitem(sys.modules, "sluice.services.run.train", fake)
    monkeypatch.setattr(sluice.services.run, "train", fake, raising=False)


@pytest.mark.parametrize(("error", "code"), [(ClusterError("gone"), 3), (KeyboardInterrupt(), 130)])
def test_exit_codes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: BaseException, code: int):
    monkeypatch.chdir(tmp_path)

    def run(*_: object) -> int:
        raise error

    replace_train(monkeypatch, run)
    assert cli.main(["train", "--config", CONFIG]) == code


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)

    def run(*_: object) -> int:
        raise ZeroDivisionError

    replace_train(monkeypatch, run)
    with pytest.raises(ZeroDivisionError):
        cli.main(["train", "--config", CONFIG])


def test_train_gets_config_and_resume_and_gives_its_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    seen = []
    replace_train(monkeypatch, lambda config, resume: seen.append((config, resume)) or 4)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/ml100k-seed5/checkpoints/train/checkpoint_1").mkdir(parents=True)
    (tmp_path / "runs/ml100k-seed6/checkpoints/train-best").mkdir(parents=True)
    assert cli.main(["train", "--config", CONFIG, "--resume", "--seed", "5"]) == 4
    (config, resume), *_ = seen
    assert resume == "last"
    assert config.directory == tmp_path / "runs" / "ml100k-seed5"
    cli.main(["train", "--config", CONFIG, "--resume", "best", "--seed", "6"])
    cli.main(["train", "--config", CONFIG])
    assert [resume for _, resume in seen[1:]] == ["best", None]


def test_whether_a_run_can_be_resumed_is_said_before_anything_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    replace_train(monkeypatch, lambda config, resume: pytest.fail("trained"))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "--config", CONFIG, "--resume"]) == 4
    assert "nothing to resume" in capsys.readouterr().err
    (tmp_path / "runs/ml100k-seed0/checkpoints/train").mkdir(parents=True)
    assert cli.main(["train", "--config", CONFIG, "--resume"]) == 4
    assert "nothing to resume" in capsys.readouterr().err
    (tmp_path / "runs/ml100k-seed0/checkpoints/train/checkpoint_1").mkdir()
    assert cli.main(["train", "--config", CONFIG]) == 4
    assert "already holds a post-training: give --resume" in capsys.readouterr().err


def test_prepare_goes_to_the_run_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    seen = []
    result = types.SimpleNamespace(lines=lambda: ["943 users"])

    def prepare_data(settings: DataSettings, output: Path, progress: object) -> object:
        seen.append((settings.name, output))
        return result

    for module in (inputs, prepare):
        monkeypatch.setattr(module, "prepare_data", prepare_data)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["prepare", "--config", CONFIG]) == 0
    assert cli.main(["prepare", "--config", CONFIG, "--output", "elsewhere"]) == 0
    assert [output for _, output in seen] == [tmp_path / "runs/ml100k-seed0/data", Path("elsewhere")]


def test_a_stage_of_a_run_that_has_begun_builds_nothing_of_another_config(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for module in (inputs, prepare):
        monkeypatch.setattr(module, "prepare_data", lambda *_: pytest.fail("prepared"))
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs/ml100k-seed0"
    (run / "checkpoints/train-best").mkdir(parents=True)
    (run / "config.yaml").write_text(dump_config(load_config(CONFIG)))
    for stage in ("prepare", "pretrain", "fit-ranker"):
        changes = ["--set", "data.min_interactions=4", "--set", "policy.layers=1", "--set", "ranker.epochs=9"]
        assert cli.main([stage, "--config", CONFIG, *changes]) == 2
        told = capsys.readouterr().err
        assert "was run with another config" in told and "policy.layers" in told
    assert cli.main(["audit", CONFIG, "--set", "ranker.epochs=9"]) == 2
    assert "ranker.epochs" in capsys.readouterr().err
    assert sorted(path.name for path in run.iterdir()) == ["checkpoints", "config.yaml", "run.lock"]


@pytest.mark.parametrize("stage", ["prepare", "pretrain", "fit-ranker"])
def test_a_stage_waits_for_no_run_that_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], stage: str
):
    monkeypatch.chdir(tmp_path)
    with hold_run(tmp_path / "runs/ml100k-seed0"):
        assert cli.main([stage, "--config", CONFIG]) == 4
    assert "is going on" in capsys.readouterr().err


@pytest.mark.parametrize(("begun", "resume"), [(True, "last"), (False, None)])
def test_resume_auto_goes_on_where_there_is_a_checkpoint(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, begun: bool, resume: str | None
):
    """`run_training` is told `auto`, since it decides under the lock."""
    seen = []
    replace_train(monkeypatch, lambda config, given: seen.append(given) or 0)
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs/ml100k-seed0"
    (run / "checkpoints/train").mkdir(parents=True)
    if begun:
        (run / "checkpoints/train-best").mkdir()
    assert cli.main(["train", "--config", CONFIG, "--resume", "auto"]) == 0
    assert seen == ["auto"] and leftovers.check_checkpoints(RunPaths(run), "auto") == resume


def test_a_fork_is_made_once_and_then_gone_on_with(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    seen, forked = [], []
    replace_train(monkeypatch, lambda config, resume: seen.append(resume) or 0)
    monkeypatch.setattr(fork, "fork_run", lambda config, point: forked.append(point) or "forked")
    monkeypatch.chdir(tmp_path)
    command = ["train", "--config", CONFIG, "--fork", "runs/other@20"]
    assert cli.main([*command, "--resume", "best"]) == 2
    assert "--fork begins a run and --resume best goes on with one" in capsys.readouterr().err
    assert cli.main([*command, "--resume", "auto"]) == 0
    assert (seen, forked) == (["last"], [fork.ForkPoint(run_directory=Path("runs/other"), step=20)])
    (tmp_path / "runs/ml100k-seed0/checkpoints/train-best").mkdir(parents=True)
    assert cli.main([*command, "--resume", "auto"]) == 0
    assert (seen, len(forked)) == (["last", "auto"], 1)
    assert cli.main(command) == 4
    assert "already holds a post-training" in capsys.readouterr().err


def test_pushing_to_no_run_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["catalogue", "push", str(tmp_path), "--add", "new.csv"]) == 4
    assert "has no policy in it: give the run directory" in capsys.readouterr().err


def test_evaluate_wants_a_directory(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["evaluate", "--config", CONFIG, "--policy", "nowhere"]) == 2
    assert "--policy nowhere is no directory" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as end:
        cli.main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith("sluice ")


def test_a_bench_is_found_by_its_former_name(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    seen = []
    monkeypatch.setattr(commands, "run_bench", lambda name, *_: seen.append(name) or 0)
    assert cli.main(["bench", "gate", "--quick"]) == 0
    assert [record.getMessage() for record in caplog.records] == [
        "sluice bench: gate is now called floors; the next release refuses the former name"
    ]
    assert cli.main(["bench", "floors"]) == 0
    assert seen == ["floors", "floors"] and len(caplog.records) == 1


def test_every_former_bench_leads_to_one_that_there_is():
    assert set(RENAMED_BENCHES.values()) <= set(BENCHES) and not set(RENAMED_BENCHES) & set(BENCHES)


def test_the_exit_code_reaches_the_shell_and_so_the_job_server():
    command = [sys.executable, "-m", "sluice", "config", "check", CONFIG, "--set", "learner.lr=-1"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 2
    assert subprocess.run(command[:-2], cwd=ROOT, capture_output=True, check=False).returncode == 0


def test_what_the_disk_refuses_is_told_in_one_line(monkeypatch, capsys):
    def raising(error):
        def command(_options):
            raise error

        monkeypatch.setattr(cli, "build_parser", lambda: _Parser(command))
        return cli.main([])

    assert raising(OSError(errno.ENOSPC, "No space left on device", "/runs/a/report.html")) == 4
    told = capsys.readouterr().err
    assert told == (
        "sluice: /runs/a/report.html: No space left on device: the disk is full: make room there\n"
    )
    with pytest.raises(ConnectionResetError):
        raising(ConnectionResetError(errno.ECONNRESET, "reset"))


class _Parser:
    def __init__(self, command):
        self._command = command

    def parse_args(self, _arguments):
        return argparse.Namespace(run=self._command)
