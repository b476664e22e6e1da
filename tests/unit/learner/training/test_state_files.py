"""A worker's state in safetensors and JSON comes back to the bit."""

import json
import math

import numpy as np
import pytest
import torch

from sluice.learner.training.state_files import has_state, load_state, save_state


def assert_same(read, written):
    """Equal in value and in type, everywhere."""
    assert type(read) is type(written)
    if isinstance(written, torch.Tensor):
        assert (read.dtype, read.shape) == (written.dtype, written.shape)
        assert read.numpy(force=True).tobytes() == written.contiguous().numpy(force=True).tobytes()
    elif isinstance(written, dict):
        assert list(read) == list(written)
        assert [type(key) for key in read] == [type(key) for key in written]
        for key, value in written.items():
            assert_same(read[key], value)
    elif isinstance(written, list | tuple):
        assert len(read) == len(written)
        for first, second in zip(read, written, strict=True):
            assert_same(first, second)
    elif isinstance(written, float):
        assert (math.isnan(read) and math.isnan(written)) or read.hex() == written.hex()
    else:
        assert read == written


STATES = [
    {},
    {"step": 3, "lr": 0.1 + 0.2, "betas": (0.9, 0.999), "fused": True, "off": False, "none": None},
    {0: "whole number", "0": "text", (1, "a"): "tuple", None: [], True: ()},
    {"tensor": "3"},  # reads like a mark, and is none
    {"tuple": [1], "dict": {"dict": []}},
    [float("inf"), float("-inf"), float("nan"), -0.0, 5e-324, 2**70, "grün\n"],
    {"rng": torch.get_rng_state(), "cuda": [torch.arange(4, dtype=torch.uint8)]},
    [torch.tensor(8.0), torch.zeros(0, 3), torch.tensor([float("nan"), -0.0, 1e-45])],
    [torch.tensor(True), torch.arange(3), torch.ones(2, dtype=torch.float64)],
]


@pytest.mark.parametrize("state", STATES)
def test_a_state_comes_back_as_it_was(tmp_path, state):
    assert not has_state(tmp_path / "rank-0")
    save_state(state, tmp_path / "rank-0")
    assert has_state(tmp_path / "rank-0")
    assert_same(load_state(tmp_path / "rank-0"), state)


def test_half_precision_comes_back_to_the_bit(tmp_path):
    values = torch.randn(5).bfloat16()
    save_state([values], tmp_path / "rank-0")
    (read,) = load_state(tmp_path / "rank-0")
    assert read.dtype == torch.bfloat16
    assert torch.equal(read.view(torch.int16), values.view(torch.int16))


def test_parts_of_one_memory_and_transposed_tensors_come_back(tmp_path):
    whole = torch.arange(12.0).view(3, 4)
    state = [whole, whole[1], whole[1:, 2:], whole.T, whole, torch.nn.Parameter(whole)]
    save_state(state, tmp_path / "rank-0")
    read = load_state(tmp_path / "rank-0")
    assert all(torch.equal(first, second) for first, second in zip(read, state, strict=True))
    assert not any(tensor.requires_grad for tensor in read)


def test_what_was_read_is_the_reader_s_own(tmp_path):
    save_state([torch.zeros(3)], tmp_path / "rank-0")
    (first,) = load_state(tmp_path / "rank-0")
    first.add_(1)
    (second,) = load_state(tmp_path / "rank-0")
    assert second.tolist() == [0, 0, 0]


def test_the_files_are_read_without_sluice(tmp_path):
    from safetensors.numpy import load_file

    save_state({"step": 3, "m": torch.arange(2.0)}, tmp_path / "rank-0")
    text = json.loads((tmp_path / "rank-0.json").read_text())
    assert text == {"dict": [["step", 3], ["m", {"tensor": "0"}]]}
    assert load_file(tmp_path / "rank-0.safetensors")["0"].tolist() == [0, 1]


@pytest.mark.parametrize("value", [np.float64(0.5), {1}, torch.float32, object()])
def test_what_would_not_come_back_as_it_was_is_refused(tmp_path, value):
    with pytest.raises(TypeError, match=f"a checkpoint cannot hold a {type(value).__name__}"):
        save_state({"step": value}, tmp_path / "rank-0")
    assert not has_state(tmp_path / "rank-0")
