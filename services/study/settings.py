"""The configuration of a study: one YAML file that names data sets, seeds and arms. Imports no torch."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from sluice.catalog.errors import ConfigError
from sluice.catalog.settings import Settings, Unit
from sluice.catalog.simulator.settings import WorldSettings
from sluice.services.config import RunConfig, load_config, load_settings, load_world
from sluice.services.study.judges.settings import JudgeSettings

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
START = "start"  # the row of the policy that all arms start from
RATE = "objective.gate"  # what `rate_of` sets
_SHARED = ("data", "policy", "pretrain", "ranker", "evaluation")  # by the arms of a data set and a seed
LOG_FILE, ITEMS_FILE, USERS_FILE = "interactions.parquet", "items.parquet", "users.parquet"  # of a world


class StudySet(Settings):
    """A data set: a run's config, from which data, start and ranker are made once for each seed."""

    config: str = Field(description="Config of a run (`docs/configuration.md`).")
    set: tuple[str, ...] = Field(
        default=(), description="Settings of it that change, as `--set` takes them: `learner.steps=200`."
    )
    world: str | None = Field(
        default=None,
        description="Config of a simulated world (`docs/studies/simulator.md`), which is made first: its "
        "files take the place of `data.source.interactions` and `data.source.catalogue`, and of "
        "`data.source.users` where the config names it, and its truth judges the arms. null: the config "
        "names its own logs, and nobody knows the truth.",
    )
    world_set: tuple[str, ...] = Field(default=(), description="Dials of the world that change.")

    @model_validator(mode="after")
    def _world(self) -> "StudySet":
        if self.world_set and self.world is None:
            raise ValueError("world_set changes a world, and world names none")
        return self


class StudyArm(Settings):
    """A post-training: what is different from the run's config."""

    objective: dict[str, Any] | None = Field(
        default=None, description="The objective, in the place of the config's. null: the config's."
    )
    set: tuple[str, ...] = Field(
        default=(), description="Settings that change, as `--set` takes them: `learner.lr=1e-4`."
    )

    rate_of: str | None = Field(
        default=None,
        description="An arm with a gate. This arm gets a gate by chance that admits as often as that one did "
        "with the same data and seed.",
    )
    oracle: bool = Field(
        default=False,
        description="Trust is 1 for the users of segment A of the simulated world and 0 for those of B, "
        "which nobody could know. The objective's gate has to ask for trust.",
    )

    @property
    def changes(self) -> tuple[str, ...]:
        """What changes, as `--set` takes it."""
        own = () if self.objective is None else (f"objective={json.dumps(self.objective)}",)
        return (*own, *self.set)


class StudyConfig(Settings):
    """Arms x seeds x data sets, and what is compared with what."""

    name: str = Field(
        pattern=NAME, description="Name of the study; it names its directory, `<output>/<name>`."
    )
    output: str = Field(default="studies", description="Directory of the studies' directories.")
    seeds: tuple[int, ...] = Field(
        default=(0, 1, 2), min_length=1, description="Seeds of start, ranker and post-training."
    )
    sets: dict[str, StudySet] = Field(min_length=1, description="Data sets by name.")
    arms: dict[str, StudyArm] = Field(min_length=1, description="Arms by name.")
    against: tuple[str, ...] = Field(
        min_length=1, description="Arms that every other arm is compared with, paired. `start` may be one."
    )
    best_of: dict[str, tuple[str, ...]] = Field(
        default={},
        description="Rows that are the best of several arms, chosen on validation over all seeds: "
        "`mixture: [mixture-1, mixture-2]`. The choice is made for each data set.",
    )
    judge: JudgeSettings | None = Field(
        default=None, description="A held-out reward model as judge, `{}` for its defaults. null: none."
    )
    strata: tuple[str, ...] = Field(
        default=(),
        description="Rows whose change against the first of `against` is shown by stratum: the start's rank "
        "of the logged item by the ranker's.",
    )
    examples: Annotated[int, Unit("examples")] | None = Field(
        default=4000,
        ge=1,
        description="Test examples that an arm is judged on, the same for all. null: all, which takes longer "
        "than the training where users have many.",
    )
    checkpoint: Literal["last", "best"] = Field(
        default="last",
        description="Which policy of an arm the comparisons are of: that of the last step, or that at the "
        "best validation. The table has both.",
    )

    @field_validator("seeds")
    @classmethod
    def _different(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) < len(value) or min(value) < 0:
            raise ValueError(f"seeds {list(value)} must be different and at least 0")
        return value

    @field_validator("sets", "arms", "best_of")
    @classmethod
    def _names(cls, value: Mapping[str, object]) -> Mapping[str, object]:
        wrong = [name for name in value if not re.match(NAME, name) or name == START]
        if wrong:
            raise ValueError(
                f"{wrong[0]!r} cannot be a name: take letters, digits, '.', '_' and '-', and not {START!r}"
            )
        return value

    @model_validator(mode="after")
    def _known(self) -> "StudyConfig":
        rows = {START, *self.arms, *self.best_of}
        for field in ("against", "strata"):
            for name in getattr(self, field):
                if name not in rows:
                    raise ValueError(f"{field} names {name!r}, which is no arm: one of {_listed(rows)}")
        for name, arms in self.best_of.items():
            if name in self.arms:
                raise ValueError(f"best_of.{name} has the name of an arm: take another")
            missing = [arm for arm in arms if arm not in self.arms]
            if missing or not arms:
                raise ValueError(f"best_of.{name} names {missing}: give arms of {_listed(self.arms)}")
        for name, arm in self.arms.items():
            other = arm.rate_of
            if other is not None and (other not in self.arms or self.arms[other].rate_of is not None):
                raise ValueError(
                    f"arms.{name}.rate_of names {other!r}: give an arm that has a gate of its own"
                )
        return self

    @model_validator(mode="after")
    def _oracles_know_a_world(self) -> "StudyConfig":
        oracles = [name for name, arm in self.arms.items() if arm.oracle]
        blind = [name for name, of_set in self.sets.items() if of_set.world is None]
        if oracles and blind:
            raise ValueError(
                f"arms.{oracles[0]}.oracle needs a truth, and sets.{blind[0]} has no world: take it out, or "
                "give it to a study of its own"
            )
        return self

    @property
    def directory(self) -> Path:
        """The study's directory."""
        return Path(self.output).expanduser().resolve() / self.name


