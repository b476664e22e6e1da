"""Weights as one flat buffer per dtype: what travels from the learner to the rollout engines.

`pack` copies every parameter once (`pack_one_by_one` without having more than one of them at hand); `tensors` gives
views back without a copy. The checksum covers the bytes and the manifest, so that a torn or foreign buffer is refused
instead of loaded.
"""

import warnings
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from catalog.errors import PolicyError

_DTYPES = {str(dtype): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64)}


@dataclass(frozen=True, kw_only=True)
class TensorEntry:
    """Where one parameter lies."""

    name: str
    shape: tuple[int, ...]
    dtype: str  # key of `PackedWeights.buffers`, e.g. "torch.float32"
    offset: int  # bytes into that buffer


@dataclass(frozen=True, kw_only=True)
class PackedWeights:
    """All parameters of a policy at one version."""

    version: int
    manifest: tuple[TensorEntry, ...]
    buffers: dict[str, np.ndarray]  # dtype -> uint8 [bytes]
    checksum: int  # crc32 of manifest and bytes

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return sum(buffer.nbytes for buffer in self.buffers.values())

    def verify(self) -> None:
        """Raises PolicyError when the bytes are not those that were packed."""
        actual = _checksum(self.manifest, self.buffers)
        if actual != self.checksum:
            raise PolicyError(
                f"weights version {self.version} arrived damaged: checksum {actual:#010x}, not {self.checksum:#010x}"
            )

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Each parameter by name, as a view of the buffers: copy before writing."""
        views = {dtype: _as_tensor(buffer) for dtype, buffer in self.buffers.items()}
        for entry in self.manifest:
            dtype = _DTYPES[entry.dtype]
            count = int(np.prod(entry.shape, dtype=np.int64)) * dtype.itemsize
            yield entry.name, views[entry.dtype][entry.offset : entry.offset + count].view(dtype).view(entry.shape)


def pack(parameters: Iterable[tuple[str, torch.Tensor]], version: int) -> PackedWeights:
    """Copy `parameters` (`model.named_parameters()`, say, in which tied weights appear once) into flat buffers."""
    parameters = list(parameters)
    shapes = [(name, tensor.shape, tensor.dtype) for name, tensor in parameters]
    return pack_one_by_one(shapes, (tensor for _, tensor in parameters), version)


def pack_one_by_one(
    shapes: Iterable[tuple[str, torch.Size, torch.dtype]], tensors: Iterable[torch.Tensor], version: int
) -> PackedWeights:
    """Copy `tensors` of these names, shapes and dtypes into flat buffers, each before the next one is drawn.

    Raises:
        PolicyError: a dtype that weights do not travel in.
    """
    offsets: dict[str, int] = {}
    manifest = []
    for name, shape, kind in shapes:
        dtype = str(kind)
        if dtype not in _DTYPES:
            raise PolicyError(f"parameter {name} has dtype {dtype}; weights travel as one of {', '.join(_DTYPES)}")
        offset = offsets.get(dtype, 0)
        manifest.append(TensorEntry(name=name, shape=tuple(shape), dtype=dtype, offset=offset))
        offsets[dtype] = offset + shape.numel() * kind.itemsize
    buffers = {dtype: np.empty(size, dtype=np.uint8) for dtype, size in offsets.items()}
    for entry, tensor in zip(manifest, tensors, strict=True):
        assert (tuple(tensor.shape), str(tensor.dtype)) == (entry.shape, entry.dtype), entry.name
        source = tensor.detach().to("cpu").contiguous().view(-1).view(torch.uint8)
        target = torch.from_numpy(buffers[entry.dtype])[entry.offset : entry.offset + source.numel()]
        target.copy_(source)
    return PackedWeights(
        version=version, manifest=tuple(manifest), buffers=buffers, checksum=_checksum(manifest, buffers)
    )


def _checksum(manifest: Iterable[TensorEntry], buffers: dict[str, np.ndarray]) -> int:
    value = zlib.crc32(repr(tuple(manifest)).encode())
    for dtype in sorted(buffers):
        value = zlib.crc32(buffers[dtype], value)
    return value


def _as_tensor(buffer: np.ndarray) -> torch.Tensor:
    # Arrays out of the object store are read-only, which torch warns of; nothing here writes to a view.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(buffer)
