"""A Ray head on this machine: find the one that runs, or start one of our own and end it with everything it
started.

Ray's own `ray stop` ends processes by name across the machine, whoever started them. The head here runs in a
session of its own (`ray start --head --block`), so that ending that session's process group touches nothing
else.

Token authentication stays on: the token lies in `~/.ray/auth_token`, readable by its owner alone.
"""

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sluice.catalog.errors import ClusterError
from sluice.cluster.environment import lower_thread_priority

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 40.0  # a raylet drains for up to 30 s
KILL_TIMEOUT_S = 20.0  # for what was killed to be gone
_QUERY_TIMEOUT_S = 5.0
_DEFAULT_PORTS = {
    "--port": 6379,
    "--dashboard-port": 8265,
    "--dashboard-agent-listen-port": 52365,
    "--ray-client-server-port": 10001,
}


@dataclass(frozen=True, kw_only=True)
class Head:
    """A head that answers; `process` is set when it is ours to end."""

    url: str  # of the dashboard and job server
    address: str | None = None  # of its GCS, known of a head on this machine
    process: subprocess.Popen[bytes] | None = None
    log: Path | None = None

    def stop(self) -> bool:
        """End our head's whole process group; a head that was there before us is left alone.

        Returns whether it has ended: a machine with too much to do may take longer over it than we wait.
        """
        if self.process is None:
            return True
        # First of all: whoever looks for a head from now on must not find this one, which takes a while to
        # end.
        if _address() == self.address:
            _address_file().unlink(missing_ok=True)
        has_ended = _end_group(self.process)
        if self.log is not None:
            self.log.unlink(missing_ok=True)
        return has_ended


def ensure_token() -> None:
    """Turn on token authentication for this process and its children, making the user's token if there is
    none.

    Has to be called before Ray is imported: Ray reads the mode at import.
    """
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if os.environ["RAY_AUTH_MODE"] != "token" or _has_token():
        return
    command = [sys.executable, "-m", "ray.scripts.scripts", "get-auth-token", "--generate"]
    made = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if made.returncode or not _has_token():
        raise ClusterError(f"Ray could not create its token {_token_file()}: {made.stderr.strip()[-500:]}")
    _token_file().chmod(0o600)


def use_token_if_any() -> None:
    """For a cluster that others run: authenticate when there is a token, otherwise let the cluster decide."""
    if _has_token():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def find_head() -> Head | None:
    """The head that `ray start` left running on this machine, if it answers."""
    address = _address()
    if not address or not answers(address):
        return None
    from ray.dashboard.utils import ray_address_to_api_server_url

    try:
        url = ray_address_to_api_server_url(address)
    except Exception as error:  # Ray raises its own, gRPC's and ValueError here
        raise ClusterError(
            f"a Ray head on {address} does not tell its job server: {error}. If it belongs to someone else, "
            "give the cluster you want with --address or RAY_API_SERVER_ADDRESS"
        ) from error
    return Head(url=url, address=address)


def start_head(tell: Callable[[str], None]) -> Head:
    """Start a head with dashboard in a session of its own and wait until its job server answers.

    It gives way to what computes, and this process does from now on (`sluice.cluster.environment`).

    Raises:
        ClusterError: it ended or did not answer within START_TIMEOUT_S; the message ends with its log.
    """
    log = Path(tempfile.mkstemp(prefix="sluice-ray-head-", suffix=".log")[1])
    options = dict(zip(_DEFAULT_PORTS, free_ports(list(_DEFAULT_PORTS.values())), strict=True))
    arguments = [part for name, value in options.items() for part in (name, str(value))]
    command = [
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        "start",
        "--head",
        "--block",
        "--include-dashboard=true",
    ]
    # `python` in a job's entrypoint is this interpreter, as it is in the shell of whoever activated the
    # environment.
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    }
    tell(f"starting a local Ray head (log: {log})")
    lower_thread_priority()
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [*command, "--disable-usage-stats", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            env=environment,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{options['--dashboard-port']}"
    try:
        _await_job_server(url, process, log)
    except BaseException:
        _end_group(process)
        raise
    from ray.util import get_node_ip_address  # as `ray start` does, which writes the address down only later

    return Head(url=url, address=f"{get_node_ip_address()}:{options['--port']}", process=process, log=log)


def bypass_proxies(url: str) -> None:
    """Let this process and its children reach the host of `url` without the proxies of the environment."""
    host = urllib.parse.urlsplit(url).hostname or ""
    for name in ("no_proxy", "NO_PROXY"):
        hosts = [part for part in os.environ.get(name, "").split(",") if part]
        os.environ[name] = ",".join(dict.fromkeys([*hosts, host]))


def free_ports(preferred: Sequence[int]) -> list[int]:
    """Each preferred port if nothing listens on it, otherwise a free one; all distinct."""
    spare = iter(range(20000 + os.getpid() % 10000, 32000))  # Ray keeps 10002-19999 for its workers
    with contextlib.ExitStack() as held:
        return [_hold(held, itertools.chain([port], spare)) for port in preferred]


def _hold(held: contextlib.ExitStack, candidates: Iterable[int]) -> int:
    for port in candidates:
        probe = held.enter_context(socket.socket())
        probe.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # a port that was closed a moment ago is free
        with contextlib.suppress(OSError):
            probe.bind(("0.0.0.0", port))
            return port
    raise ClusterError(
        "no free TCP port between 20000 and 32000 for the Ray head: close something, or give --address"
    )


def _await_job_server(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ClusterError(
                f"the Ray head ended with exit code {process.returncode} while starting; its log ends with:\n"
                f"{_tail(log)}"
            )
        if is_job_server(url):
            return
        time.sleep(0.2)
    raise ClusterError(
        f"the Ray head did not answer on {url} within {START_TIMEOUT_S:.0f} s; its log ends "
        f"with:\n{_tail(log)}"
    )


def is_job_server(url: str) -> bool:
    """Whether a job server answers there, with our token or against it."""
    return _http_status(f"{url}/api/jobs/") in (200, 401, 403)


def _end_group(process: subprocess.Popen[bytes]) -> bool:
    """End a process and its group; returns whether it has ended."""
    process.terminate()  # `ray start --block` then ends its parts in order
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_TIMEOUT_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # what outlived it
    try:
        process.wait(KILL_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return False
    return True


def _tail(log: Path, lines: int = 15) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def _http_status(url: str) -> int | None:
    request = urllib.request.Request(url)
    token = _token()
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=_QUERY_TIMEOUT_S) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


def answers(address: str) -> bool:
    """Whether anybody listens at host:port."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        with socket.create_connection((host, int(port)), timeout=_QUERY_TIMEOUT_S):
            return True
    except (OSError, ValueError):
        return False


def _address() -> str:
    """Of the head that was started last on this machine; empty when there is none."""
    return _address_file().read_text().strip() if _address_file().is_file() else ""


def _address_file() -> Path:
    return (
        Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp")
        / "ray"
        / "ray_current_cluster"
    )


def _token_file() -> Path:
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")


def _token() -> str:
    if os.environ.get("RAY_AUTH_TOKEN"):
        return os.environ["RAY_AUTH_TOKEN"].strip()
    return _token_file().read_text().strip() if _token_file().is_file() else ""


def _has_token() -> bool:
    return bool(_token())
