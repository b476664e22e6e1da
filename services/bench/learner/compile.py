"""Optimizer steps of the learner with and without `learner.compile`, on batches of mixed history lengths.

speedup: eager step over compiled step, medians, in alternating order on three batches of different lengths.
compile_s: what the first steps took longer than later ones: graphs for forward and backward of every part,
with the
    compiler's caches of earlier runs left aside.
break_even_steps: after so many steps the compiling has paid for itself; null where a step is no faster.
"""

import copy
import time
from functools import partial
from typing import Any

import torch

from sluice.learner.policy.policy import build_policy, move_model
from sluice.services.bench.harness import BenchOptions, median_seconds, print_note, time_alternately
from sluice.services.bench.learner.learner import CODES, LEVELS, learner_step, make_batch, prompts_per_step
from sluice.services.bench.support import device

SIZES = ((16, 50), (16, 200))
_BATCHES = 3


def run(options: BenchOptions) -> dict[str, Any]:
    """A row per pair of K and T."""
    torch.compiler.config.force_disable_caches = True
    rows = []
    for candidates, history in SIZES[:1] if options.quick else SIZES:
        rows.append(_measure(candidates, history, options))
        print_note(
            f"K={candidates}, T={history}: {rows[-1]['speedup']}x after {rows[-1]['compile_s']} s of "
            f"compiling"
        )
    return {"rows": rows}


def _measure(candidates: int, history: int, options: BenchOptions) -> dict[str, Any]:
    torch.compiler.reset()  # else graphs of an earlier row would serve
    model = build_policy(device.policy_settings(), (CODES,) * LEVELS, 2 * history, options.seed).model
    move_model(model, device.bench_device())
    prompts = prompts_per_step(candidates, history)
    batches = [make_batch(prompts, candidates, history, options.seed + number) for number in range(_BATCHES)]
    learners = {
        name: learner_step(copy.deepcopy(model), batches[0], compile=name == "compiled")
        for name in ("eager", "compiled")
    }

    def steps(name: str) -> float:
        started_s = time.perf_counter()
        for batch in batches:
            learners[name].update(batch)
        return time.perf_counter() - started_s

    first_s = steps("compiled")
    seconds = median_seconds(
        time_alternately({name: partial(steps, name) for name in learners}, options.repeats)
    )
    per_step = {name: value / _BATCHES for name, value in seconds.items()}
    saved_s = per_step["eager"] - per_step["compiled"]
    compile_s = first_s - seconds["compiled"]
    return {
        "K": candidates,
        "T": history,
        **{f"{name}_step_s": round(value, 4) for name, value in per_step.items()},
        "speedup": round(per_step["eager"] / per_step["compiled"], 3),
        "compile_s": round(compile_s, 1),
        "break_even_steps": round(compile_s / saved_s) if saved_s > 0 else None,
    }
