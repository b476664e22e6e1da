"""What `make lock-check` finds in pip's reports; needs neither a GPU nor an index."""

import importlib
import sys

import pytest

from tests.gpu.check.steps import ROOT


@pytest.fixture
def check(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "requirements"))
    for name in ("check", "lock"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module("check")
    for name in ("check", "lock"):
        sys.modules.pop(name, None)


def test_pins_are_read_by_canonical_name(check):
    text = "# a==1\nJinja2==3.1.6\ntorch===2.13.0\noutlines_core==0.2.14\ntorch_x==1+cpu\n"
    assert check.pins_in(text) == {
        "jinja2": "3.1.6",
        "torch": "2.13.0",
        "outlines-core": "0.2.14",
        "torch-x": "1+cpu",
    }


def test_every_difference_is_named_and_no_exception_is(check):
    pins = {"same": "1", "left": "2", "other": "3", "recbole": "1.2.1"}
    found = {"same": "1", "other": "4", "new": "5", "torchvision": "0.28.0"}
    ours = ["nothing takes left", "new 5 is asked for and not pinned"]
    apart = "other is pinned to 3 and pip takes 4"
    assert check.differences("cpu", pins, found) == [*ours, apart]
    gpu = [*ours, "torchvision 0.28.0 is asked for and not pinned", apart]
    assert check.differences("gpu", pins, found) == gpu
    assert check.differences("cpu", {"recbole": "1.2.1"}, {}, recbole=True) == ["nothing takes recbole"]


def test_a_cpu_build_of_torch_is_no_gpu_lock(check):
    def report(*asked):
        return {"install": [{"metadata": {"name": "torch", "version": "2.13.0", "requires_dist": asked}}]}

    cpu, gpu = report("jinja2"), report("jinja2", "cuda-toolkit[cublas]==13.0.3; platform_system == 'Linux'")
    assert check.wrong_torch("cpu", cpu) is None and check.wrong_torch("gpu", gpu) is None
    assert check.wrong_torch("gpu", cpu) == "torch 2.13.0 is no CUDA build"
    assert check.wrong_torch("cpu", gpu) == "torch 2.13.0 is a CUDA build"


def test_both_locks_hold_what_their_in_files_pin(check):
    for kind in ("cpu", "gpu"):
        asked = check.pins_in((ROOT / f"requirements/{kind}.in").read_text().replace("[default,train]", ""))
        pins = check.pins_in((ROOT / f"requirements/{kind}.lock").read_text())
        assert len(asked) >= 6
        assert {name: pins.get(name) for name in asked} == asked
