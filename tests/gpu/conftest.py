"""Tests of the files `test_*_on_gpu.py` need a GPU, and are skipped where there is none."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def _needs_a_gpu(request):
    if request.path.stem.endswith("_on_gpu") and not torch.cuda.is_available():
        pytest.skip("no GPU in this process")
