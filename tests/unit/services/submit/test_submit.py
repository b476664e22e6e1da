"""Submission: what goes to the job server, and what a job's end and log become. No Ray is started."""

import contextlib
import http.server
import json
import os
import shlex
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests

from sluice.catalog.errors import ClusterError, ConfigError, RunError
from sluice.cluster.environment import ALLOCATOR
from sluice.services.config import RunConfig, dump_config, load_config
from sluice.services.run_lock import hold_run
from sluice.services.submit import head as head_module
from sluice.services.submit import machines, submit
from sluice.services.submit.follow import LineSplitter, call_with_bound, exit_code
from sluice.services.submit.head import Head, free_ports
from sluice.services.submit.submit import (
    EXCLUDES,
    JobRequest,
    SubmitOptions,
    absolute_paths,
    check_visible_run,
    job_request,
)

TABLE = """name: mine
data:
  source: {type: table, interactions: [clicks, /abs/more.csv], catalogue: items.parquet}
policy: {base: models/base}
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "plain.yaml").write_text("name: plain\n")
    (tmp_path / "configs" / "table.yaml").write_text(TABLE)
    return tmp_path


def request(checkout: Path, local: bool, name: str = "plain", **changes: object):
    options = SubmitOptions(config=Path("configs") / f"{name}.yaml", **changes)
    return job_request(options, load_config(checkout / options.config, options.overrides), checkout, local)


def test_a_local_job_runs_this_interpreter_and_writes_where_we_would(checkout: Path):
    got = shlex.split(request(checkout, True, overrides=("learner.lr=1e-5",), resume="best").entrypoint)
    assert got == [
        *(sys.executable, "-m", "sluice", "train", "--config", f"{checkout}/configs/plain.yaml"),
        *("--set", "learner.lr=1e-5", "--set", f'output="{checkout}/runs"', "--resume", "best"),
    ]


def refused(checkout: Path, config: RunConfig, local: bool) -> bool:
    try:
        check_visible_run(config, checkout, SubmitOptions(config=Path("c"), resume="auto"), local)
    except ConfigError as error:
        assert "policy.layers 4 -> 5" in str(error)
        return True
    return False


def test_a_resumed_run_is_checked_before_the_job_is_sent_where_it_is_seen(checkout: Path):
    plain = checkout / "configs" / "plain.yaml"
    run = checkout / "runs" / "plain-seed0"
    (run / "checkpoints" / "train-best").mkdir(parents=True)
    (run / "config.yaml").write_text(dump_config(load_config(plain)))
    changed = load_config(plain, ["policy.layers=5"])
    assert refused(checkout, changed, local=True)
    assert not refused(checkout, load_config(plain, ["learner.steps=9"]), local=True)
    assert not refused(checkout, changed, local=False), "a relative output of a cluster lies elsewhere"
    shared = load_config(plain, ["policy.layers=5", f"output={checkout}/runs"])
    assert refused(checkout, shared, local=False)
    assert not refused(checkout, load_config(plain, ["policy.layers=5", "seed=1"]), local=True), "no record"


def test_a_run_that_cannot_be_resumed_starts_no_cluster(checkout: Path, monkeypatch: pytest.MonkeyPatch):
    plain = checkout / "configs" / "plain.yaml"
    (checkout / "runs" / "plain-seed0" / "checkpoints" / "train-best").mkdir(parents=True)
    (checkout / "runs" / "plain-seed0" / "config.yaml").write_text(dump_config(load_config(plain)))
    monkeypatch.chdir(checkout)
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(submit, "_local_head", lambda: pytest.fail("a head was looked for"))
    with pytest.raises(ConfigError, match=r"policy\.layers 4 -> 5"):
        submit.submit_job(SubmitOptions(config=plain, overrides=("policy.layers=5",), resume="last"))


def test_what_git_ignores_is_no_matter_here_and_is_told_before_it_goes_to_a_cluster(checkout: Path):
    (checkout / ".gitignore").write_text("configs/\n")
    assert f"{checkout}/configs/plain.yaml" in request(checkout, True).entrypoint
    with pytest.raises(ConfigError, match=r"configs/plain\.yaml would be missing in the job: .*gitignore"):
        request(checkout, False)


@pytest.mark.parametrize("name", ["my/ranker.py", "my/ranker/__init__.py"])
def test_a_ranker_that_the_job_would_not_get_is_told(checkout: Path, name: str):
    (checkout / name).parent.mkdir(parents=True)
    (checkout / name).write_text("")
    own = ("ranker.use=my.ranker:R",)
    assert request(checkout, True, overrides=own) and request(checkout, False, overrides=own)
    (checkout / ".rayignore").write_text("my/\n")
    for local in (True, False):
        with pytest.raises(ConfigError, match=rf"{name} would be missing in the job"):
            request(checkout, local, overrides=own)
    assert request(checkout, True, overrides=("ranker.use=elsewhere.ranker:R",))
    (checkout / ".rayignore").unlink()
    with pytest.raises(ConfigError, match=rf"{name} would be missing in the job: .*/my/"):
        request(checkout, True, overrides=(*own, "output=my"))


@pytest.fixture
def alone(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory on a machine without a head, where starting one fails the test."""
    monkeypatch.chdir(checkout)
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(machines, "find_head", lambda: None)
    monkeypatch.setattr(submit, "ensure_token", lambda: None)
    monkeypatch.setattr(submit, "_local_head", lambda: pytest.fail("a head was looked for"))
    return checkout


