"""The compiled parts of a policy compute what they did before, with one graph for batches of any lengths."""

import copy

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from sluice.catalog.errors import PolicyError
from sluice.learner.kernels.compiled import compile_layers
from sluice.learner.scoring.shared_prefix import branch_log_probs
from tests.unit.learner.learner_cases import tiny_llama, tiny_policy


def batch(lengths, branches, seed):
    generator = torch.Generator().manual_seed(seed)
    history = torch.randint(3, 15, (len(lengths), max(lengths)), generator=generator)
    return (
        history,
        torch.tensor(lengths),
        torch.randint(3, 15, (len(lengths), branches, 3), generator=generator),
    )


@pytest.mark.parametrize(
    "make, parts", [(lambda: tiny_policy().model, 10), (tiny_llama, 6)], ids=["qwen3", "llama"]
)
def test_the_same_numbers_and_one_graph_for_all_lengths(make, parts):
    torch._dynamo.reset()
    plain, counter = make(), CompileCounterWithBackend("aot_eager")
    compiled = copy.deepcopy(plain)
    assert compile_layers(compiled, backend=counter) == parts
    assert list(compiled.state_dict()) == list(plain.state_dict())
    counts = []
    for seed, (lengths, branches) in enumerate([((7, 4), 3), ((9, 5, 6), 2), ((12,), 4), ((3, 3, 8, 5), 5)]):
        for model in (plain, compiled):
            model.zero_grad()
            branch_log_probs(model, *batch(lengths, branches, seed)).log_probs_BSL.sum().backward()
        for (name, ours), theirs in zip(compiled.named_parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-6, msg=name)
        counts.append(counter.frame_count)
    assert counts[0] > 0
    assert counts[1:] == counts[1:2] * 3  # nothing is compiled for the third and fourth lengths


def test_a_policy_without_known_parts_is_refused():
    class Other(nn.Module):
        def get_decoder(self):
            return self

    with pytest.raises(
        PolicyError, match=r"knows no part of a Other to compile .* set learner\.compile to false"
    ):
        compile_layers(Other())
