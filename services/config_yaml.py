"""A config as YAML, before it is checked: the file, the overrides of the command line, and former names.

A setting that has a new name keeps working under its former one for one release: in files, in overrides, and
in the `config.yaml` of earlier runs. `RENAMED` is the only place that knows of former names.
"""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from sluice.catalog.errors import ConfigError

# Former name -> name of a setting, or of a group of settings; a row stays for one release.
RENAMED: dict[str, str] = {
    "learner.recent_positions": "learner.prompts_per_user",
    "learner.wait_s": "learner.rollout_timeout_s",
}

logger = logging.getLogger(__name__)


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads `1e-5` as a string; this loader reads it as the float that everybody means."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def read_settings(path: str | Path) -> dict[str, Any]:
    """The mapping in a file, under today's names.

    Raises:
        ConfigError: the file is missing, or no YAML mapping.
    """
    try:
        text = Path(path).read_text()
    except OSError as error:
        raise ConfigError(f"cannot read the config {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no text: {error}") from None
    try:
        raw = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} must hold a mapping of settings, not {type(raw).__name__}")
    rename_settings(raw, str(path))
    return raw


def apply_override(raw: dict[str, Any], override: str) -> None:
    """Set what an override such as `learner.lr=1e-5` says; its value is YAML.

    Raises:
        ConfigError: it is malformed.
    """
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override!r}: write it as some.field=value")
    *parents, leaf = current_name(key, "--set").split(".")
    node = raw
    for depth, parent in enumerate(parents):
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise ConfigError(
                f"--set {override!r}: {'.'.join(parents[: depth + 1])} holds a value, not a group of settings"
            )
    try:
        node[leaf] = yaml.load(value, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override!r}: the value is not valid YAML: {error}") from None
    rename_settings(raw, "--set")  # the value may be a group of settings


def current_name(key: str, where: str, renamed: Mapping[str, str] = RENAMED) -> str:
    """Today's name of a setting; warns when `key` is a former one. `where` begins the warning."""
    for former, name in renamed.items():
        if key == former or key.startswith(f"{former}."):
            _warn(where, former, name)
            return name + key.removeprefix(former)
    return key


def rename_settings(raw: dict[str, Any], where: str, renamed: Mapping[str, str] = RENAMED) -> None:
    """Move what stands under a former name to its new one, with a warning.

    Raises:
        ConfigError: both names are given.
    """
    for former, name in renamed.items():
        *parents, leaf = former.split(".")
        *new_parents, new_leaf = name.split(".")
        node = _group(raw, parents)
        if node is None or leaf not in node:
            continue
        target = _group(raw, new_parents, create=True)
        if target is None:
            continue  # what stands there is wrong, and the check of the whole config says why
        if new_leaf in target:
            raise ConfigError(
                f"{where} has {former} and {name}, the former and the new name of one setting: remove the "
                f"former, {former}"
            )
        target[new_leaf] = node.pop(leaf)
        _warn(where, former, name)


def _warn(where: str, former: str, name: str) -> None:
    logger.warning("%s: %s is now called %s; the next release refuses the former name", where, former, name)


def _group(raw: dict[str, Any], names: list[str], create: bool = False) -> dict[str, Any] | None:
    """The mapping under `names`; None when there is none, or something else."""
    node: Any = raw
    for name in names:
        if create and isinstance(node, dict):
            node.setdefault(name, {})
        node = node.get(name) if isinstance(node, dict) else None
    return node if isinstance(node, dict) else None