def test_a_run_with_something_wrong_starts_no_cluster(alone: Path, capsys: pytest.CaptureFixture[str]):
    config = alone / "missing.yaml"
    config.write_text("name: m\ndata: {source: {type: table, interactions: [gone.csv]}}\n")
    assert submit.submit_job(SubmitOptions(config=config)) == 2
    assert "error: data.source.interactions: there is no file gone.csv" in capsys.readouterr().err


def test_a_request_that_this_machine_can_never_grant_ends_with_the_clusters_code(
    alone: Path, capsys: pytest.CaptureFixture[str]
):
    plain = alone / "configs" / "plain.yaml"
    overrides = ("rollout.actors=999", "rollout.engine.type=tree")
    assert submit.submit_job(SubmitOptions(config=plain, overrides=overrides)) == 3
    assert "999 x rollout with 1 CPU" in capsys.readouterr().err


def test_a_fork_is_named_by_a_path_that_the_job_finds(checkout: Path):
    local = shlex.split(request(checkout, True, fork="runs/other-seed0@40", resume="auto").entrypoint)
    assert local[-4:] == ["--resume", "auto", "--fork", f"{checkout}/runs/other-seed0@40"]
    with pytest.raises(ConfigError, match="--fork runs/other-seed0: give the absolute path"):
        request(checkout, False, fork="runs/other-seed0")
    assert "--fork /shared/other@40" in request(checkout, False, fork="/shared/other@40").entrypoint


@pytest.mark.parametrize(
    ("resume", "fork", "refusal"),
    [
        (None, None, "already holds a post-training"),
        (None, "/other", "already holds a post-training"),
        ("auto", "/other", None),
        ("auto", None, None),
        ("last", None, None),
    ],
)
def test_a_run_that_has_begun_is_gone_on_with_or_refused_before_the_job_is_sent(
    checkout: Path, resume: str | None, fork: str | None, refusal: str | None
):
    (checkout / "runs" / "plain-seed0" / "checkpoints" / "train-best").mkdir(parents=True)
    config = load_config(checkout / "configs" / "plain.yaml")
    options = SubmitOptions(config=Path("c"), resume=resume, fork=fork)
    expected = contextlib.nullcontext() if refusal is None else pytest.raises(RunError, match=refusal)
    with expected:
        check_visible_run(config, checkout, options, local=True)


def test_a_run_that_goes_on_is_not_submitted_again(alone: Path):
    plain = alone / "configs" / "plain.yaml"
    going_on = pytest.raises(RunError, match="is going on")
    with hold_run(alone / "runs" / "plain-seed0"), going_on:
        submit.submit_job(SubmitOptions(config=plain))


