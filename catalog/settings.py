"""What all settings have in common: the base class, and the units of numbers. Imports no torch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Base of every settings class: immutable, and an unknown key or a number that is not finite is an error.

    Every field has a `description`, which docs/configuration.md and `sluice config explain` show. The `type`
    that tells the classes of a union apart is described by the docstring of its class.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True)
class Unit:
    """What a setting counts or is measured in, as in `Annotated[int, Unit("prompts")]`."""

    name: str


def is_still(default: object) -> Callable[[object], bool]:
    """Whether a setting has its default, for `Field(exclude_if=is_still(default))` of one that came later.

    Records and stamps do not name it then, so what was made before it was there is not made again.
    """
    return lambda value: value == default


Seconds = Annotated[float, Unit("seconds")]
Prompts = Annotated[int, Unit("prompts")]
Steps = Annotated[int, Unit("optimizer steps")]
Cpus = Annotated[float, Unit("CPU cores")]
Gpus = Annotated[float, Unit("GPUs")]
