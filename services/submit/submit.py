"""`sluice submit`: run `sluice train` as a Ray job, on a given cluster, on this machine's head, or on one of
its own.

On this machine the job runs with the interpreter of this command and writes where this command would:
relative paths of the config are made absolute, because a job runs in a copy of the working directory. On
another cluster the job's `python` and the cluster's storage count, so `output` should name storage that every
node sees.
"""

import dataclasses
import json
import logging
import os
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sluice.catalog.errors import ConfigError
from sluice.cluster.environment import job_environment
from sluice.services.config import Resume, RunConfig, load_config, place_output
from sluice.services.config_resume import check_resume
from sluice.services.interrupts import sigterm_interrupts
from sluice.services.paths import RunPaths
from sluice.services.progress import MODE_VARIABLE
from sluice.services.run.leftovers import check_checkpoints, is_forking
from sluice.services.run.manifest import GIT_VARIABLE, git_state
from sluice.services.run_lock import check_idle
from sluice.services.submit.follow import call_with_bound, follow_job, others_running
from sluice.services.submit.head import (
    Head,
    bypass_proxies,
    ensure_token,
    find_head,
    start_head,
    use_token_if_any,
)
from sluice.services.submit.machines import machines_of_new_head, name_remote
from sluice.services.submit.shipped import left_out, ranker_files

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

