"""`sluice study`: all arms of all data sets and seeds, as Ray tasks beside each other.

    for each simulated data set: simulate                           built once
    for each data set and seed:  prepare, pretrain, fit-ranker,     built once, shared by the arms
                                 fit the judge, roll out the test prompts
    for each arm:                post-train, judge                  built once, left as it is when asked again

A study that was interrupted, or has a new arm, goes on where it is. An arm that fails is told and costs the
others nothing.
"""

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from sluice.catalog.data.dataset import MANIFEST, Dataset
from sluice.catalog.errors import RunError, SluiceError
from sluice.catalog.files import sha256_of, write_atomically
from sluice.services.config import RunConfig, dump_config
from sluice.services.paths import RunPaths
from sluice.services.progress import Progress, Reporter
from sluice.services.run.arms import arm_inputs
from sluice.services.run.manifest import git_state
from sluice.services.run.summary import same_weights
from sluice.services.run.tasks import State, run_tasks
from sluice.services.stages import fit_ranker, prepare, pretrain
from sluice.services.stages.simulate import simulate_world
from sluice.services.stages.staging import build_once, stage_inputs
from sluice.services.study.arm import BEST, LAST, needs_ranker, train_arm
from sluice.services.study.judges.lists import judge_policy
from sluice.services.study.judges.reward import RewardJudge, fit_judge, keep_high_rewards
from sluice.services.study.judges.settings import JudgeSettings
from sluice.services.study.judges.truth import OracleTrust, TrueClickThrough
from sluice.services.study.results import (
    ROW,
    Cell,
    cells_of,
    gather,
    judge_directory,
    paths_of,
    prompts_directory,
)
from sluice.services.study.settings import (
    START,
    StudyConfig,
    arm_config,
    set_config,
    world_directory,
    world_settings,
)
from sluice.services.study.start_rollouts import PROMPTS, gate_of, measure_prompts

Job = Callable[[Progress], str | None]


def run_study(study: StudyConfig, reporter: Reporter) -> list[str]:
    """Do what is left of the study; returns what failed, a sentence each. Ray has to be there.

    Raises:
        RunError: a data set, a start or a ranker could not be made.
    """
    if any(settings.world for settings in study.sets.values()):
        with reporter.phase("worlds") as progress:
            for of_set in study.sets:
                world = world_settings(study, of_set)
                if world is not None:
                    simulate_world(world, world_directory(study, of_set), progress)
    makings = {
        f"{of_set} seed {seed}": functools.partial(_make_start, study, of_set, seed)
        for of_set in study.sets
        for seed in study.seeds
    }
    failed = _run_jobs("starts", makings, study, reporter)
    if failed:
        raise RunError("; ".join(failed))
    cells = cells_of(study)
    for name, wave in (
        ("arms", [cell for cell in cells if not _waits(study, cell)]),
        ("arms by another's rate", [cell for cell in cells if _waits(study, cell)]),
    ):
        jobs = {
            f"{cell.of_set} seed {cell.seed} {cell.arm}": functools.partial(_make_arm, study, cell)
            for cell in wave
        }
        if jobs:
            failed += _run_jobs(name, jobs, study, reporter)
    gather(study)
    return failed


def _waits(study: StudyConfig, cell: Cell) -> bool:
    return cell.arm != START and study.arms[cell.arm].rate_of is not None


def _run_jobs(name: str, jobs: Mapping[str, Job], study: StudyConfig, reporter: Reporter) -> list[str]:
    """Jobs beside each other; returns what failed."""
    ended: set[str] = set()
    with reporter.phase(name) as progress:

        def watch(job: str, state: State, has_ended: bool) -> None:
            if has_ended:
                ended.add(job)
            progress(len(ended), len(jobs), {})

        cluster = set_config(study, next(iter(study.sets)), study.seeds[0]).cluster
        results = run_tasks({job: functools.partial(_told, run) for job, run in jobs.items()}, cluster, watch)
    return [f"{job}: {error}" for job, error in results.items() if error is not None]


def _told(job: Job, progress: Progress) -> str | None:
    """An error of one job ends no other."""
    try:
        return job(progress)
    except SluiceError as error:
        return str(error)


def _make_start(study: StudyConfig, of_set: str, seed: int, progress: Progress) -> None:
    config = set_config(study, of_set, seed)
    paths = RunPaths.of(config)
    paths.root.mkdir(parents=True, exist_ok=True)
    prepare.prepare_data(config.data, paths.data)
    pretrain.run_pretraining(config, progress)
    asking: RunConfig | None = None  # of the arms with a ranker: the first, or the first that asks for trust
    for arm in study.arms:  # one that asks for trust adds the ranker's halves
        of_arm = arm_config(study, of_set, arm, seed, 0.5)
        if needs_ranker(of_arm):
            fit_ranker.run_ranker_fit(of_arm, progress)
            if asking is None or (asking.trust is None and of_arm.trust is not None):
                asking = of_arm
    if study.judge is not None:
        _make_judge(study, of_set, config, study.judge, progress)
    if asking is not None and (study.strata or study.sets[of_set].world is not None):
        _measure_prompts(study, of_set, paths, config, asking)


