import numpy as np
import pytest
import torch

from sluice.services.bench.engines import trie as bench
from sluice.services.bench.harness import BenchOptions


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(bench, "_SIZES", (40, 60))
    monkeypatch.setattr(bench, "_LARGEST_DICTIONARY", 40)
    monkeypatch.setattr(bench, "_LEVEL_SIZES", (4, 4, 5))
    monkeypatch.setattr(bench, "_ROWS", 8)
    monkeypatch.setattr(bench, "_DECODES", 2)
    monkeypatch.setattr(bench, "_BUILD_SIZES", (1000,))


def test_the_dictionary_lists_what_may_follow():
    allowed = bench.prefix_lists(np.array([[1, 2], [1, 4], [3, 2]]))
    assert {key: sorted(tokens) for key, tokens in allowed.items()} == {"": [1, 3], "1": [2, 4], "3": [2]}
    scores = torch.arange(10.0).reshape(2, 5)
    sequences = torch.tensor([[0, 1], [0, 9]])  # 9 is no prefix
    masked = bench.by_dictionary(allowed, sequences, 1, scores)
    assert torch.isfinite(masked).tolist() == [[False, False, True, False, True], [False] * 5]
    assert masked[0, [2, 4]].tolist() == [2, 4]


def test_random_codes_are_distinct():
    codes = bench.random_codes(79, (4, 4, 5), 3)
    assert len(np.unique(codes, axis=0)) == 79
    assert (codes >= 0).all() and (codes < [4, 4, 5]).all()


def test_both_sides_mask_alike_and_the_figures_are_there(small):
    result = bench.run(BenchOptions(repeats=1))
    assert [row["items"] for row in result["rows"]] == [40, 60]
    assert result["rows"][0]["speedup"] > 0
    assert result["rows"][1]["speedup"] is None
    (built,) = result["builds"]
    assert built["items"] == 1000 and built["build_s"] > 0 and built["bytes_per_item"] > 8
    assert all(
        row["us_per_step"] > 0 and row["build_s"] > 0 and row["memory_mib"] > 0 for row in result["rows"]
    )
