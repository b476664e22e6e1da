"""What may change in a run's config from one start to the next.

A run records its config as `config.yaml` in its directory. What lies there was made with it: data, start,
ranker, checkpoints. A start with `--resume` is therefore compared with the record before anything is built.
Imports no torch, no Ray.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from sluice.catalog.errors import ConfigError
from sluice.services.config import RunConfig, load_config

RECORD = "config.yaml"

# What a resumed run must not change, with the reason. The longest name that fits a setting decides.
FIXED: dict[str, str] = {
    "name": "it names the run directory",
    "seed": "it decides the start, the ranker and the order of the prompts",
    "data": "the prepared data, the semantic IDs and so the catalogue are made from it",
    "policy": "the checkpoints hold this model",
    "pretrain": "the starting policy was trained with it, and the reference starts from that policy",
    "ranker": "the rewards so far come from it",
    "evaluation": "the start and the best checkpoint so far were chosen with it",
    "objective.type": "it decides what a checkpoint holds and where batches come from",
    "objective.baseline.type": "it decides what a checkpoint holds and where batches come from",
    "deterministic": "it decides which groups a step is made of",
    "learner.workers": "a checkpoint has one part for each worker",
    "learner.sharding": "each worker's part of a checkpoint is its share",
    "learner.lora": "a checkpoint holds these adapters",
    "learner.average_decay": "the policy of a checkpoint is this average, or the weights themselves",
    "learner.reference.type": "a checkpoint holds this reference",
    "learner.prompts_per_step": "the place in the order of the prompts is counted in such steps",
    "learner.prompts_per_user": "it decides which prompts there are",
}
# What may change. `output`: the directory that holds the record is the run's, by whatever path it is reached.
# `rollout.decode`: a checkpoint holds prompts, no groups, and those under way are generated again.
FREE = ("output", "rollout", "ranker_pool", "queue", "weights", "objective", "learner", "compare", "cluster")


@dataclass(frozen=True, kw_only=True)
class SettingChange:
    """A setting that differs from the record."""

    field: str  # dotted
    before: Any
    now: Any

    @property
    def reason(self) -> str | None:
        """Why it must not change in a resumed run; None: it may."""
        return fixed_reason(self.field)

    def __str__(self) -> str:
        return f"{self.field} {_shown(self.before)} -> {_shown(self.now)}"


def fixed_reason(field: str) -> str | None:
    """Why a setting must stay as it was; None when it may change."""
    names = [name for name in (*FIXED, *FREE) if field == name or field.startswith(f"{name}.")]
    return FIXED.get(max(names, key=len))


def find_changes(before: RunConfig, now: RunConfig) -> tuple[SettingChange, ...]:
    """The settings that differ, in the order of the config."""
    old, new = (_flat(config.model_dump(mode="json")) for config in (before, now))
    return tuple(
        SettingChange(field=field, before=old.get(field), now=new.get(field))
        for field in dict.fromkeys([*new, *old])
        if not _same(field, old.get(field), new.get(field))
    )


def fixed_settings(config: RunConfig) -> dict[str, Any]:
    """The settings that a resumed run must not change, by their dotted names, but for paths and the name."""
    values = _flat(config.model_dump(mode="json"))
    return {
        field: value
        for field, value in values.items()
        if field not in (*_PATHS, "name") and fixed_reason(field)
    }


def read_record(directory: Path) -> RunConfig | None:
    """The config that the run in `directory` was last started with; None when there is no record.

    Raises:
        ConfigError: the record cannot be read.
    """
    if not (directory / RECORD).exists():
        return None
    return load_config(directory / RECORD)


def check_resume(config: RunConfig, directory: Path) -> tuple[SettingChange, ...]:
    """The settings that a resumed run changes, all of which may.

    Raises:
        ConfigError: one of them must not, or the record cannot be read; the message has the remedy.
    """
    try:
        before = read_record(directory)
    except ConfigError as error:
        raise ConfigError(
            f"the record of what {directory} was run with cannot be read, so nobody can tell whether this "
            f"config fits: {error}\n"
            f"Mend {RECORD} there. If you are sure that the config is the same, move that file away."
        ) from None
    changes = () if before is None else find_changes(before, config)
    refused = [change for change in changes if change.reason]
    if refused:
        raise ConfigError(
            f"{directory} was run with another config, and what is in it does not fit this one:\n"
            + "".join(f"  {change} ({change.reason})\n" for change in refused)
            + "Undo these changes, or start a new run: give another name, seed or output and leave out "
            "--resume. What may change: learner.steps, learner.lr, learner.evaluate_every, rollout.*, "
            "queue.*, cluster.* and more, see docs/configuration.md."
        )
    return changes


def name_changes(changes: Iterable[SettingChange]) -> str:
    """The changes in one line."""
    return ", ".join(map(str, changes))


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves by their dotted names. A list is one leaf."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value and f"{prefix}{name}" != "ranker.options":
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


_LOGS = ("interactions", "fresh", "valid", "test", "catalogue", "users")
_PATHS = ("output", "policy.base", *(f"data.source.{name}" for name in _LOGS))


def _same(field: str, before: Any, now: Any) -> bool:
    if field in _PATHS and before is not None and now is not None:
        old, new = ([value] if isinstance(value, str) else value for value in (before, now))
        return len(old) == len(new) and all(map(_same_path, old, new))
    return bool(before == now)


def _same_path(before: str, now: str) -> bool:
    """`sluice submit` makes relative paths absolute and `sluice train` does not."""
    old, new = (Path(path).expanduser() for path in (before, now))
    if old.is_absolute() == new.is_absolute():
        return old == new
    shorter, longer = sorted((old, new), key=PurePath.is_absolute)
    return bool(shorter.parts) and longer.parts[-len(shorter.parts) :] == shorter.parts


def _shown(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(_shown(item) for item in value) + "]"
    return "null" if value is None else str(value)