def _make_judge(
    study: StudyConfig, of_set: str, config: RunConfig, judge: JudgeSettings, progress: Progress
) -> None:
    paths = RunPaths.of(config)
    inputs = {
        "data": sha256_of([(paths.data / MANIFEST).read_bytes()]),
        "ranker": config.ranker.model_dump(mode="json"),
        "members": judge.members,
    }

    def build(directory: Path) -> None:
        fit_judge(Dataset.open(paths.data), config.ranker, judge, config.seed, directory, progress)

    build_once(judge_directory(study, of_set, config.seed), inputs, build)


def _measure_prompts(
    study: StudyConfig, of_set: str, paths: RunPaths, config: RunConfig, asking: RunConfig
) -> None:
    """Leave what the gate says of the test prompts; `asking` is the arm that says how trust is measured."""
    gate = gate_of(config)
    inputs = {
        "start": stage_inputs(paths.policy),
        "ranker": stage_inputs(paths.ranker),
        "halves": None if asking.trust is None else stage_inputs(paths.ranker_halves),
        "trust": None if asking.trust is None else asking.trust.model_dump(mode="json"),
        "gate": gate.model_dump(mode="json"),
        "rollout": asking.rollout.model_dump(mode="json"),
        "examples": study.examples,
    }

    def build(directory: Path) -> None:
        table = measure_prompts(asking, gate, paths, study.examples, _truth(study, of_set))
        pq.write_table(table, directory / PROMPTS)

    build_once(prompts_directory(study, of_set, config.seed), inputs, build)


def _make_arm(study: StudyConfig, cell: Cell, progress: Progress) -> None:
    paths = paths_of(study, cell.of_set, cell.seed)
    config = set_config(study, cell.of_set, cell.seed)
    if cell.arm != START:
        config = arm_config(study, cell.of_set, cell.arm, cell.seed, _gate_rate(study, cell, paths))
    inputs = _inputs(config, paths, cell.arm) | {"examples": study.examples}
    if study.judge is not None:
        fitted = stage_inputs(judge_directory(study, cell.of_set, cell.seed))
        inputs["judge"] = {"settings": study.judge.model_dump(mode="json"), "fitted": fitted}
    if cell.arm != START and study.arms[cell.arm].oracle:
        inputs["oracle"] = True

    def build(directory: Path) -> None:
        if cell.arm == START:
            cost: dict[str, Any] = {"steps": 0}
            places = {LAST: paths.policy, BEST: paths.policy}
        else:
            cost = train_arm(config, paths, directory, progress, _oracle(study, cell, paths))
            places = {LAST: directory / LAST, BEST: directory / BEST}
        told = _judge(study, config, cell.of_set, places, directory)
        row = {"cost": cost, "origin": _origin(config), "checkpoints": told}
        write_atomically(directory / ROW, json.dumps(row, indent=1))

    build_once(cell.directory, inputs, build)


def _oracle(study: StudyConfig, cell: Cell, paths: RunPaths) -> OracleTrust | None:
    if not study.arms[cell.arm].oracle:
        return None
    return OracleTrust(world_directory(study, cell.of_set), Dataset.open(paths.data))


def _judge(
    study: StudyConfig, config: RunConfig, of_set: str, places: Mapping[str, Path], directory: Path
) -> dict[str, dict[str, float]]:
    """Leave the examples of every checkpoint in `directory`; returns the means."""
    truth, judge, keep = _truth(study, of_set), None, None
    if study.judge is not None:
        fitted = judge_directory(study, of_set, config.seed)
        judge = RewardJudge(fitted, Dataset.open(RunPaths.of(config).data), study.judge, truth)
        keep = keep_high_rewards if study.judge.high_rewards else None
    decoded_as = same_weights(places)
    judged = {
        name: judge_policy(config, places[name], study.examples, truth, judge, keep)
        for name in set(decoded_as.values())
    }
    for checkpoint, of in decoded_as.items():
        for split, table in judged[of][0].items():
            pq.write_table(table, directory / f"{checkpoint}-{split}.parquet")
    return {checkpoint: judged[of][1] for checkpoint, of in decoded_as.items()}


def _truth(study: StudyConfig, of_set: str) -> TrueClickThrough | None:
    has_world = study.sets[of_set].world is not None
    return TrueClickThrough(world_directory(study, of_set)) if has_world else None


def _origin(config: RunConfig) -> dict[str, Any]:
    """Which code and which settings made a row."""
    state = git_state(Path(__file__).parent) or {}
    return {
        "commit": state.get("commit"),
        "config": sha256_of([dump_config(config).encode()])[:12],
        "objective": config.objective.type,
    }


def _gate_rate(study: StudyConfig, cell: Cell, paths: RunPaths) -> float | None:
    like = study.arms[cell.arm].rate_of
    if like is None:
        return None
    row = paths.root / "arms" / like / ROW
    rate = json.loads(row.read_text())["cost"]["gate_rate"] if row.is_file() else None
    if rate is None:
        raise RunError(f"the gate's rate of {like} is not known: it failed, or has no gate")
    return float(rate)


def _inputs(config: RunConfig, paths: RunPaths, arm: str) -> dict[str, Any]:
    """What an arm is made of. The stamps of start and ranker say which data and settings they have."""
    evaluation = {"evaluation": config.evaluation.model_dump(mode="json")}
    if arm == START:
        return {"start": stage_inputs(paths.policy), **evaluation}
    inputs: dict[str, Any] = json.loads(arm_inputs(config, config.objective)) | evaluation
    return inputs | ({"ranker": stage_inputs(paths.ranker)} if needs_ranker(config) else {})