def test_a_run_elsewhere_is_left_to_its_job(alone: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(submit, "_check_here", lambda config: pytest.fail("looked at this machine"))
    monkeypatch.setattr(submit, "_remote_head", lambda *_: (_ for _ in ()).throw(ClusterError("gone")))
    with pytest.raises(ClusterError, match="gone"):
        submit.submit_job(SubmitOptions(config=Path("configs/plain.yaml"), address="http://elsewhere:8265"))


def test_no_proxy_stands_between_us_and_a_head_here(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NO_PROXY", "internal.example,127.0.0.1")
    monkeypatch.delenv("no_proxy", raising=False)
    for _ in range(2):
        head_module.bypass_proxies("http://127.0.0.1:8265")
    assert os.environ["NO_PROXY"] == "internal.example,127.0.0.1"
    assert os.environ["no_proxy"] == "127.0.0.1"
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.example:9")
    assert requests.utils.get_environ_proxies("http://127.0.0.1:8265/api") == {}
    assert requests.utils.get_environ_proxies("http://other.example/api") != {}


def test_a_head_here_is_reached_without_proxies(monkeypatch: pytest.MonkeyPatch):
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(
        submit, "find_head", lambda: Head(url="http://10.1.2.3:8265", address="10.1.2.3:6379")
    )
    assert submit._local_head().url == "http://10.1.2.3:8265"
    assert os.environ["NO_PROXY"] == "10.1.2.3"


def test_a_remote_job_runs_the_clusters_python_and_keeps_paths(checkout: Path):
    got = request(checkout, False).entrypoint
    assert got == "python -m sluice train --config configs/plain.yaml"


def test_the_job_reports_progress_as_marked_lines(checkout: Path):
    environment = request(checkout, True).runtime_env
    assert environment["working_dir"] == str(checkout)
    assert environment["env_vars"]["SLUICE_PROGRESS"] == "json"


def test_all_processes_of_a_job_know_which_cluster_is_theirs(checkout: Path):
    plain = request(checkout, True)
    located = plain.on("10.0.0.5:6379")
    assert located.runtime_env["env_vars"] == plain.runtime_env["env_vars"] | {"RAY_ADDRESS": "10.0.0.5:6379"}
    assert (located.entrypoint, located.runtime_env["excludes"]) == (
        plain.entrypoint,
        plain.runtime_env["excludes"],
    )
    assert "RAY_ADDRESS" not in plain.runtime_env["env_vars"]
    assert plain.on(None) == plain


def test_all_processes_of_the_job_keep_their_memory(checkout: Path):
    assert request(checkout, True).runtime_env["env_vars"].items() >= ALLOCATOR.items()


def test_caches_of_compiled_code_stay_where_the_user_put_them(checkout: Path, monkeypatch):
    monkeypatch.delenv("VLLM_CACHE_ROOT", raising=False)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/volume/inductor")
    variables = request(checkout, False).runtime_env["env_vars"]
    assert variables["TORCHINDUCTOR_CACHE_DIR"] == "/volume/inductor"
    assert "VLLM_CACHE_ROOT" not in variables


def test_bulky_directories_stay_behind(checkout: Path):
    environment = request(checkout, True, overrides=("output=out/mine",)).runtime_env
    assert environment["excludes"] == [*EXCLUDES, "/out/mine/"]
    assert {".venv/", ".git/", "runs/"} <= set(EXCLUDES)
    assert request(checkout, True, overrides=("output=/elsewhere",)).runtime_env["excludes"] == list(EXCLUDES)


def test_a_config_elsewhere_is_fine_here_but_not_for_a_cluster(
    checkout: Path, tmp_path_factory: pytest.TempPathFactory
):
    outside = tmp_path_factory.mktemp("other") / "c.yaml"
    outside.write_text("name: c")
    options, config = SubmitOptions(config=outside), load_config(outside)
    assert str(outside) in shlex.split(job_request(options, config, checkout, local=True).entrypoint)
    with pytest.raises(ConfigError, match="move it there"):
        job_request(options, config, checkout, local=False)


def test_absolute_paths_are_overrides_that_load(checkout: Path):
    path = checkout / "configs" / "table.yaml"
    overrides = absolute_paths(load_config(path), checkout)
    config = load_config(path, overrides)
    assert config.output == f"{checkout}/runs"
    assert config.policy.base == f"{checkout}/models/base"
    assert config.data.source.interactions == (f"{checkout}/clicks", "/abs/more.csv")
    assert config.data.source.catalogue == f"{checkout}/items.parquet"


def test_an_absent_path_is_not_overridden(checkout: Path):
    overrides = absolute_paths(load_config(checkout / "configs" / "plain.yaml"), checkout)
    assert overrides == [f"output={json.dumps(str(checkout / 'runs'))}"]


@pytest.mark.parametrize(
    ("status", "driver", "code"),
    [
        ("SUCCEEDED", 0, 0),
        ("SUCCEEDED", None, 0),
        ("FAILED", 4, 4),
        ("FAILED", None, 1),
        ("FAILED", 0, 1),
        ("FAILED", -9, 137),
        ("STOPPED", None, 130),
        ("STOPPED", -15, 130),
    ],
)
def test_exit_code(status: str, driver: int | None, code: int):
    assert exit_code(status, driver) == code


def test_lines_are_whole_however_the_chunks_fall():
    splitter = LineSplitter()
    assert splitter.feed("one\ntw") == ["one"]
    assert splitter.feed("o") == []
    assert splitter.feed("\n\nlast") == ["two", ""]
    assert splitter.flush() == ["last"]
    assert splitter.flush() == []


def test_bounded_passes_values_and_errors_and_gives_up():
    def fail() -> int:
        raise ValueError(7)

    assert call_with_bound(lambda: 3, 5.0, "count") == 3
    with pytest.raises(ClusterError, match="could not count: 7"):
        call_with_bound(fail, 5.0, "count")
    never = threading.Event()
    with pytest.raises(ClusterError, match=r"could not wait: the job server did not answer within 0 s"):
        call_with_bound(never.wait, 0.01, "wait")
    never.set()


def test_free_ports_are_distinct_and_avoid_a_taken_one():
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ports = free_ports([port, port, port])
    assert port not in ports
    assert len(set(ports)) == 3
    assert all(20000 <= other < 32000 for other in ports)


def test_a_job_is_submitted_again_while_the_head_has_no_agent_yet(monkeypatch: pytest.MonkeyPatch):
    answers = []

    class Client:
        def submit_job(self, entrypoint: str, runtime_env: dict):
            answer = answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return f"{answer} {entrypoint}"

    def submitted(*given: object) -> str:
        answers[:] = given
        return submit._submit_job(Client(), JobRequest(entrypoint="train", runtime_env={}))

    no_agent = RuntimeError("status code 500: No available agent to submit job")
    monkeypatch.setattr(submit.time, "sleep", lambda _: None)
    assert submitted(no_agent, no_agent, "job-1") == "job-1 train"
    with pytest.raises(RuntimeError, match="400"):
        submitted(RuntimeError("status code 400: working_dir is no directory"), "job-2")
    monkeypatch.setattr(submit, "AGENT_TIMEOUT_S", -1.0)
    with pytest.raises(RuntimeError, match="No available agent"):
        submitted(no_agent, "too late")


class Process:
    """A head's process, as far as ending it goes."""

    pid = 4711

    def __init__(self):
        self.ended = False

    def terminate(self):
        self.ended = True

    def wait(self, timeout: float):
        del timeout


class Jobs:
    """A job server with these jobs: id -> status."""

    def __init__(self, **jobs: str):
        self.jobs = jobs

    def list_jobs(self):
        if "unreachable" in self.jobs:
            raise ConnectionError("refused")
        return [
            SimpleNamespace(submission_id=name, job_id=None, status=SimpleNamespace(value=status))
            for name, status in self.jobs.items()
        ]


@pytest.fixture
def own_head(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A head of ours, which later comers would find by its address."""
    monkeypatch.setattr(head_module.os, "killpg", lambda pid, number: None)
    address = tmp_path / "ray" / "ray_current_cluster"
    address.parent.mkdir()
    address.write_text("10.0.0.5:6379\n")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    return Head(url="http://127.0.0.1:8265", address="10.0.0.5:6379", process=Process()), address


@pytest.mark.parametrize(
    "jobs",
    [
        {"ours": "RUNNING"},
        {"ours": "SUCCEEDED", "before": "FAILED", "stopped": "STOPPED"},
        {"unreachable": ""},
    ],
)
def test_a_head_of_ours_ends_with_its_last_job_and_cannot_be_found_meanwhile(jobs, own_head):
    head, address = own_head
    submit._end(head, Jobs(**jobs), "ours")
    assert head.process.ended
    assert not address.exists()


def test_a_head_that_takes_long_to_end_costs_a_line_and_not_the_jobs_exit_code(own_head, monkeypatch, capsys):
    head, address = own_head

    def too_long(timeout):
        raise subprocess.TimeoutExpired("ray start", timeout)

    monkeypatch.setattr(head.process, "wait", too_long)
    submit._end(head, None, None)
    assert head.process.ended and not address.exists()
    assert "the Ray head (process 4711) was killed and has not ended yet" in capsys.readouterr().err


@pytest.mark.parametrize("status", ["RUNNING", "PENDING"])
def test_a_head_on_which_somebody_elses_job_runs_stays(status, own_head, capsys):
    head, address = own_head
    submit._end(head, Jobs(ours="SUCCEEDED", theirs=status), "ours")
    assert not head.process.ended and address.exists()
    said = capsys.readouterr().err
    assert "the Ray head stays, since theirs still runs on it; end it after that: kill 4711" in said


def test_the_address_of_a_later_head_stays(own_head):
    head, address = own_head
    address.write_text("10.0.0.5:26379")
    submit._end(head, None, None)
    assert head.process.ended and address.exists()


@pytest.mark.parametrize(
    ("head", "stopping", "told"),
    [
        (Head(url="u"), False, "the job goes on"),
        (Head(url="u"), True, "the job is being stopped, and nobody waits for its end here"),
        (
            Head(url="u", process=SimpleNamespace(pid=4711)),
            True,
            "the job is being stopped, and nobody waits for its end here; the Ray head that was started for "
            "it stays: kill 4711 once it has ended",
        ),
    ],
)
def test_what_is_left_behind_is_told(head: Head, stopping: bool, told: str):
    assert submit._left_behind(head, stopping) == told


@pytest.fixture
def dashboard():
    """A job server that wants a token, at host:port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(401 if self.path == "/api/jobs/" else 404)
            self.end_headers()

        def log_message(self, *_arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("name", ["--address", "RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"])
def test_the_port_of_a_dashboard_in_a_clusters_place_is_told_at_once(name: str, dashboard: str, monkeypatch):
    for variable in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        monkeypatch.delenv(variable, raising=False)
    if name != "--address":
        monkeypatch.setenv(name, dashboard)
    with pytest.raises(ClusterError, match=rf"^{name} is {dashboard}, the port of a dashboard and "):
        machines.name_remote(dashboard if name == "--address" else None)
    assert machines.name_remote(f"http://{dashboard}") == f"http://{dashboard}"


def test_an_address_where_nobody_listens_is_told_at_once(monkeypatch):
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ClusterError, match=f"RAY_ADDRESS is {address}, and nobody listens there"):
        machines.name_remote(None)


def test_the_address_of_a_cluster_is_taken_as_it_is(monkeypatch):
    for variable in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        monkeypatch.delenv(variable, raising=False)
    assert machines.name_remote(None) is None
    assert machines.name_remote("ray://head:10001") == "ray://head:10001"
    with socket.socket() as gcs:  # anything that is no job server
        gcs.bind(("127.0.0.1", 0))
        gcs.listen()
        address = f"127.0.0.1:{gcs.getsockname()[1]}"
        monkeypatch.setattr(head_module, "_QUERY_TIMEOUT_S", 0.2)
        assert machines.name_remote(address) == address
