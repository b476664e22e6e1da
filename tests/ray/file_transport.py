"""A direct transport through files: what Ray asks of a one-sided transport, without hardware or a package for
it.
"""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import torch
from ray.experimental.rdt.tensor_transport_manager import (
    CommunicatorMetadata,
    TensorTransportManager,
    TensorTransportMetadata,
)

NAME = "SLUICE_FILES"


@dataclass
class Files(TensorTransportMetadata):
    paths: list[str] = field(default_factory=list)


_written: list[Path] = []  # by this process


def lose_files() -> None:
    """Everything that this process has put is gone."""
    while _written:
        _written.pop().unlink()


class FileTransport(TensorTransportManager):
    def tensor_transport_backend(self):
        return NAME

    @staticmethod
    def is_one_sided():
        return True

    @staticmethod
    def can_abort_transport():
        return True

    def actor_has_tensor_transport(self, actor):
        return True

    def extract_tensor_transport_metadata(self, obj_id, rdt_object):
        directory = Path(tempfile.mkdtemp(prefix="sluice-transport-"))
        paths = []
        for number, tensor in enumerate(rdt_object):
            paths.append(str(directory / f"{number}.pt"))
            torch.save(tensor, paths[-1])
            _written.append(Path(paths[-1]))
        return Files(
            tensor_meta=[(one.shape, one.dtype) for one in rdt_object], tensor_device="cpu", paths=paths
        )

    def get_communicator_metadata(self, src_actor, dst_actor, backend=None):
        return CommunicatorMetadata()

    def recv_multiple_tensors(
        self, obj_id, tensor_transport_metadata, communicator_metadata, target_buffers=None
    ):
        return [torch.load(path) for path in tensor_transport_metadata.paths]

    def send_multiple_tensors(self, tensors, tensor_transport_metadata, communicator_metadata):
        raise NotImplementedError("nobody sends in a one-sided transport")

    def garbage_collect(self, obj_id, tensor_transport_meta, tensors):
        for path in tensor_transport_meta.paths:
            Path(path).unlink(missing_ok=True)

    def abort_transport(self, obj_id, communicator_metadata):
        pass
