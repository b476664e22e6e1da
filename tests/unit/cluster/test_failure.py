"""What is tried again after a failure, and how often."""

import errno
import pickle

import pytest
from ray.exceptions import ActorDiedError, GetTimeoutError

from sluice.catalog.errors import (
    ClusterError,
    ConfigError,
    DataError,
    HopelessError,
    PolicyError,
    RankerError,
    RunError,
)
from sluice.cluster.failure import decide_restart, describe, explain_storage, is_hopeless


@pytest.mark.parametrize(
    ("restarts", "restart", "after"), [(0, True, 1), (1, True, 2), (2, False, 2), (3, False, 3)]
)
def test_a_component_is_started_again_until_its_bound(restarts, restart, after):
    decision = decide_restart(
        "rollout-0",
        restarts=restarts,
        bound=2,
        setting="cluster.max_actor_restarts",
        reason="OutOfMemory: 3 GiB",
    )
    assert (decision.restart, decision.restarts) == (restart, after)
    assert "rollout-0" in decision.message
    assert "OutOfMemory: 3 GiB" in decision.message


def test_giving_up_names_the_bound_and_the_setting():
    decision = decide_restart(
        "the learner", restarts=2, bound=2, setting="cluster.max_learner_restarts", reason="boom"
    )
    assert decision.message == (
        "the learner failed after 2 restart(s), the most that cluster.max_learner_restarts = 2 allows. "
        "Last failure: boom. Remove its cause, or raise cluster.max_learner_restarts"
    )


def test_no_restarts_at_all_is_a_bound_too():
    assert not decide_restart("x", restarts=0, bound=0, setting="s", reason="r").restart


def test_the_first_restart_is_made_at_once_and_later_ones_ever_later():
    waits = [
        decide_restart("x", restarts=restarts, bound=20, setting="s", reason="r").wait_s
        for restarts in range(10)
    ]
    assert waits == [0, 1, 2, 4, 8, 16, 32, 60, 60, 60]


class ArrowInvalid(ValueError):
    """A library's own, of bytes that arrived damaged, say."""


class OutOfMemoryError(RuntimeError):
    """As torch has one."""


@pytest.mark.parametrize(
    ("error", "hopeless"),
    [
        (ConfigError("learner.lr"), True),
        (PolicyError("no module named that"), True),
        (DataError("x"), True),
        (RankerError("x"), True),
        (HopelessError("not finite"), True),
        (RunError("gave no answer"), False),
        (ClusterError("no node"), False),
        (OSError(errno.ENOSPC, "No space left on device", "/runs/a"), True),
        (OSError(errno.EROFS, "Read-only file system"), True),
        (PermissionError(errno.EACCES, "Permission denied", "/runs/a"), True),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/runs/a"), True),
        (OSError("[Errno 28] Error writing bytes to file. Detail: [errno 28] No space left"), True),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), True),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), False),
        (TimeoutError("timed out"), False),
        (MemoryError(), False),
        (ModuleNotFoundError("No module named 'nixl'"), True),
        (ValueError("Target modules {'q'} not found in the base model"), True),
        (TypeError("unexpected keyword"), True),
        (AssertionError(), True),
        (ArrowInvalid("Expected to read 8 bytes"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied (3x4 and 5x6)"), True),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), True),
        (RuntimeError("Error(s) in loading state_dict: size mismatch for w"), True),
        (RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer"), False),
        (OutOfMemoryError("CUDA out of memory"), False),
        (ActorDiedError(), False),
        (GetTimeoutError("no answer"), False),
    ],
)
def test_what_another_try_does_not_mend_is_hopeless(error, hopeless):
    assert is_hopeless(error) is hopeless


def test_an_unknown_error_that_comes_back_word_for_word_is_hopeless():
    assert is_hopeless(RuntimeError("odd thing at row 3\n a"), RuntimeError("odd thing at row 3\n b"))
    assert not is_hopeless(RuntimeError("odd thing at row 3"), RuntimeError("odd thing at row 4"))
    assert not is_hopeless(ActorDiedError(), ActorDiedError()), "machines may go twice"
    assert not is_hopeless(RunError("no answer"), RunError("no answer"))


def test_an_error_of_the_disk_names_place_and_remedy():
    full = OSError(errno.ENOSPC, "No space left on device", "/runs/a/metrics.jsonl")
    assert describe(full) == (
        "/runs/a/metrics.jsonl: No space left on device: the disk is full: make room there"
    )
    gone = OSError("[Errno 2] Failed to open local file '/runs/a/x.json'. Detail: [errno 2] No such file")
    assert explain_storage(gone).startswith("/runs/a/x.json: No such file or directory: it is gone")
    assert "it was removed" in explain_storage(FileNotFoundError(errno.ENOENT, "x", "/runs/a"))
    assert explain_storage(RuntimeError("I/O error (os error 30)")).startswith("Read-only file system: ")
    assert explain_storage(BlockingIOError(errno.EAGAIN, "x")) is None


def test_an_error_is_one_line():
    assert describe(RuntimeError("\n first\nsecond")) == "RuntimeError: first"
    assert describe(KeyError()) == "KeyError: (no message)"
    assert describe(RunError("a finished\nmessage")) == "a finished\nmessage"


def test_hopeless_errors_survive_the_way_out_of_a_worker():
    again = pickle.loads(pickle.dumps(HopelessError("over")))
    assert isinstance(again, HopelessError) and str(again) == "over" and again.exit_code == 4
