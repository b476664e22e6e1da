"""Weights as one flat buffer per dtype: what travels from the learner to the rollout engines.

`pack_weights` copies every parameter once; `pack_one_by_one` does so with one of them at hand at a time.
`PackedWeights.tensors` gives views back without a copy.

Each part of a buffer has a checksum, and so has the manifest together with these: a torn or foreign buffer is
refused. `UnverifiedWeights` checks them in a thread while the weights are loaded. Each tensor has a checksum
of its own too: a tensor that is in place already need not be loaded again.
"""

import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import xxhash

from sluice.catalog.errors import PolicyError

_PARTS = 4  # of a buffer
_DTYPES = {str(dtype): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64)}


@dataclass(frozen=True, kw_only=True)
class TensorEntry:
    """Where one parameter lies."""

    name: str
    shape: tuple[int, ...]
    dtype: str  # key of `PackedWeights.buffers`, e.g. "torch.float32"
    offset: int  # bytes into that buffer
    checksum: int  # xxh3 of its bytes


@dataclass(frozen=True, kw_only=True)
class PackedWeights:
    """All parameters of a policy at one version."""

    version: int
    manifest: tuple[TensorEntry, ...]
    buffers: dict[str, np.ndarray]  # dtype -> uint8 [bytes]
    checksums: dict[str, tuple[int, ...]]  # dtype -> xxh3 of each of the buffer's parts
    checksum: int  # xxh3 of the manifest and of `checksums`, and so of all bytes

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return sum(buffer.nbytes for buffer in self.buffers.values())

    def verify_manifest(self) -> None:
        """Raises PolicyError when it is not the one that was packed."""
        if _checksum(self.manifest, self.checksums) != self.checksum:
            raise PolicyError(
                f"weights version {self.version} arrived damaged: the manifest is not the one packed"
            )

    def verify_bytes(self) -> None:
        """Raises PolicyError when they are not those that the manifest speaks of.

        A buffer is hashed in few calls, which let go of Python's lock: a thread that verifies beside an
        engine at work would otherwise wait for the lock once per tensor, up to 5 ms each time. One after the
        other, which leaves the other cores to the engine.
        """
        for dtype, expected in self.checksums.items():
            if _checksums(self.buffers[dtype], map) != expected:
                raise PolicyError(
                    f"weights version {self.version} arrived damaged: the checksums of the {dtype} buffer do "
                    f"not hold; damaged are {', '.join(self._damaged(dtype))}"
                )

    def tensors(self, names: Collection[str] | None = None) -> Iterator[tuple[str, torch.Tensor]]:
        """Each parameter (of `names`) by name, as a view of the buffers: copy before writing."""
        for entry in self.manifest:
            if names is None or entry.name in names:
                yield (
                    entry.name,
                    _as_tensor(self._bytes_of(entry)).view(_DTYPES[entry.dtype]).view(entry.shape),
                )

    def changed(self, loaded: Iterable[TensorEntry]) -> set[str]:
        """Names of the parameters to load where those of the manifest `loaded` are in place.

        That is every one that differs, and with it all of its block (such as `model.layers.0.mlp`), since
        engines fuse the parameters of a block.
        """
        before = {entry.name: entry.checksum for entry in loaded}
        blocks = {_block(entry.name) for entry in self.manifest if before.get(entry.name) != entry.checksum}
        return {entry.name for entry in self.manifest if _block(entry.name) in blocks}

    def _damaged(self, dtype: str) -> list[str]:
        entries = [entry for entry in self.manifest if entry.dtype == dtype]
        return [entry.name for entry in entries if _hash_bytes(self._bytes_of(entry)) != entry.checksum]

    def _bytes_of(self, entry: TensorEntry) -> np.ndarray:
        count = int(np.prod(entry.shape, dtype=np.int64)) * _DTYPES[entry.dtype].itemsize
        return self.buffers[entry.dtype][entry.offset : entry.offset + count]


class UnverifiedWeights:
    """Weights whose bytes a thread begins to verify."""

    def __init__(self, weights: PackedWeights) -> None:
        """Raises PolicyError when the manifest is damaged."""
        weights.verify_manifest()
        self._weights = weights
        thread = ThreadPoolExecutor(1, thread_name_prefix="verify")
        self._verified = thread.submit(weights.verify_bytes)
        thread.shutdown(wait=False)

    @property
    def version(self) -> int:
        """Of the weights."""
        return self._weights.version

    @contextmanager
    def verifying(self) -> Iterator[PackedWeights]:
        """The weights, to be loaded in the block, at whose end their bytes are verified.

        Raises:
            PolicyError: at the end of the block, and in the place of whatever ended it: they arrived damaged,
                so what they were loaded into is void.
        """
        try:
            yield self._weights
        finally:
            self._verified.result()


def pack_weights(parameters: Iterable[tuple[str, torch.Tensor]], version: int) -> PackedWeights:
    """Copy `parameters`, such as `model.named_parameters()`, into flat buffers; tied weights appear once."""
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
    places = []
    for name, shape, kind in shapes:
        dtype = str(kind)
        if dtype not in _DTYPES:
            raise PolicyError(
                f"parameter {name} has dtype {dtype}; weights travel as one of {', '.join(_DTYPES)}"
            )
        places.append((name, shape, kind, offsets.get(dtype, 0)))
        offsets[dtype] = offsets.get(dtype, 0) + shape.numel() * kind.itemsize
    buffers = {dtype: np.empty(size, dtype=np.uint8) for dtype, size in offsets.items()}
    manifest = []
    for (name, shape, kind, offset), tensor in zip(places, tensors, strict=True):
        assert (tensor.shape, tensor.dtype) == (shape, kind), name
        target = buffers[str(kind)][offset : offset + tensor.numel() * kind.itemsize]
        torch.from_numpy(target).view(kind).view(shape).copy_(tensor.detach())
        manifest.append(
            TensorEntry(
                name=name,
                shape=tuple(shape),
                dtype=str(kind),
                offset=offset,
                checksum=_hash_bytes(target),  # while its bytes are in the processor's cache
            )
        )
    with ThreadPoolExecutor(_PARTS) as pool:
        checksums = {dtype: _checksums(buffer, pool.map) for dtype, buffer in buffers.items()}
    return PackedWeights(
        version=version,
        manifest=tuple(manifest),
        buffers=buffers,
        checksums=checksums,
        checksum=_checksum(tuple(manifest), checksums),
    )


def _checksums(buffer: np.ndarray, mapping: Callable[..., Iterable[int]]) -> tuple[int, ...]:
    return tuple(mapping(_hash_bytes, np.array_split(buffer, _PARTS)))


def _hash_bytes(buffer: np.ndarray) -> int:
    return xxhash.xxh3_64_intdigest(buffer.data)


def _checksum(manifest: tuple[TensorEntry, ...], checksums: dict[str, tuple[int, ...]]) -> int:
    return xxhash.xxh3_64_intdigest(repr((manifest, checksums)).encode())


def _block(name: str) -> str:
    """The module two levels above the tensor: `model.layers.0.mlp` of `model.layers.0.mlp.up_proj.weight`."""
    return name.rsplit(".", 2)[0]


def _as_tensor(buffer: np.ndarray) -> torch.Tensor:
    # Arrays out of the object store are read-only, which torch warns of; nothing here writes to a view.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(buffer)
