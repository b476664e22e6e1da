"""What is wrong with a page of the documentation: links, paths, commands, code blocks and long lines.

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
from sluice.services.cli.main import build_parser
from sluice.services.config import RunConfig

ROOT = Path(__file__).parents[1]
WIDEST = 110
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_FOLDERS = "catalog|learner|actors|services|cluster|sluice|docs|tests|configs|requirements"
_PATH = re.compile(rf"(?:{_FOLDERS})(?:/[\w.*<>-]+)+/?")
_MODULE = re.compile(r"sluice(\.\w+)+")
_TARGETS = re.compile(r"^([a-z][a-z0-9 -]*):", re.MULTILINE)


def blocks(text: str, *languages: str) -> list[str]:
    """The fenced blocks of these languages."""
    return [body for language, body in _FENCE.findall(text) if language in languages]


def prose(text: str) -> str:
    """The page without its fenced blocks."""
    return _FENCE.sub("", text)


def anchors(text: str) -> set[str]:
    """What a link to a heading of the page may say, as GitHub makes it."""
    headings = re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)
    kept = (re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()) for heading in headings)
    return {heading.strip().replace(" ", "-") for heading in kept}


def bad_links(text: str, folder: Path) -> list[str]:
    """Links to files or headings that are not there; `folder` is the page's."""
    faults = []
    for link in _LINK.findall(prose(text)):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = folder / name if name else None
        if target is not None and not target.exists():
            faults.append(f"link {link}: there is no such file")
        elif anchor and anchor not in anchors(text if target is None else target.read_text()):
            faults.append(f"link {link}: no heading makes this anchor")
    return faults


def bad_paths(text: str, root: Path = ROOT) -> list[str]:
    """Files and modules in `code spans` that are not there. `*` stands for anything, `<name>` too."""
    spans = [span for span in _SPAN.findall(prose(text)) if "://" not in span]
    paths = [path for span in spans for path in span.split() if _PATH.fullmatch(path)]
    faults = [
        f"path {path}: there is no such file"
        for path in paths
        if not any(root.glob(re.sub(r"<\w+>", "*", path).rstrip("/")))
    ]
    return faults + [
        f"module {span}: there is no such module, or the name is not in it"
        for span in spans
        if _MODULE.fullmatch(span) and not _is_defined(span.split("."), root)
    ]


def _is_defined(parts: list[str], root: Path) -> bool:
    for length in range(len(parts), 1, -1):
        module, names = root.joinpath(*parts[:length]), parts[length:]
        if module.is_dir():
            return not names
        if module.with_suffix(".py").is_file():
            source = module.with_suffix(".py").read_text()
            return all(re.search(rf"\b{name}\b", source) for name in names)
    return False


def bad_commands(text: str) -> list[str]:
    """`sluice` commands, options and `make` targets that do not exist, in spans and in blocks for a shell."""
    faults = []
    for words in _commands(text):
        program = Path(words[0]).name
        if program == "sluice":
            faults += _bad_arguments(build_parser(), words[1:], " ".join(words))
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


def long_lines(text: str) -> list[str]:
    """Lines of more than 110 characters outside tables, code blocks and lines with a link."""
    lines = prose(text).split("\n")
    return [
        f"{len(line)} characters: {line[:60]}..."
        for line in lines
        if len(line) > WIDEST and not line.startswith("|") and "](" not in line and "://" not in line
    ]
