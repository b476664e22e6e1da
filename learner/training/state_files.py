"""A worker's state in two files that any program can read: tensors as safetensors, everything else as JSON.

    <name>.safetensors   the tensors, by number
    <name>.json          dicts, lists, tuples, numbers, texts; `{"tensor": "3"}` where a tensor stands

JSON knows no tuples and no keys but texts, so these are marked: `{"tuple": [...]}`, `{"dict": [[key, value],
...]}`. What is read is what was written, to the bit; reading runs no code of the file.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from sluice.catalog.files import write_atomically


def save_state(state: Any, place: Path) -> None:
    """Write `<place>.safetensors` and `<place>.json`.

    Raises:
        TypeError: the state holds something else than tensors, dicts, lists, tuples, numbers, texts and None.
    """
    tensors = _Tensors()
    text = json.dumps(_encode(state, tensors))
    save_file(tensors.by_name, _tensor_file(place))
    write_atomically(_text_file(place), text)


def load_state(place: Path) -> Any:
    """What `save_state` wrote, with its tensors on the CPU: a worker may have another device than the one
    that wrote it.
    """
    with safe_open(_tensor_file(place), framework="pt", device="cpu") as file:
        # Copied: the optimizer works in the memory of what it is given, which should not be a mapped file.
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    return _decode(json.loads(_text_file(place).read_text()), tensors)


def has_state(place: Path) -> bool:
    """Whether `save_state` was here; the JSON is written last."""
    return _text_file(place).is_file()


def _tensor_file(place: Path) -> Path:
    return place.with_name(f"{place.name}.safetensors")


def _text_file(place: Path) -> Path:
    return place.with_name(f"{place.name}.json")


class _Tensors:
    """The tensors of a state by number, each in memory of its own: safetensors refuses what is shared."""

    def __init__(self) -> None:
        self.by_name: dict[str, torch.Tensor] = {}
        self._memory: set[int] = set()  # addresses of what they hold

    def add(self, tensor: torch.Tensor) -> str:
        """Take a tensor, on the CPU and contiguous; returns its name."""
        tensor = tensor.detach().cpu().contiguous()
        if tensor.untyped_storage().data_ptr() in self._memory:
            tensor = tensor.clone()
        self._memory.add(tensor.untyped_storage().data_ptr())
        name = str(len(self.by_name))
        self.by_name[name] = tensor
        return name


def _encode(value: Any, tensors: _Tensors) -> Any:
    """`value` as JSON; its tensors go into `tensors`."""
    if isinstance(value, torch.Tensor):
        return {"tensor": tensors.add(value)}
    if isinstance(value, dict):
        return {"dict": [[_encode(key, tensors), _encode(item, tensors)] for key, item in value.items()]}
    if isinstance(value, tuple):
        return {"tuple": [_encode(item, tensors) for item in value]}
    if isinstance(value, list):
        return [_encode(item, tensors) for item in value]
    # Exact types: a NumPy number or an enumeration would come back as something else.
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(f"a checkpoint cannot hold a {type(value).__name__}: {value!r}")


def _decode(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "tuple":
        return tuple(_decode(item, tensors) for item in content)
    return {_decode(key, tensors): _decode(item, tensors) for key, item in content}
