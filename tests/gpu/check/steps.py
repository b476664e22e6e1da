"""The steps of the check, in the order of their worth: what comes last is what a slow machine leaves out."""

import sys
from dataclasses import replace
from pathlib import Path

from tests.gpu.check.figures import of_bench, of_json, of_run, of_tests
from tests.gpu.check.step import Step

ROOT = Path(__file__).resolve().parents[3]
TRAIN_STEPS = 6
SLOWER = 4.0  # the bounds on a CPU are so many times as long
# quickstart.yaml with the settings of gpu-cluster.yaml that bear on precision, and little of everything.
TRAIN = {
    "learner.steps": TRAIN_STEPS,
    "learner.evaluate_every": 3,
    "learner.precision": "bfloat16",
    "rollout.engine.dtype": "bfloat16",
    "objective.type": "adagrpo",
    "objective.grpo.old_policy": "batch_start",
    "objective.grpo.correction.level": "token",
    "pretrain.epochs": 1,
    "pretrain.batch_interactions": 1000,
    "ranker.epochs": 1,
    "evaluation.max_users": 50,
}
ON_GPU = {"rollout.gpus": 0.4, "cluster.learner_gpus": 0.4}


def steps(on_cpu: bool, check_versions: bool) -> list[Step]:
    """All steps. `check_versions`: installed packages that are not the lock's fail the first one."""
    chosen = [*_correctness(check_versions), train(on_cpu), *benches()]
    return [replace(step, limit_s=SLOWER * step.limit_s) for step in chosen] if on_cpu else chosen


def _correctness(check_versions: bool) -> list[Step]:
    versions = () if check_versions else ("--any-versions",)
    return [
        Step(
            name="environment",
            shows="driver, CUDA, GPU, versions against the lock",
            command=probe("environment", *versions),
            figures=of_json,
            limit_s=60,
        ),
        Step(
            name="tests",
            shows="tests/gpu: learner, trie and tree decoder are those of the CPU",
            command=tests(*on_gpu_files()),
            figures=of_tests,
            limit_s=150,
            on_cpu=False,
        ),
        Step(
            name="vllm",
            shows="vLLM takes new weights in mid-request; log-probs are those of transformers",
            command=tests(
                "tests/engine/test_vllm_engine.py",
                "tests/engine/test_rollout_kinds.py",
                "-k",
                "swap or log_probs_are_those_of_the_distribution or read_only_weights",
            ),
            figures=of_tests,
            limit_s=180,
        ),
        Step(
            name="transport",
            shows="weights by Ray Direct Transport over NIXL, from the learner's memory to the engines'",
            command=tests("tests/ray/test_direct_transport.py", "-k", "nixl and not without_nixl"),
            figures=of_tests,
            limit_s=150,
        ),
        Step(
            name="learner",
            shows="an optimizer step in bfloat16 against float32: loss, float32 weights, time, memory",
            command=probe("learner"),
            figures=of_json,
            limit_s=90,
        ),
        Step(
            name="tree",
            shows="the tree engine's beams are those of transformers generate; speed-up",
            command=bench("beam", 1),
            figures=of_bench(rows=("speedup", "tree_prompts_per_s")),
            limit_s=120,
        ),
    ]


def train(on_cpu: bool) -> Step:
    """A short run of everything, learner and vLLM engine on one GPU."""
    settings = TRAIN | ({} if on_cpu else ON_GPU)
    overrides = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    command = ("-m", "sluice", "submit", "--config", str(ROOT / "configs/quickstart.yaml"), *overrides)
    return Step(
        name="train",
        shows=f"sluice submit: {TRAIN_STEPS} steps of quickstart in bfloat16, learner and vLLM on one GPU",
        command=(sys.executable, *command, "--set", "output={out}/runs"),
        figures=of_run(TRAIN_STEPS),
        limit_s=200,
        least_s=60,
        alone=True,
    )


def benches() -> list[Step]:
    """The benches in short form; their own docs say what the figures are."""
    return [
        Step(
            name=f"bench-{name}",
            shows=f"sluice bench {name} --quick",
            command=bench(name, 3),
            figures=figures,
            limit_s=limit_s,
            least_s=least_s,
            alone=True,
        )
        for name, figures, limit_s, least_s in (
            ("learner", of_bench("peak_share", rows=("speedup", "speedup_over_trl")), 120, 30),
            ("engines", of_bench(rows=("speedup", "tree_prompts_per_s", "vllm_prompts_per_s")), 180, 60),
            ("sync", of_bench("ratio", "pause_s", "s_per_gb"), 150, 45),
            ("rollout", of_bench("ratio", "same_candidates"), 180, 60),
        )
    ]


def on_gpu_files() -> list[str]:
    """The test files of tests/gpu that need a GPU."""
    return sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("tests/gpu/test_*_on_gpu.py"))


def tests(*arguments: str) -> tuple[str, ...]:
    """Tests of this repository, with their counts in `junit.xml`."""
    options = ("-q", "-p", "no:cacheprovider", "--junitxml", "{out}/junit.xml")
    return (sys.executable, "-m", "pytest", *options, *arguments)


def bench(name: str, repeats: int) -> tuple[str, ...]:
    """A bench in short form, with its answer in `bench.json`."""
    options = ("--quick", "--repeats", str(repeats), "--json", "{out}/bench.json")
    return (sys.executable, "-m", "sluice", "bench", name, *options)


def probe(name: str, *options: str) -> tuple[str, ...]:
    """A probe of the check's own, with its figures in `figures.json`."""
    return (sys.executable, "-m", "tests.gpu.check.probes", name, "--json", "{out}/figures.json", *options)