def load_study(path: str | Path) -> StudyConfig:
    """Read and check a study, and every run's config that it is made of.

    Raises:
        ConfigError: the file is missing or no YAML mapping, or a value is wrong, there or in the config of a
            data set with the settings of an arm.
    """
    study = load_settings(StudyConfig, path)
    for of_set in study.sets:
        world_settings(study, of_set)
        set_config(study, of_set, study.seeds[0])
        for arm in study.arms:
            arm_config(study, of_set, arm, study.seeds[0], 0.5)
    return study


def set_config(study: StudyConfig, of_set: str, seed: int) -> RunConfig:
    """The run whose data, start and ranker the arms share."""
    return _load(study, of_set, seed, (), f"sets.{of_set}")


def world_directory(study: StudyConfig, of_set: str) -> Path:
    """Where the simulated world of a data set lies."""
    return study.directory / "worlds" / of_set


def world_settings(study: StudyConfig, of_set: str) -> WorldSettings | None:
    """The world of a data set; None where it has none.

    Raises:
        ConfigError: its settings are wrong.
    """
    settings = study.sets[of_set]
    return None if settings.world is None else load_world(settings.world, settings.world_set)


def arm_config(study: StudyConfig, of_set: str, arm: str, seed: int, gate_rate: float | None) -> RunConfig:
    """The run's config as an arm changes it; `gate_rate` is that of the arm that `rate_of` names.

    Raises:
        ConfigError: the settings do not fit each other.
    """
    settings = study.arms[arm]
    changes = settings.changes
    if settings.rate_of is not None:
        like = study.arms[settings.rate_of].changes
        changes = (*like, f"{RATE}={{mode: random, random_rate: {gate_rate}}}", *changes)
    where = f"sets.{of_set} with arms.{arm}"
    config = _load(study, of_set, seed, changes, where)
    shared = set_config(study, of_set, seed)
    for part in _SHARED:
        if getattr(config, part) != getattr(shared, part):
            raise ConfigError(
                f"{where} changes {part}, and the arms of a data set share it: change it in sets.{of_set}.set"
            )
    if settings.oracle and config.trust is None:
        raise ConfigError(f"{where}: oracle needs a gate that asks for trust, as in gate: {{trust: {{}}}}")
    return config


def _load(study: StudyConfig, of_set: str, seed: int, changes: tuple[str, ...], where: str) -> RunConfig:
    settings = study.sets[of_set]
    own = [f"name={of_set}", f"output={study.directory}", f"seed={seed}"]
    if settings.world is not None:
        world = world_directory(study, of_set)
        own.append(f"data.source.interactions=[{world / LOG_FILE}]")
        own.append(f"data.source.catalogue={world / ITEMS_FILE}")
    changed = [*settings.set, *changes, *own]
    try:
        config = load_config(settings.config, changed)
        if settings.world is not None and getattr(config.data.source, "users", None) is not None:
            # The users of the config's own logs are others.
            users = world_directory(study, of_set) / USERS_FILE
            config = load_config(settings.config, [*changed, f"data.source.users={users}"])
        return config
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _listed(names: object) -> str:
    return ", ".join(sorted(names))  # type: ignore[call-overload]
