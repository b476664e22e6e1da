"""Write docs/configuration.md from the settings classes, their types, defaults and comments: `make docs`."""

import inspect
import re
import sys
import types
import typing
from pathlib import Path

from pydantic.fields import FieldInfo

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from sluice.catalog.settings import Settings
from sluice.services.config import RunConfig

HEAD = """# Configuration

One YAML file describes a run. Every setting is listed here with its default; a file only needs what differs, and an
unknown name is an error. `--set learner.lr=1e-5` overrides one setting on the command line (the value is YAML), and
`sluice config check FILE` prints the resolved config or every error with its field path.

A relative path means relative to the directory in which the command is run. `sluice submit` makes such paths absolute
before it sends the job to a cluster on the same machine. In a job submitted by hand (`ray job submit`) a relative
`output` goes to `~/sluice/` on the node where the job's driver runs.

This page is made from the settings classes by `make docs`.
"""


def render() -> str:
    """The whole page."""
    return HEAD + "".join(_section("", RunConfig, "The run", {}))


def _section(path: str, model: type[Settings], title: str, seen: dict[type[Settings], str]) -> list[str]:
    """The section of `model` and of what is below it; a class that was listed before, or lists with the same
    classes, are only referred to.
    """
    seen[model] = title
    comments = _comments(model)
    rows, below = [], []
    for name, field in model.model_fields.items():
        dotted = f"{path}{name}"
        children = _models(field.annotation)
        if typing.get_origin(field.annotation) is tuple and children:
            dotted += "[]"
        if len(children) == 1 and children[0] in seen:
            rows.append(f"| `{dotted}` | as {seen[children[0]]} | | {comments.get(name, '')} |")
            continue
        if len(children) == 1:
            kind = title.partition(" of type ")[2]
            below += _section(
                f"{dotted}.", children[0], f"`{dotted}`" + (f" for type {kind}" if kind else ""), seen
            )
            continue
        for child in children:
            if child not in seen:
                kind = child.model_fields["type"].default
                below += _section(f"{dotted}.", child, f"`{dotted}` of type `{kind}`", seen)
        if children:
            kinds = ", ".join(f"`{child.model_fields['type'].default}`" for child in children)
            rows.append(
                f"| `{dotted}.type` | one of {kinds} | {_default(field)} | {comments.get(name, '')} |"
            )
        elif name != "type":
            rows.append(f"| `{dotted}` | {_type(field)} | {_default(field)} | {comments.get(name, '')} |")
    text = inspect.cleandoc(model.__doc__ or "").partition("\n>>> ")[0].rstrip()  # without examples
    table = ["| setting | type | default | |", "|---|---|---|---|", *rows] if rows else []
    return ["\n", f"## {title}\n\n{text}\n", "\n" if table else "", *(f"{line}\n" for line in table), *below]


def _models(annotation: object) -> list[type[Settings]]:
    if inspect.isclass(annotation) and issubclass(annotation, Settings):
        return [annotation]
    return [model for part in typing.get_args(annotation) for model in _models(part)]


def _type(field: FieldInfo) -> str:
    bounds = []
    for rule in field.metadata:
        for attribute, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<")):
            if getattr(rule, attribute, None) is not None:
                bounds.append(f"{sign} {getattr(rule, attribute):g}")
    return " ".join([_name(field.annotation), ", ".join(bounds)]).strip()


def _name(annotation: object) -> str:
    if typing.get_origin(annotation) is typing.Literal:
        return ", ".join(f"`{value}`" for value in typing.get_args(annotation))
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return " or ".join(
            "null" if part is types.NoneType else _name(part) for part in typing.get_args(annotation)
        )
    if typing.get_origin(annotation) is tuple:
        return f"list of {_name(typing.get_args(annotation)[0])}"
    if typing.get_origin(annotation) is dict:
        return "mapping"
    return {str: "text", int: "integer", float: "number", bool: "true or false"}.get(
        annotation, str(annotation)
    )


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "(required)"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, Settings):
        return f"`{value.type}`" if hasattr(value, "type") else ""
    if isinstance(value, tuple) and value and isinstance(value[0], Settings):
        return ", ".join(
            f"`{item.model_dump(exclude_defaults=True) | {'type': item.type}}`" for item in value
        )
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"`{list(value) if isinstance(value, tuple) else value}`"


def _comments(model: type[Settings]) -> dict[str, str]:
    """The comment of each field, its own or that of the nearest base class that has one."""
    bases = [base for base in model.__mro__ if base is not Settings and issubclass(base, Settings)]
    return {name: text for base in reversed(bases) for name, text in _own_comments(base).items()}


def _own_comments(model: type[Settings]) -> dict[str, str]:
    comments, pending, open_field = {}, [], None
    for line in inspect.getsource(model).splitlines():
        code, _, comment = line.partition("  # ")
        field = re.match(r"    (\w+): ", line)
        if line.strip().startswith("#"):
            pending.append(line.strip("# "))
        elif field:
            open_field = field[1]
            text = " ".join([*pending, comment.strip()]).strip()
            if text:
                comments[open_field] = text
            pending = []
        elif open_field and comment and not code.strip().startswith(("def ", "@", "return", "raise", "if ")):
            comments.setdefault(open_field, comment.strip())
        elif not line.strip():
            pending, open_field = [], None
    return {name: text.replace("|", "\\|") for name, text in comments.items()}


if __name__ == "__main__":
    (Path(__file__).parents[1] / "configuration.md").write_text(render())
