"""What is settled before anybody is served. Imports nothing heavy: the command line makes options of it."""

import math
from dataclasses import dataclass, field
from typing import TypeVar

from sluice.catalog.errors import ConfigError

HELP = "help"  # in the metadata of a field: what the option of its name means
_LEAST_OF_LOOK = 20  # users of an arm, or an interval by its errors means nothing

Value = TypeVar("Value", int, float, bool)


def _option(default: Value, text: str) -> Value:
    value: Value = field(default=default, metadata={HELP: text})
    return value


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The plan of a test."""

    visits: int = _option(3, "days that every user is served")
    log_days: int = _option(5, "last days of the log that off-policy estimates take")
    looks: int = _option(20, "times that the test is looked at, in equal parts of the users")
    alpha: float = _option(0.05, "chance of a false alarm, of all comparisons with the first policy together")
    power: float = _option(0.8, "chance to notice the effect")
    effect: float = _option(0.05, "relative change of clicks that the sample size is computed for")
    replays: int = _option(500, "replays of Thompson sampling")
    seed: int = _option(0, "of the split, the users' luck and the replays")
    cuped: bool = _option(False, "take away what clicks before the test explain")

    def check(self, users: int, policies: int) -> None:
        """Raises ConfigError when a number is out of its bounds, or `users` are too few."""
        for name in ("visits", "log_days", "looks", "replays"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')} is {getattr(self, name)}: give at least 1")
        if self.seed < 0:
            raise ConfigError(f"--seed is {self.seed}: give at least 0")
        if not 0 < self.alpha < self.power < 1 or not 0 < self.effect < math.inf:
            raise ConfigError(
                f"--alpha is {self.alpha}, --power {self.power}, --effect {self.effect}: give "
                "0 < alpha < power < 1, and an effect above 0"
            )
        least = _LEAST_OF_LOOK * self.looks * policies
        if users < least:
            raise ConfigError(
                f"{users} users are too few for {self.looks} looks at {policies} arms, which need {least}: "
                "lower --looks, or give a larger world"
            )
