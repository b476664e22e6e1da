"""Why a remote call failed, in one line. No Ray is started."""

import pytest
from ray.exceptions import ActorDiedError, RayTaskError

from sluice.actors.calls import reason_of
from sluice.catalog.errors import RankerError

NOT_MADE = (
    "The actor died because of an error raised in its creation task, ray::B.__init__() (pid=1)\n"
    "  File \"b.py\", line 3, in __init__\n    raise ValueError('no')\nValueError: no\n"
)


class NotMade(ActorDiedError):
    def __str__(self):
        return NOT_MADE


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("first\nsecond"), "ValueError: first"),
        (ValueError(), "ValueError: (no message)"),
        (RayTaskError("f", "traceback", RankerError("odd scores")), "RankerError: odd scores"),
        (NotMade(), "it could not start: ValueError: no"),
        (ActorDiedError(), "ActorDiedError: The actor died unexpectedly before finishing this task."),
    ],
)
def test_the_cause_is_one_line(error, reason):
    assert reason_of(error) == reason
