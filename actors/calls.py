"""Calls to other actors that are under way: started now, asked for later, never waited for without a
bound.
"""

import time
from typing import Any, Generic, Protocol, TypeVar

import ray
from ray.exceptions import ActorDiedError, GetTimeoutError, RayActorError, RayTaskError

from sluice.catalog.errors import RunError, SluiceError

_IN_CONSTRUCTOR = "error raised in its creation task"

Result = TypeVar("Result")
Result_co = TypeVar("Result_co", covariant=True)


class Call(Protocol[Result_co]):
    """An answer that will come, or fail."""

    @property
    def reference(self) -> Any:
        """What `ray.wait` may wait for in the meantime."""

    def ready(self) -> bool:
        """Whether `result` will not wait. Never blocks."""

    def result(self) -> Result_co:
        """The answer, or the error that came instead."""


class RayCall(Generic[Result]):
    """One remote method call."""

    def __init__(self, reference: Any, what: str, timeout_s: float) -> None:
        """`what` names the call in errors; `timeout_s` counts from now."""
        self.reference = reference
        self._what, self._timeout_s = what, timeout_s
        self._deadline_s = time.monotonic() + timeout_s

    def ready(self) -> bool:
        """Answered, failed, or out of time."""
        return bool(ray.wait([self.reference], timeout=0)[0]) or time.monotonic() >= self._deadline_s

    def result(self) -> Result:
        """Waits for what is left of the time.

        Raises:
            RunError: no answer in time, or the actor is dead.
        """
        left_s = max(0.0, self._deadline_s - time.monotonic())
        answer: Result = get_result(self.reference, self._what, self._timeout_s, left_s=left_s)
        return answer


def get_result(reference: Any, what: str, timeout_s: float, *, left_s: float | None = None) -> Any:
    """The value of a remote call; `left_s` is what is left of the time, all of it by default.

    Raises:
        SluiceError: the one that the call raised.
        RunError: no answer within `timeout_s`, or the actor is dead.
    """
    try:
        return ray.get(reference, timeout=timeout_s if left_s is None else left_s)
    except GetTimeoutError:
        raise RunError(
            f"{what} gave no answer within {timeout_s:g} s; its actor may be overloaded or wedged"
        ) from None
    except RayTaskError as error:
        if isinstance(error.cause, SluiceError):
            raise error.cause from None
        raise
    except RayActorError as error:
        raise RunError(f"{what} failed because its actor died: {reason_of(error)}") from None


def reason_of(error: BaseException) -> str:
    """One line that says what happened: the cause inside Ray's wrapping, by its class and its first line of
    text. Of an actor that could not be made it is the last line, which has the constructor's own error.
    """
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    if lines and isinstance(cause, ActorDiedError) and _IN_CONSTRUCTOR in lines[0]:
        return f"it could not start: {lines[-1]}"
    return f"{type(cause).__name__}: {lines[0] if lines else '(no message)'}"
