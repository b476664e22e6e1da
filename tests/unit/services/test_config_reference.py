"""What the settings say of themselves: every field has a description, and numbers their units."""

from typing import Annotated, Literal

import pytest
from pydantic import Field

from sluice.catalog.settings import Seconds, Settings, Unit
from sluice.catalog.simulator.settings import WorldSettings
from sluice.services.config_reference import (
    SettingEntry,
    _group,
    describe_settings,
    groups_below,
    show_value,
)
from sluice.services.study.settings import StudyConfig

GROUPS = [
    *groups_below(describe_settings()),
    *groups_below(describe_settings(WorldSettings)),
    *groups_below(describe_settings(StudyConfig)),
]
ENTRIES = {
    f"{group.model.__name__}.{entry.path.rpartition('.')[2]}": entry
    for group in GROUPS
    for entry in group.entries
}
UNITS = {
    "_s": "seconds",
    "_ms": "milliseconds",
    "_mib": "MiB",
    "_gib": "GiB",
    "_gpus": "GPUs",
    "_cpus": "CPU cores",
}


class Small(Settings):
    """One of two."""

    type: Literal["small"] = "small"
    size: Annotated[int | None, Unit("items")] = Field(default=None, ge=1, lt=9, description="How many.")


class Large(Settings):
    """The other."""

    type: Literal["large"] = "large"


class Example(Settings):
    """An example."""

    wait_s: Seconds | None = Field(default=None, gt=0, description="How long.")
    mode: Literal["a", "b"] = Field(default="b", description="Which.")
    names: tuple[str, ...] = Field(description="Names.")
    kind: Annotated[Small | Large, Field(discriminator="type")] = Field(default=Large(), description="Kind.")
    kinds: tuple[Annotated[Small | Large, Field(discriminator="type")], ...] = Field(
        default=(Small(size=3), Large()), description="Kinds."
    )
    one: Small | None = Field(default=None, description="Perhaps one.")


def example() -> dict[str, SettingEntry]:
    return {entry.path: entry for entry in _group(Example, "", ()).entries}


def test_all_settings_classes_are_reached():
    assert {group.model for group in GROUPS} == {
        model for model in subclasses(Settings) if model.__module__.startswith("sluice.") and is_used(model)
    }


def subclasses(model: type[Settings]) -> set[type[Settings]]:
    return {model for child in model.__subclasses__() for model in (child, *subclasses(child))}


def is_used(model: type[Settings]) -> bool:
    """Bases of several classes do not stand in the config themselves."""
    return not any(child.__module__.startswith("sluice.") for child in model.__subclasses__()) or any(
        group.model is model for group in GROUPS
    )


@pytest.mark.parametrize("name", sorted(ENTRIES))
def test_every_setting_has_a_description(name: str):
    text = ENTRIES[name].description
    assert text and text[0] == text[0].strip() and text.endswith("."), "a sentence in Field(description=...)"


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.model.__name__)
def test_every_group_says_what_it_is(group):
    assert group.text.strip()
    kind = group.model.model_fields.get("type")
    assert kind is None or show_value(kind.default), "the type that tells a class of a union apart"


@pytest.mark.parametrize("name", sorted(ENTRIES))
def test_names_with_a_unit_are_in_that_unit(name: str):
    for suffix, unit in UNITS.items():
        if name.endswith(suffix):
            assert ENTRIES[name].unit == unit


def test_facts_of_a_setting():
    entries = example()
    wait = entries["wait_s"]
    assert (wait.limits, wait.default, wait.unit, wait.description) == (
        "number or null > 0",
        "null",
        "seconds",
        "How long.",
    )
    assert (entries["mode"].limits, entries["mode"].default) == ("one of a, b", "b")
    assert (entries["names"].limits, entries["names"].default) == ("list of text", None)


def test_unions_lists_and_optional_groups():
    entries = example()
    kind = entries["kind"]
    assert (kind.limits, kind.default) == ("one of small, large", "large")
    assert [(group.types, group.type) for group in kind.groups] == [
        ((("kind.type", "small"),), "small"),
        ((("kind.type", "large"),), "large"),
    ]
    (size,) = kind.groups[0].entries
    assert (size.path, size.limits, size.unit) == ("kind.size", "integer or null ≥ 1, < 9", "items")
    assert entries["kinds[]"].default == "{type: small, size: 3}, {type: large}"
    assert not kind.is_plain_group and not entries["one"].is_plain_group
    assert (entries["one"].limits, entries["one"].default) == ("settings or null", "null")


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "null"), (True, "true"), (False, "false"), ((1, 2), "[1, 2]"), (1e-05, "1e-05"), ((), "[]")],
)
def test_values_are_shown_as_yaml_has_them(value: object, shown: str):
    assert show_value(value) == shown
