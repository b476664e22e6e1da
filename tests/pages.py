"""What is wrong with the commands and the code blocks of a page of the documentation.

Each function takes a page's text and returns one line per fault, so that a test can show them all.
"""

import argparse
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import yaml
from pydantic import ValidationError

from sluice.catalog.errors import ConfigError
from sluice.services.bench.harness import BENCHES
from sluice.services.cli.parser import build_parser
from sluice.services.config import RunConfig

ROOT = Path(__file__).parents[1]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`\n]+)`")
_TARGETS = re.compile(r"^([a-z][a-z0-9 -]*):", re.MULTILINE)


def blocks(text: str, *languages: str) -> list[str]:
    """The fenced blocks of these languages."""
    return [body for language, body in _FENCE.findall(text) if language in languages]


def prose(text: str) -> str:
    """The page without its fenced blocks."""
    return _FENCE.sub("", text)


def bad_commands(text: str) -> list[str]:
    """`sluice` commands, options and `make` targets that do not exist, in spans and in blocks for a shell."""
    faults = []
    for words in _commands(text):
        program = Path(words[0]).name
        if program == "sluice":
            faults += _bad_arguments(build_parser(), words[1:], " ".join([program, *words[1:]]))
        elif program == "make":
            named = [word for word in words[1:] if re.fullmatch(r"[a-z][a-z0-9-]*", word)]
            faults += [f"make {name}: no such target" for name in named if name not in make_targets()]
    return faults


def make_targets() -> set[str]:
    """The targets of the Makefile."""
    return {name for names in _TARGETS.findall((ROOT / "Makefile").read_text()) for name in names.split()}


def _commands(text: str) -> Iterator[list[str]]:
    lines = [line for block in blocks(text, "sh", "bash") for line in block.replace("\\\n", " ").split("\n")]
    for line in [*lines, *_SPAN.findall(prose(text))]:
        for command in re.split(r"&&|;|\|", re.sub(r"(^|\s)#.*", "", line)):
            try:
                words = shlex.split(command)
            except ValueError:  # a span that is no command
                continue
            words = words[2:] if words[:2] == ["python", "-m"] else words
            if words:
                yield words


def _bad_arguments(parser: argparse.ArgumentParser, words: list[str], command: str) -> list[str]:
    """Walk down the subcommands, then look at the options of the last; placeholders are in capitals."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction) and words and not words[0].startswith("-"):
            if words[0] not in action.choices:
                return [] if words[0].isupper() or "|" in words[0] else [f"{command}: no command {words[0]}"]
            if words[0] == "bench" and words[1:] and words[1].islower() and words[1] not in BENCHES:
                return [f"{command}: no bench {words[1]}"]
            return _bad_arguments(action.choices[words[0]], words[1:], command)
    options = {option for action in parser._actions for option in action.option_strings}
    given = [word.partition("=")[0] for word in words if word.startswith("--")]
    return [f"{command}: no option {option}" for option in given if option not in options]


def bad_blocks(text: str) -> list[str]:
    """Python that does not compile, and YAML that is no config."""
    faults = []
    for number, block in enumerate(blocks(text, "python", "py"), 1):
        try:
            compile(block, f"python block {number}", "exec")
        except SyntaxError as error:
            faults.append(f"python block {number}: {error}")
    for number, block in enumerate(blocks(text, "yaml", "yml"), 1):
        try:
            settings = yaml.safe_load(block)
            if isinstance(settings, dict) and settings.keys() <= RunConfig.model_fields.keys():
                RunConfig.model_validate({"name": "example", **settings})
        except (yaml.YAMLError, ValidationError, ConfigError) as error:
            faults.append(f"yaml block {number}: {error}")
    return faults
