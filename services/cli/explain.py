"""`sluice config explain`: what a setting is, or the table of a group. Imports no torch, no Ray."""

import difflib
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sluice.catalog.errors import ConfigError
from sluice.catalog.settings import Settings
from sluice.services.config import RunConfig
from sluice.services.config_reference import (
    SettingEntry,
    SettingGroup,
    describe_settings,
    groups_below,
    show_value,
)
from sluice.services.config_yaml import current_name

_NEAREST = 5
_Place = tuple[SettingGroup, SettingEntry]  # a setting, and the group that it stands in


def explain_setting(name: str, config: RunConfig | None, console: Console) -> None:
    """Print what the setting or the group `name` is, and its value in `config` when that is given.

    Raises:
        ConfigError: there is none of that name; the message has the nearest ones.
    """
    name = current_name(_plain(name), "config explain").removesuffix(".type")
    places = [place for place in _places() if _plain(place[1].path) == name]
    if not name:
        _print_group(describe_settings(), config, console)
        return
    if not places:
        raise ConfigError(f"there is no setting {name!r}; {_nearest(name)}")
    chosen = [place for place in places if config is None or _is_chosen(place[0], config)]
    if config is not None and not chosen:
        console.print(f"{name} has no meaning in this config, which has other types.", markup=False)
    for index, alike in enumerate(_alike(chosen or places)):
        if index:
            console.print()
        _print_entry(alike, config if chosen else None, console)


def _places() -> list[_Place]:
    return [(group, entry) for group in groups_below(describe_settings()) for entry in group.entries]


def _plain(path: str) -> str:
    return path.replace("[]", "").strip(".")


def _nearest(name: str) -> str:
    names = sorted({_plain(entry.path) for _, entry in _places()})
    last = name.rpartition(".")[2]
    alike = [other for other in names if other.rpartition(".")[2] == last]
    alike += difflib.get_close_matches(name, names, n=_NEAREST)
    by_last = {other.rpartition(".")[2]: other for other in names}
    alike += [by_last[near] for near in difflib.get_close_matches(last, by_last, n=_NEAREST)]
    nearest = list(dict.fromkeys(alike))[:_NEAREST]
    return f"the nearest are {', '.join(nearest)}" if nearest else "docs/configuration.md lists all of them"


def _is_chosen(group: SettingGroup, config: RunConfig) -> bool:
    """Whether the config has the types that lead to a group."""
    return all(kind in _values(path, config) for path, kind in group.types)


def _values(path: str, config: Settings) -> list[Any]:
    """What the config has under a dotted name: several values below a list, none where there is no such
    setting.
    """
    values: list[Any] = [config]
    for part in path.split("."):
        name = part.removesuffix("[]")
        values = [getattr(value, name) for value in values if hasattr(value, name)]
        if part.endswith("[]"):
            values = [item for value in values for item in value]
    return values


def _alike(places: Sequence[_Place]) -> list[list[_Place]]:
    """Places of one name that say the same stand together."""
    alike: dict[Any, list[_Place]] = {}
    for group, entry in places:
        models = tuple(child.model for child in entry.groups)
        key = (entry.limits, entry.default, entry.unit, entry.description, models)
        alike.setdefault(key, []).append((group, entry))
    return list(alike.values())


def _print_entry(alike: Sequence[_Place], config: RunConfig | None, console: Console) -> None:
    entry = alike[0][1]
    console.print(Text(_plain(entry.path), style="bold"))
    console.print(Text(entry.description))
    if not entry.is_plain_group:
        _print_facts(alike, config, console)
    if len(entry.groups) > 1:
        kinds = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        for child in entry.groups:
            kinds.add_row(Text(child.type or ""), Text(" ".join(child.text.partition("\n\n")[0].split())))
        console.print(kinds)
    for child in entry.groups:
        if len(entry.groups) == 1 or (config is not None and _is_chosen(child, config)):
            _print_group(child, config, console)


def _print_facts(alike: Sequence[_Place], config: RunConfig | None, console: Console) -> None:
    entry = alike[0][1]
    facts = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    ways: dict[str, dict[str, None]] = {}
    for group, _ in alike:
        for path, kind in group.types:
            ways.setdefault(path, {})[kind] = None
    for path, kinds in ways.items():
        facts.add_row("where", Text(f"{path} is {' or '.join(kinds)}"))
    facts.add_row("type", Text(entry.limits))
    facts.add_row("default", Text("none, it must be given" if entry.default is None else entry.default))
    if entry.unit:
        facts.add_row("unit", Text(entry.unit))
    if config is not None:
        facts.add_row("this config", Text(_value(entry, config)))
    console.print(facts)


def _print_group(group: SettingGroup, config: RunConfig | None, console: Console) -> None:
    console.print()
    console.print(Text(group.text))
    if not group.entries:
        return
    table = Table(box=box.SIMPLE)
    table.add_column("setting", no_wrap=True)
    for title in ("default", *(["this config"] if config else []), "meaning"):
        table.add_column(title, overflow="fold")
    for entry in group.entries:
        default = "(required)" if entry.default is None else entry.default
        limits = "a group of settings" if entry.is_plain_group else entry.limits
        cells = (
            entry.path.removeprefix(f"{group.path}."),
            default,
            *([_value(entry, config)] if config else []),
            f"{entry.description}\n({limits}{', ' + entry.unit if entry.unit else ''})",
        )
        table.add_row(*(Text(cell) for cell in cells))
    console.print(table)


def _value(entry: SettingEntry, config: RunConfig) -> str:
    return ", ".join(show_value(value) for value in _values(entry.path, config))
