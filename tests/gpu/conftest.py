"""Tests of this directory need a GPU, and are skipped where there is none."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _needs_a_gpu():
    if not torch.cuda.is_available():
        pytest.skip("no GPU in this process")