CONNECT_TIMEOUT_S = 60.0
UPLOAD_TIMEOUT_S = 600.0
AGENT_TIMEOUT_S = 90.0
_NO_AGENT = "No available agent"  # Ray has no class of error for it
_CHATTY = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
EXCLUDES = (
    ".git/",
    ".venv/",
    "runs/",
    "build/",
    "dist/",
    "*.egg-info/",
    "__pycache__/",
    ".pytest_cache/",
    ".hypothesis/",
    ".ruff_cache/",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SubmitOptions:
    """What the command line asked for."""

    config: Path
    overrides: tuple[str, ...] = ()
    resume: Resume = None
    fork: str | None = None  # RUN_DIR[@STEP]
    detach: bool = False
    address: str | None = None
    keep_cluster: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class JobRequest:
    """What goes to the job server."""

    entrypoint: str
    runtime_env: dict[str, Any]

    def on(self, address: str | None) -> "JobRequest":
        """The same for a cluster whose address is known: without it, Ray's own helpers in the job look for a
        cluster on the machine, and take the latest when there are several.
        """
        if not address:
            return self
        variables = self.runtime_env["env_vars"] | {"RAY_ADDRESS": address}
        return dataclasses.replace(self, runtime_env=self.runtime_env | {"env_vars": variables})


def submit_job(options: SubmitOptions) -> int:
    """Submit, follow, and return the job's exit code (0 at once with `detach`)."""
    config = load_config(options.config, options.overrides)  # a mistake should cost no cluster start
    remote = name_remote(options.address)
    check_visible_run(config, Path.cwd(), options, local=remote is None)
    _authenticate(remote)
    request = job_request(options, config, working_directory=Path.cwd(), local=remote is None)
    # On another cluster the job does this first: it sees the files there.
    code = _check_here(config) if remote is None else 0
    if code:
        return code
    with sigterm_interrupts():
        head = _remote_head(remote, config) if remote else _local_head()
        leave_head = True
        client = job = None
        try:
            client = _connect(head.url)
            located = request.on(head.address)
            job = call_with_bound(lambda: _submit_job(client, located), UPLOAD_TIMEOUT_S, "submit the job")
            _tell(f"job {job} on {head.url}")
            if options.detach:
                _tell(_how_to_follow(head, job))
                return 0
            outcome = follow_job(client, job)
            leave_head = options.keep_cluster or not outcome.finished
            if not outcome.finished:
                _tell(f"{_left_behind(head, outcome.stopping)}\n{_how_to_follow(head, job)}")
            return outcome.exit_code
        except BaseException:
            leave_head = options.keep_cluster
            raise
        finally:
            if not leave_head:
                _end(head, client, job)


def _authenticate(remote: str | None) -> None:
    """Has to come before Ray is imported."""
    if remote is None:
        ensure_token()
    else:
        use_token_if_any()


def _check_here(config: RunConfig) -> int:
    """What else can be checked before a job is sent to this machine; an exit code, 0 when it may go."""
    from sluice.services.preflight.show import check_and_show

    config = place_output(config, Path.cwd(), Path.home())
    return check_and_show(config, machines_of_new_head(), sys.stderr)


def check_visible_run(
    config: RunConfig, working_directory: Path, options: SubmitOptions, local: bool
) -> None:
    """Check a run before the job is sent, as the job will, where its directory is seen from here.

    Raises:
        ConfigError: the config changes what a resumed run must not change.
        RunError: the run is going on, there is nothing to resume, or what is there is not to be resumed.
    """
    output = Path(config.output).expanduser()
    if local or output.is_absolute():
        paths = RunPaths(working_directory / output / config.directory.name)
        check_idle(paths.root)
        forks = is_forking(paths, options.resume, options.fork)
        if check_checkpoints(paths, None if forks else options.resume):
            check_resume(config, paths.root)


def _end(head: Head, client: "JobSubmissionClient | None", own: str | None) -> None:
    """End a head of ours, unless somebody's job has come to it meanwhile."""
    others = others_running(client, own) if client is not None and head.process is not None else []
    if not others:
        if not head.stop():
            assert head.process is not None
            _tell(
                f"the Ray head (process {head.process.pid}) was killed and has not ended yet: the machine is "
                "busy. Its ports and memory are free once it has"
            )
        return
    assert head.process is not None
    _tell(
        f"the Ray head stays, since {', '.join(others)} still run{'s' if len(others) == 1 else ''} on it; "
        f"end it after that: kill {head.process.pid}"
    )


def job_request(
    options: SubmitOptions, config: RunConfig, working_directory: Path, local: bool
) -> JobRequest:
    """The entrypoint and runtime environment of this run.

    Raises:
        ConfigError: the config lies outside the working directory, the only thing that another cluster gets
            to see; or Ray would leave it or the ranker's module out.
    """
    file, root = (working_directory / options.config).resolve(), working_directory.resolve()
    if not local and not file.is_relative_to(root):
        raise ConfigError(
            f"--config {options.config} lies outside {working_directory}, which is all that the cluster "
            f"gets: move it there"
        )
    overrides = [*options.overrides, *(absolute_paths(config, working_directory) if local else ())]
    command = [
        sys.executable if local else "python",
        *("-m", "sluice", "train"),
        # On this machine the file is read where it lies: Ray ships no file that git ignores.
        *("--config", str(file if local else file.relative_to(root))),
        *(part for override in overrides for part in ("--set", override)),
        *(["--resume", options.resume] if options.resume else []),
        *(["--fork", _fork_point(options.fork, working_directory, local)] if options.fork else []),
    ]
    variables = {MODE_VARIABLE: "json", "PYTHONUNBUFFERED": "1"} | job_environment(os.environ)
    state = git_state(Path(__file__).parent)
    if state is not None:  # the job's copy of the working directory has no history of its own
        variables[GIT_VARIABLE] = json.dumps(state)
    excludes = [*EXCLUDES, *_output_inside(config, working_directory)]
    _check_shipped([] if local else [file], config, root, excludes)
    return JobRequest(
        entrypoint=shlex.join(command),
        runtime_env={"working_dir": str(working_directory), "excludes": excludes, "env_vars": variables},
    )


def _fork_point(fork: str, working_directory: Path, local: bool) -> str:
    """As the job finds it: it has another working directory."""
    if local:
        return _absolute(fork, working_directory)
    if not Path(fork).is_absolute():
        raise ConfigError(
            f"--fork {fork}: give the absolute path of the run on storage that the cluster sees"
        )
    return fork


def _check_shipped(files: list[Path], config: RunConfig, root: Path, excludes: list[str]) -> None:
    needed = files + ranker_files(config.ranker.use, root)
    if not needed:
        return
    is_left_out = left_out(root, excludes)
    missing = [str(file.relative_to(root)) for file in needed if is_left_out(file)]
    if missing:
        raise ConfigError(
            f"{', '.join(missing)} would be missing in the job: Ray ships no file that .gitignore or "
            f".rayignore of {root} names, and none in {', '.join(excludes)}; move it, or take it out of there"
        )


def absolute_paths(config: RunConfig, working_directory: Path) -> list[str]:
    """Overrides that make every relative path of the config absolute."""
    paths: dict[str, str | tuple[str, ...] | None] = {
        "output": config.output,
        "policy.base": config.policy.base,
    }
    if config.data.source.type == "table":
        source = config.data.source
        parts = {name: getattr(source, name) or None for name in ("fresh", "valid", "test")}
        logs = {
            "interactions": source.interactions,
            **parts,
            "catalogue": source.catalogue,
            "users": source.users,
        }
        paths |= {f"data.source.{name}": value for name, value in logs.items()}
    overrides = []
    for field, value in paths.items():
        if isinstance(value, str):
            overrides.append(f"{field}={json.dumps(_absolute(value, working_directory))}")
        elif value is not None:
            overrides.append(f"{field}={json.dumps([_absolute(path, working_directory) for path in value])}")
    return overrides


def _absolute(path: str, working_directory: Path) -> str:
    return str(working_directory / Path(path).expanduser())


def _output_inside(config: RunConfig, working_directory: Path) -> list[str]:
    output = working_directory / Path(config.output).expanduser()
    if output != working_directory and output.is_relative_to(working_directory):
        return [f"/{output.relative_to(working_directory)}/"]
    return []


def _local_head() -> Head:
    head = find_head() or start_head(_tell)
    bypass_proxies(head.url)
    return head


def _remote_head(address: str, config: RunConfig) -> Head:
    if not Path(config.output).expanduser().is_absolute():
        _tell(
            f"output {config.output!r} is relative, so the run goes to {Path('~/sluice') / config.output} on "
            f"the cluster's head node; give storage that every node sees with --set output=/shared/runs"
        )
    return Head(url=address)


def _connect(url: str) -> "JobSubmissionClient":
    # Ray lets these two override the address it is given.
    os.environ["RAY_API_SERVER_ADDRESS"] = url
    from ray.job_submission import JobSubmissionClient

    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    return call_with_bound(
        lambda: JobSubmissionClient(url), CONNECT_TIMEOUT_S, f"connect to the job server {url}"
    )


def _submit_job(client: "JobSubmissionClient", request: JobRequest) -> str:
    """The job's id. On a busy machine a new head's job server answers before there is a node agent to start a
    job.
    """
    deadline_s = time.monotonic() + AGENT_TIMEOUT_S
    while True:
        try:
            return client.submit_job(entrypoint=request.entrypoint, runtime_env=request.runtime_env)
        except RuntimeError as error:
            if _NO_AGENT not in str(error) or time.monotonic() > deadline_s:
                raise
        time.sleep(1.0)


def _left_behind(head: Head, stopping: bool) -> str:
    state = "the job is being stopped, and nobody waits for its end here" if stopping else "the job goes on"
    if head.process is None:
        return state
    return f"{state}; the Ray head that was started for it stays: kill {head.process.pid} once it has ended"


def _how_to_follow(head: Head, job: str) -> str:
    mode = os.environ.get("RAY_AUTH_MODE", "disabled")
    command = f"RAY_AUTH_MODE={mode} RAY_API_SERVER_ADDRESS={head.url} ray job"
    return (
        f"  follow it: {command} logs --follow {job}\n"
        f"  stop it:   {command} stop {job}\n"
        f"  dashboard: {head.url}"
    )


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
