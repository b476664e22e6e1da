"""What every setting is: its type, bounds, default, unit and description, read from
the settings classes.

docs/configuration.md and `sluice config explain` show this. Imports no torch, no Ray.
"""

import inspect
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from doctest import DocTestParser
from typing import Any, Literal

from pydantic.fields import FieldInfo

from sluice.catalog.settings import Settings, Unit
from sluice.services.config import RunConfig

_BOUNDS = (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))
_NAMES = {str: "text", int: "integer", float: "number", bool: "true or false"}


@dataclass(frozen=True, kw_only=True)
class SettingEntry:
    """One setting, or the place of a group of settings."""

    path: str  # dotted; `[]` follows the name of a list of groups
    choices: tuple[str, ...]  # the values it may have; empty: any of its type
    type: str  # "integer", "number or null", ...; empty when there are choices
    bounds: str  # "≥ 0, < 1"
    default: str | None  # as YAML would say it; None: it must be given
    unit: str  # what it counts or is measured in; empty for a plain number
    description: str
    groups: tuple["SettingGroup", ...]  # what is below it: one class of settings, or one for each type

    @property
    def is_plain_group(self) -> bool:
        """Whether it always holds the one group below it, so that there is nothing to choose."""
        return len(self.groups) == 1 and self.default != "null"

    @property
    def limits(self) -> str:
        """Type and bounds, or the choices."""
        return f"one of {', '.join(self.choices)}" if self.choices else f"{self.type} {self.bounds}".strip()


@dataclass(frozen=True, kw_only=True)
class SettingGroup:
    """A group of settings: one settings class at one place of the config."""

    path: str  # dotted; empty for the whole config
    types: tuple[tuple[str, str], ...]  # the types that lead to it, such as (("objective.type", "grpo"),)
    model: type[Settings]
    entries: tuple[SettingEntry, ...]

    @property
    def type(self) -> str | None:
        """Which of the types at this place it is; None when there is only one class."""
        return self.types[-1][1] if self.types and self.types[-1][0] == f"{self.path}.type" else None

    @property
    def text(self) -> str:
        """What the group is for."""
        words = DocTestParser().parse(inspect.cleandoc(self.model.__doc__ or ""))[0]  # without examples
        return str(words).rstrip()


def describe_settings(model: type[Settings] = RunConfig) -> SettingGroup:
    """The whole config of a run, or of what else has settings of its own."""
    return _group(model, "", ())


def groups_below(group: SettingGroup) -> Iterator[SettingGroup]:
    """The group itself and all below it, in the order of the config."""
    yield group
    for entry in group.entries:
        for child in entry.groups:
            yield from groups_below(child)


def _group(model: type[Settings], path: str, above: tuple[tuple[str, str], ...]) -> SettingGroup:
    prefix = f"{path}." if path else ""
    entries = tuple(
        _entry(f"{prefix}{name}", field, above)
        for name, field in model.model_fields.items()
        if name != "type"
    )
    return SettingGroup(path=path, types=above, model=model, entries=entries)


def _entry(path: str, field: FieldInfo, above: tuple[tuple[str, str], ...]) -> SettingEntry:
    models = _models(field.annotation)
    if typing.get_origin(field.annotation) is tuple and models:
        path += "[]"
    if typing.get_origin(field.annotation) is dict and models:
        path += ".<name>"
    kinds = tuple(_type_of(model) for model in models) if len(models) > 1 else ()
    groups = tuple(
        _group(model, path, (*above, (f"{path}.type", kinds[index])) if kinds else above)
        for index, model in enumerate(models)
    )
    choices = kinds or _choices(field.annotation)
    return SettingEntry(
        path=path,
        choices=choices,
        type="" if choices else _type_name(field.annotation),
        bounds="" if models else _bounds(field),
        default=_default(field),
        unit=_unit(field),
        description=field.description or "",
        groups=groups,
    )


def _models(annotation: Any) -> list[type[Settings]]:
    """The settings classes that a field may hold."""
    if inspect.isclass(annotation) and issubclass(annotation, Settings):
        return [annotation]
    return [model for part in typing.get_args(annotation) for model in _models(part)]


def _type_of(model: type[Settings]) -> str:
    return str(model.model_fields["type"].default)


def _choices(annotation: Any) -> tuple[str, ...]:
    if typing.get_origin(annotation) is not Literal:
        return ()
    return tuple(str(value) for value in typing.get_args(annotation))


def _type_name(annotation: Any) -> str:
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type_name(parts[0])
    if origin in (typing.Union, types.UnionType):
        return " or ".join("null" if part is types.NoneType else _type_name(part) for part in parts)
    if origin is tuple:
        return f"list of {_type_name(parts[0])}"
    if inspect.isclass(annotation) and issubclass(annotation, Settings):
        return "settings"
    return "mapping" if origin is dict else _NAMES[annotation]


def _bounds(field: FieldInfo) -> str:
    return ", ".join(
        f"{sign} {getattr(rule, name):g}"
        for rule in field.metadata
        for name, sign in _BOUNDS
        if getattr(rule, name, None) is not None
    )


def _unit(field: FieldInfo) -> str:
    return next((mark.name for mark in _marks(field.metadata, field.annotation)), "")


def _marks(metadata: list[Any], annotation: Any) -> Iterator[Unit]:
    """The units of a field, on itself or inside of `... | None`."""
    yield from (mark for mark in metadata if isinstance(mark, Unit))
    for part in typing.get_args(annotation):
        yield from _marks(list(getattr(part, "__metadata__", ())), part)


def _default(field: FieldInfo) -> str | None:
    return None if field.is_required() else show_value(field.get_default(call_default_factory=True))


def show_value(value: Any) -> str:
    """A value in one line; a group of settings by its type."""
    if isinstance(value, Settings):
        return str(getattr(value, "type", ""))
    if isinstance(value, tuple) and value and isinstance(value[0], Settings):
        return ", ".join(_differences(item) for item in value)
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(list(value) if isinstance(value, tuple) else value)


def _differences(item: Settings) -> str:
    """A component of a list by its type and what is not as by default."""
    given = {"type": getattr(item, "type", ""), **item.model_dump(exclude_defaults=True)}
    return "{" + ", ".join(f"{name}: {value}" for name, value in given.items()) + "}"
