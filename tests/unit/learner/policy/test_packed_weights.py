"""Packing weights and refusing damaged ones."""

import threading
from dataclasses import replace

import pytest
import torch

from sluice.catalog.errors import PolicyError
from sluice.learner.policy.packed_weights import PackedWeights, UnverifiedWeights, pack_weights
from tests.unit.learner.learner_cases import tiny_policy


def parameters():
    return [
        ("a", torch.arange(6, dtype=torch.float32).view(2, 3)),
        ("b", torch.tensor([1.5, -2.0], dtype=torch.bfloat16)),
        ("c", torch.tensor(7.0)),
        ("d", torch.arange(12, dtype=torch.float32).view(3, 4).T),  # not contiguous
    ]


def verify(weights):
    with UnverifiedWeights(weights).verifying():
        pass


def test_every_tensor_comes_back_as_it_was():
    packed = pack_weights(parameters(), version=3)
    assert packed.version == 3
    assert packed.nbytes == (6 + 1 + 12) * 4 + 2 * 2
    found = dict(packed.tensors())
    for name, tensor in parameters():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    verify(packed)


@pytest.mark.parametrize(("byte", "name"), [(0, "a"), (5, "a"), (25, "c"), (40, "d"), (75, "d")])
def test_a_flipped_byte_is_noticed(byte, name):
    packed = pack_weights(parameters(), version=3)
    packed.buffers["torch.float32"][byte] ^= 1
    with pytest.raises(
        PolicyError, match=rf"version 3 arrived damaged: .* torch\.float32 .*; damaged are {name}$"
    ):
        verify(packed)


def test_an_exchanged_buffer_is_noticed_even_if_its_checksum_comes_with_it():
    packed, other = (
        pack_weights(parameters(), version=3),
        pack_weights([("a", torch.zeros(10)), ("b", torch.zeros(2))], version=3),
    )
    with pytest.raises(PolicyError, match="the manifest is not the one packed"):
        UnverifiedWeights(replace(packed, buffers=other.buffers, checksums=other.checksums))


def test_a_changed_manifest_is_noticed():
    packed = pack_weights(parameters(), version=3)
    swapped = replace(packed.manifest[0], name="d"), *packed.manifest[1:]
    with pytest.raises(PolicyError, match="damaged: the manifest is not the one packed"):
        UnverifiedWeights(replace(packed, manifest=swapped))


class Slow(PackedWeights):
    """Weights whose bytes take until `let_go` is set to verify."""

    begun, let_go = threading.Event(), threading.Event()

    def verify_bytes(self) -> None:
        self.begun.set()
        assert self.let_go.wait(10)
        super().verify_bytes()


def test_damaged_weights_may_be_loaded_but_the_block_that_loads_them_fails():
    slow = Slow(**vars(pack_weights(parameters(), version=3)))
    slow.buffers["torch.float32"][25] ^= 1
    arrived = UnverifiedWeights(slow)  # does not verify them itself: that would take 10 s
    assert arrived.version == 3
    with (
        pytest.raises(PolicyError, match=r"version 3 arrived damaged: .*; damaged are c$"),
        arrived.verifying() as weights,
    ):
        assert weights is slow
        assert Slow.begun.wait(10)
        Slow.let_go.set()


def test_that_weights_are_damaged_is_said_in_the_place_of_what_their_load_raises():
    packed = pack_weights(parameters(), version=3)
    torn = replace(packed, buffers=packed.buffers | {"torch.float32": packed.buffers["torch.float32"][:-8]})
    with (
        pytest.raises(PolicyError, match=r"version 3 arrived damaged: .*; damaged are d$") as caught,
        UnverifiedWeights(torn).verifying() as weights,
    ):
        dict(weights.tensors())
    assert isinstance(caught.value.__context__, RuntimeError)
    with pytest.raises(MemoryError, match="no room"), UnverifiedWeights(packed).verifying():
        raise MemoryError("no room")


def test_sound_weights_are_there_in_the_block():
    packed = pack_weights(parameters(), version=3)
    with UnverifiedWeights(packed).verifying() as weights:
        assert weights is packed


def test_what_to_load_is_what_differs_with_its_block():
    names = [
        "model.layers.0.mlp.up_proj.weight",
        "model.layers.0.mlp.down_proj.weight",
        "model.layers.0.norm.weight",
    ]
    before = pack_weights([(name, torch.ones(2)) for name in names], version=1)
    same = pack_weights([(name, torch.ones(2)) for name in names], version=2)
    assert same.changed(before.manifest) == set()
    assert same.changed(()) == set(names)
    after = pack_weights(
        [(names[0], torch.zeros(2)), *((name, torch.ones(2)) for name in names[1:])], version=3
    )
    assert after.changed(before.manifest) == set(names[:2])
    assert [name for name, _ in after.tensors({names[1]})] == [names[1]]


def test_tied_weights_travel_once():
    model = tiny_policy().model
    packed = pack_weights(model.named_parameters(), version=0)
    assert packed.nbytes == 4 * sum(parameter.numel() for parameter in model.parameters())
    assert "lm_head.weight" not in dict(packed.tensors())


def test_packing_copies():
    tensor = torch.ones(3)
    packed = pack_weights([("a", tensor)], version=0)
    tensor.zero_()
    assert dict(packed.tensors())["a"].tolist() == [1, 1, 1]


def test_an_integer_parameter_is_refused():
    with pytest.raises(PolicyError, match=r"parameter a has dtype torch\.int64"):
        pack_weights([("a", torch.ones(3, dtype=torch.int64))], version=0)
