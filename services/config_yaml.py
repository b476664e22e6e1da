"""A config as YAML, before it is checked: the file, the overrides of the command line, and former names.

What YAML 1.1 reads otherwise than people do is refused with its line: a key that stands twice, `010` (octal),
`12:30` (base 60), text after ` #` in an override.

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
    """Reads `1e-5`, a string in YAML 1.1, as the float that everybody means, and refuses what has two
    meanings.
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """A mapping none of whose keys stands twice; what `<<` brings in may be overridden."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # no name of a setting, which the check of the whole config says
            if key.value in lines:
                raise _refuse(
                    key,
                    f"the key {key.value} stands twice, first in line {lines[key.value]}, and only the last "
                    "would count: keep one of them",
                )
            lines[key.value] = key.start_mark.line + 1
        return node

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        """A number that people and YAML 1.1 read alike."""
        text = str(node.value)
        if ":" in text:
            raise _refuse(
                node, f"{text} is a number in base 60 in YAML: write it out, or quote it if it is text"
            )
        if _LEADING_ZERO.match(text) and node.tag.endswith(":int"):
            raise _refuse(
                node,
                f"{text} is an octal number in YAML: leave out the leading 0, or quote it if it is text",
            )
        number: int | float = (
            self.construct_yaml_int(node) if node.tag.endswith(":int") else self.construct_yaml_float(node)
        )
        return number


def _refuse(node: yaml.Node, problem: str) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(problem=problem, problem_mark=node.start_mark)


_LEADING_ZERO = re.compile(r"^[-+]?0[0-9_]")
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_number)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_number)
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
        raw = yaml.load(_read_text(Path(path)), Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}{_explain(error)}") from None
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
        if (comment := _comment(value)) is not None:
            raise ConfigError(
                f"--set {override!r}: {comment!r} is a comment in YAML and would be left out: quote the "
                f"value, as in --set '{key}=\"...\"'"
            )
        node[leaf] = yaml.load(value, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override!r}: the value{_explain(error, shows_line=False)}") from None
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


def _read_text(path: Path) -> str:
    """The text of a file in UTF-8, whatever the locale says."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read the config {path}: {error.strerror}") from None
    try:
        text = content.decode()
        bad = content.find(b"\0")
    except UnicodeDecodeError as error:
        text, bad = "", error.start
    if bad < 0:
        return text
    line = content.count(b"\n", 0, bad) + 1
    kind = "UTF-16 or UTF-32" if b"\0" in content else "Latin-1 or another encoding"
    raise ConfigError(
        f"{path} is no text in UTF-8: line {line} has the byte 0x{content[bad]:02x} (perhaps it is {kind}); "
        "save it as UTF-8"
    )


def _comment(value: str) -> str | None:
    """What YAML would skip at the end of a value; None when it reads all of it."""
    ends = [
        token.end_mark.index
        for token in yaml.scan(value, Loader=_Loader)
        if not isinstance(token, yaml.StreamStartToken | yaml.StreamEndToken | yaml.BlockEndToken)
    ]
    return value[max(ends, default=0) :].strip() or None


def _explain(error: yaml.YAMLError, *, shows_line: bool = True) -> str:
    """What is wrong, in one line that goes on after the name of what was read."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return f" is not valid YAML: {' '.join(str(error).split())}"
    line = f", line {error.problem_mark.line + 1}" if shows_line else ""
    if isinstance(error, yaml.constructor.ConstructorError) and error.context is None:
        return f"{line}: {error.problem}"
    context = f"{error.context}: " if error.context else ""
    return f"{line} is not valid YAML: {context}{error.problem}"


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
