"""Products by oneDNN: as exact as torch's own, outputs and every gradient; and who has them: learner,
pretraining.
"""

import copy
import threading

import pytest
import torch
from torch import nn

from sluice.learner.kernels import onednn
from sluice.learner.kernels.onednn import onednn_matmul, use_onednn_matmul
from sluice.learner.objectives.nll import NllLoss
from sluice.learner.policy.policy import build_policy
from sluice.learner.settings import EvaluationSettings, LearnerSettings, PolicySettings, PretrainSettings
from sluice.learner.training.pretrain import pretrain_policy
from sluice.learner.training.step import LearnerStep
from tests.tiny_data import tiny_dataset
from tests.unit.learner.learner_cases import random_batch, tiny_policy


def pair(bias: bool = True, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    own = nn.Sequential(nn.Linear(24, 40, bias=bias), nn.SiLU(), nn.Linear(40, 8)).to(dtype)
    ours = copy.deepcopy(own)
    use_onednn_matmul(ours)
    return own, ours


@pytest.fixture
def calls(monkeypatch):
    """The products that are oneDNN's if they are large enough."""
    counted, product = [], onednn._product

    def counting(*arguments):
        counted.append(1)
        return product(*arguments)

    monkeypatch.setattr(onednn, "_product", counting)
    return counted


def setting():
    return torch.backends.mkldnn.matmul.fp32_precision


def test_products_within_are_as_exact_as_without_and_the_setting_comes_back():
    first, second = torch.randn(2, 4, 70, 70).double()
    before = setting()
    with onednn_matmul(), pytest.raises(IndexError), onednn_matmul():
        inside = setting()
        found = (first.float() @ second.float(), first[0].float() @ second[0].float())
        raise IndexError
    assert (inside, setting()) == (onednn._precision(), before)
    for one, wanted in zip(found, (first @ second, first[0] @ second[0]), strict=True):
        assert (one - wanted).abs().max() < 2e-5


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() != "AVX512", reason="torch takes oneDNN with AVX-512"
)
@pytest.mark.skipif(not onednn.onednn_is_exact(), reason="oneDNN would compute in bfloat16 here")
def test_large_products_within_are_onednns_and_small_ones_are_not(capfd):
    ours = nn.Linear(64, 64)
    use_onednn_matmul(ours)
    for rows, wanted in ((512, True), (8, False)):
        x = torch.randn(rows, 64)
        with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
            ours(x)
        assert (",matmul," in capfd.readouterr().out) == wanted


def test_the_setting_comes_back_when_the_last_thread_has_left():
    before, inside, leave = setting(), threading.Barrier(2), threading.Event()

    def other():
        with onednn_matmul():
            inside.wait(10)
            leave.wait(10)

    thread = threading.Thread(target=other)
    with onednn_matmul():
        thread.start()
        inside.wait(10)  # the other came later and goes later
    assert setting() == onednn._precision()
    leave.set()
    thread.join(10)
    assert setting() == before


def test_a_processor_that_would_compute_in_less_is_not_allowed_to(monkeypatch):
    product = torch.Tensor.__matmul__

    def rounding(one, other):
        if setting() == "bf16" and one.dtype == torch.float32:
            one = one.bfloat16().float()
        return product(one, other)

    monkeypatch.setattr(torch.Tensor, "__matmul__", rounding)
    onednn._precision.cache_clear()
    try:
        assert onednn._precision() == "ieee"
    finally:
        onednn._precision.cache_clear()


@pytest.mark.parametrize("shape", [(7, 24), (1, 33, 24), (2, 3, 5, 24)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_outputs_and_gradients_are_those_of_torchs_own_layers(shape, bias, calls):
    own, ours = pair(bias)
    x = torch.randn(shape)
    found = []
    for model in (own, ours):
        leaf = x.clone().requires_grad_()
        output = model(leaf)
        (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
        found.append([output.detach(), leaf.grad, *(parameter.grad for parameter in model.parameters())])
    assert len(calls) == 2 + 4  # two layers: once forward, twice back
    for wanted, got in zip(*found, strict=True):
        assert got.shape == wanted.shape
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("input_wants", "weight_wants", "products"), [(False, True, 3), (True, False, 3), (True, True, 4)]
)
def test_only_the_gradients_that_are_wanted_are_multiplied(input_wants, weight_wants, products, calls):
    _, ours = pair()
    ours[0].weight.requires_grad_(weight_wants)
    x = torch.randn(5, 24, requires_grad=input_wants)
    ours(x).sum().backward()
    assert len(calls) == 2 + products
    assert (x.grad is not None, ours[0].weight.grad is not None) == (input_wants, weight_wants)


def test_a_gradient_that_is_one_number_in_memory_is_taken(calls):
    own, ours = pair()
    x = torch.randn(5, 24)
    for model in (own, ours):
        model(x).sum().backward()  # an expanded gradient: all strides are 0
    torch.testing.assert_close(ours[0].weight.grad, own[0].weight.grad)


@pytest.mark.parametrize("case", ["float64", "no rows", "autocast"])
def test_what_onednn_does_not_take_is_left_to_torch(case, calls):
    own, ours = pair(dtype=torch.float64 if case == "float64" else torch.float32)
    x = torch.randn(0 if case == "no rows" else 5, 24, dtype=next(own.parameters()).dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"):
        wanted, got = own(x), ours(x)
    assert not calls and got.dtype == wanted.dtype
    assert torch.equal(got, wanted)


def test_compiled_graphs_keep_torchs_own_products(calls):
    own, ours = pair()
    compiled = torch.compile(ours, backend="eager", fullgraph=True)
    x = torch.randn(5, 24)
    torch.testing.assert_close(compiled(x), own(x))
    assert not calls


def test_a_copy_multiplies_by_its_own_weights(calls):
    _, ours = pair()
    copied = copy.deepcopy(ours)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    x = torch.randn(5, 24)
    assert not copied(x).any() and ours(x).any()
    assert list(copied.state_dict()) == list(pair()[0].state_dict())


def test_every_layer_of_a_float32_learner_multiplies_by_onednn(calls):
    model = tiny_policy().model
    layers = sum(type(module) is nn.Linear for module in model.modules())
    learner = LearnerStep(
        model, objective=NllLoss(), settings=LearnerSettings(prompts_per_step=2, warmup_steps=0)
    )
    learner.update(random_batch(prompts=2))
    assert len(calls) == 3 * layers  # forward, gradient of the input, gradient of the weight


def test_every_layer_of_a_policy_in_pretraining_multiplies_by_onednn(calls, tmp_path):
    dataset = tiny_dataset(tmp_path)
    policy = build_policy(PolicySettings(hidden_size=16, layers=1, heads=2), dataset.level_sizes, 64, 0)
    layers = sum(type(module) is nn.Linear for module in policy.model.modules())
    until_the_first_step = []

    def progress(step, total, fields):
        until_the_first_step.append(len(calls))

    pretrain_policy(
        policy, dataset, PretrainSettings(epochs=1), EvaluationSettings(), seed=0, progress=progress
    )
    assert until_the_first_step[0] == 3 * layers
