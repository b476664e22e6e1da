"""What no test or bench measures: `python -m tests.gpu.check.probes NAME --json F`, each for a step."""

import argparse
import copy
import importlib.metadata
import json
import math
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from sluice.catalog.errors import RunError, SluiceError
from tests.gpu.check.device import gpus

LOCK = Path(__file__).resolve().parents[3] / "requirements" / "gpu.lock"
NAMED = (
    "torch",
    "vllm",
    "ray",
    "transformers",
    "nixl",
)  # told in the table; the others only when they differ
SHAPE = (16, 200)  # candidates and history tokens of the learner's batch, as `sluice bench learner --quick`
TOLERANCE = 2e-2  # of the loss in bfloat16, relative
TIMED = 3


def main() -> int:
    """Run one probe; returns 2 with one sentence when it shows a failure."""
    parser = argparse.ArgumentParser(description="One probe of gpu-check.")
    parser.add_argument("name", choices=["environment", "learner"])
    parser.add_argument("--json", type=Path, required=True, metavar="F")
    parser.add_argument("--any-versions", action="store_true", help="packages need not be those of the lock")
    options = parser.parse_args()
    try:
        figures = environment(options.any_versions) if options.name == "environment" else learner()
    except SluiceError as error:
        print(f"ERROR: {error}", file=sys.stderr)
        return error.exit_code
    options.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


def environment(any_versions: bool) -> dict[str, Any]:
    """Versions of what matters, and the packages that are not the lock's.

    Raises:
        RunError: there are such packages, or torch sees no GPU though the machine has one.
    """
    import torch

    found = {name: installed(name) or installed(f"{name}-cpu") or "missing" for name in NAMED}
    facts = {"python": platform.python_version(), **found, "cuda": torch.version.cuda or "none"}
    facts["gpu"] = "; ".join(gpus()) or "none"
    if torch.cuda.is_available():
        facts["capability"] = ".".join(map(str, torch.cuda.get_device_capability()))
        torch.ones(8, device="cuda").sum().item()
    elif gpus() and os.environ.get("CUDA_VISIBLE_DEVICES") != "":
        sees_none = f"torch {torch.__version__} sees no GPU though the machine has {gpus()[0]}"
        raise RunError(f"{sees_none}: see docs/gpu.md")
    others = differing(LOCK.read_text())
    facts["not as locked"] = len(others)
    if others and not any_versions:
        first = ", ".join(others[:8])
        raise RunError(f"{len(others)} packages are not those of requirements/gpu.lock: {first}")
    return facts


def differing(lock: str) -> list[str]:
    """`name installed (locked)` of every package whose version is not the lock's."""
    pins = [Requirement(line) for line in lock.splitlines() if line and not line.startswith("#")]
    pairs = [(pin.name, installed(pin.name), next(iter(pin.specifier)).version) for pin in pins]
    return [f"{name} {found or 'missing'} ({locked})" for name, found, locked in pairs if found != locked]


def installed(name: str) -> str | None:
    """The version of an installed package."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def learner() -> dict[str, Any]:
    """Loss and seconds of an optimizer step in float32 and in bfloat16, from the same weights and batch.

    Raises:
        RunError: the losses are further apart than rounding makes them or the same, or weights not float32.
    """
    import torch

    from sluice.learner.policy.policy import build_policy
    from sluice.services.bench.learner.learner import CODES, LEVELS, learner_step, make_batch, prompts_of
    from sluice.services.bench.support import device

    candidates, history = SHAPE
    batch = make_batch(prompts_of(candidates, history) // 2, candidates, history, seed=0)
    model = build_policy(device.policy_settings(), (CODES,) * LEVELS, 2 * history, seed=0).model
    model.to(device.device())
    figures: dict[str, Any] = {"device": str(device.device()), "prompts": len(batch.history_lengths_B)}
    losses = []
    for precision in ("float32", "bfloat16"):
        step = learner_step(copy.deepcopy(model), batch, precision=precision)
        if device.on_gpu():
            torch.cuda.reset_peak_memory_stats()
        losses.append(step.update(batch)["loss"])
        started_s = time.perf_counter()
        for _ in range(TIMED):
            after = step.update(batch)["loss"]  # reading it waits for the GPU
        figures[f"{precision}_s_per_step"] = (time.perf_counter() - started_s) / TIMED
        if device.on_gpu():
            figures[f"{precision}_peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        types = {parameter.dtype for parameter in step.model.parameters()}
        if types != {torch.float32} or not math.isfinite(after):
            raise RunError(f"after steps in {precision} the weights are {types} and the loss is {after}")
    full, half = losses
    figures["loss_apart"] = apart = abs(half - full) / abs(full)
    if not 0 < apart < TOLERANCE:
        raise RunError(f"the loss is {half} in bfloat16 and {full} in float32, too far apart or the same")
    return figures


if __name__ == "__main__":
    sys.exit(main())
