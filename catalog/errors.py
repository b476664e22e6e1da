"""The one hierarchy of errors that a user's mistake or a failed run raises.

Each carries one finished message: what happened, the value, the bound and the remedy. They hold nothing but
that message, so they survive pickling on their way out of a Ray worker. Anything that is not a `SluiceError`
is a bug.
"""


class SluiceError(Exception):
    """Base of all errors a user can cause or must know of. `exit_code` is what the command line returns."""

    exit_code = 2


class ConfigError(SluiceError):
    """A configuration value is missing, unknown, out of bounds or contradicts another."""


class DataError(SluiceError):
    """A log, a catalogue or a prepared data set breaks its contract."""


class PolicyError(SluiceError):
    """A policy directory cannot be read or does not fit the catalogue."""


class RankerError(SluiceError):
    """A ranker cannot be loaded, failed to score, or scored in the wrong shape."""


class RankerSilentError(RankerError):
    """Nobody answered a question to the ranker: its replicas died under it, or took too long."""


class ClusterError(SluiceError):
    """The Ray cluster cannot be reached, refuses us, or lacks the resources asked for."""

    exit_code = 3


class RunError(SluiceError):
    """A run could not go on: a bounded wait ran out or a component failed too often."""

    exit_code = 4


class HopelessError(RunError):
    """A run could not go on, and would meet the same again if it were started from its last checkpoint."""
