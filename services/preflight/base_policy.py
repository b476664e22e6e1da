"""The policy that a run starts from (`policy.base`), read without loading it: config, tokenizer, weights."""

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sluice.actors.settings import CPU_HEAD_SIZES
from sluice.catalog.errors import PolicyError
from sluice.services.config import RunConfig
from sluice.services.preflight.finding import Finding

_FIELD = "policy.base"
_INDEX = "model.safetensors.index.json"
_LEVEL_SIZES = "sluice_level_sizes"  # `sluice.learner.policy.policy.LEVEL_SIZES_KEY`, without torch
_GPU_HEAD_STEP = 16
_GPU_HEAD_LOWEST = 32


def check_engine(config: RunConfig) -> Iterator[Finding]:
    """Whether what generates is installed here."""
    if config.rollout.engine.type == "vllm" and find_spec("vllm") is None:
        yield Finding(
            field="rollout.engine.type",
            value="vllm, which is not installed here",
            bound="an engine that is installed",
            remedy="install requirements/cpu.lock or requirements/gpu.lock, or set it to tree",
        )


def check_base(config: RunConfig) -> Iterator[Finding]:
    """Whether the base can be read, and fits engine and codes; nothing without a base."""
    if config.policy.base is None:
        return
    directory = Path(config.policy.base).expanduser()
    try:
        model = dict(json.loads((directory / "config.json").read_text()))
    except (OSError, ValueError, TypeError) as error:
        reason = "there is no such directory" if not directory.is_dir() else f"config.json: {error}"
        yield _refuse(directory, reason, "a directory of a Hugging Face model", "give the model's directory")
        return
    yield from _weights(directory)
    yield from _tokenizer(directory)
    yield from _heads(config, model)
    yield from _codes(config, directory, model)


def weight_files(directory: Path) -> list[Path]:
    """The files of a model's weights, whether or not they are there.

    Raises:
        PolicyError: the index of them cannot be read.
    """
    index = directory / _INDEX
    if index.is_file():
        try:
            names = set(json.loads(index.read_text())["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise PolicyError(f"{_INDEX}: {type(error).__name__}: {error}") from error
        return [directory / name for name in sorted(names)]
    whole = directory / "model.safetensors"
    return [whole] if whole.is_file() else sorted(directory.glob("pytorch_model*.bin")) or [whole]


def _weights(directory: Path) -> Iterator[Finding]:
    from safetensors import SafetensorError, safe_open

    try:
        files = weight_files(directory)
    except PolicyError as error:
        yield _refuse(directory, str(error), "a readable index", "copy the model again")
        return
    for file in files:
        try:
            if file.suffix == ".safetensors":
                with safe_open(str(file), framework="np"):
                    pass  # opening reads the header and compares it with the file's length
            else:
                file.stat()
        except (OSError, SafetensorError) as error:
            yield _refuse(directory, f"{file.name}: {error}", "whole weights", "copy the model again")


def _tokenizer(directory: Path) -> Iterator[Finding]:
    from tokenizers import Tokenizer

    file = directory / "tokenizer.json"
    if not file.is_file():
        if not list(directory.glob("tokenizer*")) + list(directory.glob("vocab*")):
            yield _refuse(directory, "it has no tokenizer", "a tokenizer beside the weights", "copy it there")
        return
    try:
        Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises nothing more special
        yield _refuse(directory, f"tokenizer.json: {error}", "a readable tokenizer", "copy the model again")


def _heads(config: RunConfig, model: dict[str, Any]) -> Iterator[Finding]:
    heads = model.get("num_attention_heads")
    size = model.get("head_dim") or (
        model["hidden_size"] // heads if heads and "hidden_size" in model else None
    )
    if config.rollout.engine.type != "vllm" or not isinstance(size, int):
        return
    on_cpu = config.rollout.gpus == 0
    fits = size in CPU_HEAD_SIZES if on_cpu else size >= _GPU_HEAD_LOWEST and size % _GPU_HEAD_STEP == 0
    if not fits:
        yield Finding(
            field=_FIELD,
            value=f"attention heads of size {size}",
            bound=f"what vLLM takes: {CPU_HEAD_SIZES if on_cpu else 'multiples of 16 from 32 on'}",
            remedy="set rollout.engine.type to tree, or take another base",
        )


def _codes(config: RunConfig, directory: Path, model: dict[str, Any]) -> Iterator[Finding]:
    adapted, fitted = model.get(_LEVEL_SIZES), list(config.data.semantic_ids.level_sizes or ())
    source = config.data.source
    own = source.type == "table" and source.catalogue_columns.codes is not None
    if isinstance(adapted, list) and not own and adapted[: len(fitted)] != fitted:
        yield _refuse(
            directory,
            f"it has tokens for codes of {adapted}",
            f"data.semantic_ids.level_sizes {fitted}",
            "set those level sizes, or start from the model as it was before",
        )


def _refuse(directory: Path, reason: str, bound: str, remedy: str) -> Finding:
    return Finding(field=_FIELD, value=f"{directory}: {reason}", bound=bound, remedy=remedy)
