"""`sluice audit`: is the ranker good enough to be a reward, asked before anything is trained with it.

    prepare, pretrain, fit-ranker     as in a run, what is missing of them
    the start's lists                 constrained beams of held-out prompts, each item scored by the ranker
    rollouts                          groups of the same prompts as training would see them, and the gate

In one process, without Ray. No test example is looked at.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from sluice.actors.engines.tree import TreeEngine
from sluice.actors.settings import TreeEngineSettings
from sluice.catalog.data.dataset import Dataset, Examples
from sluice.catalog.errors import ConfigError
from sluice.catalog.files import write_atomically
from sluice.catalog.fingerprint import fingerprint_catalogue
from sluice.catalog.gaps import Gaps
from sluice.catalog.trie.vocabulary import Vocabulary
from sluice.learner.evaluation.evaluate import sample_examples
from sluice.learner.gate.settings import GateSettings, TrustSettings
from sluice.learner.objectives.settings.objective import AdaGrpoObjective
from sluice.learner.policy.policy import Policy, load_policy, move_model
from sluice.learner.ranker.contract import Ranker
from sluice.learner.ranker.known_logs import KnownLogs
from sluice.learner.ranker.load import can_leave_users_out, load_ranker
from sluice.services.audit import order
from sluice.services.audit.bound import measure_bound
from sluice.services.audit.estimate import Estimate
from sluice.services.audit.figures import Audit
from sluice.services.audit.lists import ScoredLists, list_start
from sluice.services.audit.rules import CHANCE, deciding_rules, verdict
from sluice.services.audit.suggest import tabulate_gates
from sluice.services.audit.trusted import GRADED_CUT, Known, count_users, last_of_users, tell_apart
from sluice.services.config import RunConfig
from sluice.services.paths import RunPaths
from sluice.services.progress import Progress, Reporter
from sluice.services.run.engines import engine_arguments
from sluice.services.run.inputs import prepare_run
from sluice.services.run.trust import meter_factory, write_trust
from sluice.services.stages import fit_ranker, pretrain
from sluice.services.study.arm import needs_ranker
from sluice.services.study.groups import Groups, areas_of, roll_out
from sluice.services.study.rollouts import Meter

JSON_FILE, PAGE_FILE, TRUST_FILE = "audit.json", "audit.html", "trust.parquet"


def run_audit(
    config: RunConfig, prompts: int, with_trust: bool, reporter: Reporter, *, keep: bool = False
) -> Audit:
    """Make what is missing, measure, and leave `audit.json`, `audit.html` and `trust.parquet` in the run.

    Args:
        config: of the run; its trust is measured where its gate asks for it.
        prompts: validation prompts, at most.
        with_trust: measure trust where the gate does not ask for it too.
        reporter: shows the phases.
        keep: use what is there of data, start and ranker as it is: the run has checkpoints that rest on it.

    Raises:
        ConfigError: the objective takes no reward from the ranker.
        DataError: there is no validation prompt, or none leaves enough items to choose from.
        RankerError: the ranker breaks its contract.
    """
    check_reward(config)
    paths = RunPaths.of(config)
    gate, has_gate = audited_gate(config)
    trust = gate.trust or (TrustSettings() if with_trust else None)
    measured = asking_for_trust(config, trust)
    paths.root.mkdir(parents=True, exist_ok=True)
    with reporter.phase("prepare") as progress:
        prepare_run(config, paths, progress, keep=keep)
    with reporter.phase("pretrain") as progress:
        pretrain.run_pretraining(config, progress, keep=keep)
    with reporter.phase("fit-ranker") as progress:
        fit_ranker.run_ranker_fit(measured, progress, keep=keep)
    with reporter.phase("audit") as progress:
        parts = _measure(measured, prompts, progress)
    audit = sum_up(config, parts, gate, has_gate)
    _write(paths, audit, parts)
    return audit


def check_reward(config: RunConfig) -> None:
    """Raises ConfigError where nothing of the ranker goes into the training."""
    if not needs_ranker(config):
        raise ConfigError(
            f"objective.type {config.objective.type} takes no reward from the ranker, so there is nothing to "
            "audit: name one that does, such as adagrpo, mixture or grpo"
        )


def audited_gate(config: RunConfig) -> tuple[GateSettings, bool]:
    """The gate whose admitted share is measured, and whether it is the config's own.

    An objective without a gate, and a gate by chance, are audited with the default gate.
    """
    gate: GateSettings | None = getattr(config.objective, "gate", None)
    has_gate = gate is not None and gate.mode != "random"
    return (gate, True) if gate is not None and has_gate else (GateSettings(), False)


def asking_for_trust(config: RunConfig, trust: TrustSettings | None) -> RunConfig:
    """The config with an objective that asks for trust, by which ranker stage and meter go."""
    if trust is None:
        return config
    objective = AdaGrpoObjective(gate=GateSettings(parts="trust", trust=trust))
    return config.model_copy(update={"objective": objective})


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What was asked of policy and ranker."""

    dataset: Dataset
    ranker: Ranker
    lists: ScoredLists  # of the same prompts as the groups
    groups: Groups
    exposures: np.ndarray  # int64 [N]
    trust: TrustSettings | None
    in_sample: bool


def _measure(config: RunConfig, prompts: int, progress: Progress) -> Parts:
    paths = RunPaths.of(config)
    dataset = Dataset.open(paths.data)
    policy = load_policy(paths.policy, fingerprint_catalogue(dataset.item_ids, dataset.codes))
    move_model(policy.model, "cuda" if torch.cuda.is_available() else "cpu")
    policy.model.eval()
    vocabulary = Vocabulary.of(dataset.codes, policy.layout)
    ranker = load_ranker(config.ranker, paths.ranker, dataset)
    make_meter = meter_factory(config, paths, lambda: dataset)
    examples = sample_examples(dataset.examples("valid"), prompts, config.seed)
    steps = 2 * len(examples)
    meter = None if make_meter is None else make_meter(ranker)
    groups = _roll_out(
        config, paths, dataset, examples, policy, ranker, meter, lambda done: progress(done, steps, {})
    )
    asked = Examples(users=groups.users, positions=groups.positions)
    lists = list_start(
        policy.model,
        vocabulary,
        dataset,
        asked,
        config.evaluation,
        ranker,
        lambda done: progress(len(examples) + done, steps, {}),
    )
    own = config.ranker.use != "builtin"
    return Parts(
        dataset=dataset,
        ranker=ranker,
        lists=lists,
        groups=groups,
        exposures=KnownLogs.until(dataset, config.ranker.until).exposures(),
        trust=config.trust,
        in_sample=config.trust is not None and own and not can_leave_users_out(config.ranker),
    )


def _roll_out(
    config: RunConfig,
    paths: RunPaths,
    dataset: Dataset,
    examples: Examples,
    policy: Policy,
    ranker: Ranker,
    meter: Meter | None,
    progress: Callable[[int], None],
) -> Groups:
    given = config.rollout.engine
    engine = TreeEngine(
        **engine_arguments(config, paths, Vocabulary.of(dataset.codes, policy.layout), config.seed),
        # It draws from the same distribution as vLLM, without the minute that vLLM takes to start.
        engine=given if isinstance(given, TreeEngineSettings) else TreeEngineSettings(),
    )
    try:
        gaps = Gaps(most=config.learner.item_dropout, seed=config.seed)
        return roll_out(config, dataset, examples, policy, engine, ranker, meter, gaps, progress)
    finally:
        engine.close()


def sum_up(config: RunConfig, parts: Parts, gate: GateSettings, has_gate: bool) -> Audit:
    """All figures, from what was asked."""
    groups, users, positions = parts.groups, parts.groups.users, parts.groups.positions
    areas = groups.gather(areas_of)
    elsewhere = order.areas_elsewhere(areas, users)
    known = _tell_apart(parts, areas, elsewhere)
    trust = groups.trust
    rates = {name: Estimate.of(values, users) for name, values in groups.gate(gate).items()}
    applies, trust_rate = None, None
    if parts.trust is not None and trust is not None:
        applies = trust > _cut_of(parts.trust)
        rates["trusted"] = Estimate.of(np.where(np.isnan(trust), np.nan, applies), users)
        alone = groups.gate(GateSettings(parts="trust", trust=parts.trust, rho=gate.rho, tau=gate.tau))
        trust_rate = float(alone["rate"].mean())
    return Audit(
        name=parts.dataset.directory.parent.name,
        dataset=parts.dataset.name,
        ranker=str(parts.ranker.version),
        prompts=len(users),
        users=len(np.unique(users)),
        gate=gate,
        has_gate=has_gate,
        candidates=config.rollout.decode.candidates,
        bound=measure_bound(parts.lists),
        known_bound=None if applies is None else measure_bound(parts.lists, applies),
        rates=rates,
        area=Estimate.of(areas, users),
        has_chance=order.has_chance(config.decoding),
        bands={
            "Exposure of the item": order.by_exposure(parts.exposures, groups.targets, areas, users),
            "Length of the history": order.by_history_length(positions, areas, users),
            "Age of the item": order.by_item_age(
                order.ages_of(parts.dataset, users, positions), areas, users
            ),
        },
        known=known,
        disagreement=order.measure_disagreement(parts.lists),
        cells=tabulate_gates(groups, gate, elsewhere, config.rollout.decode.candidates),
        repeated=1 - float(groups.gather(lambda batch: batch.distinct_BK).mean()),
        hits=float(groups.gather(lambda batch: batch.hit_BK.any(dim=-1)).mean()),
        trust_rate=trust_rate,
        trust_counts=None if trust is None else count_users(trust[last_of_users(users, positions)]),
        in_sample=parts.in_sample,
    )


def _cut_of(trust: TrustSettings) -> float:
    """Above which a user is trusted; a graded trust has none, and begins at chance."""
    return GRADED_CUT if trust.above is None else trust.above


def _tell_apart(parts: Parts, areas: np.ndarray, elsewhere: np.ndarray) -> Known | None:
    """By trust where it was measured, else by the user's other prompts."""
    trust = parts.groups.trust
    if parts.trust is not None and trust is not None:
        return tell_apart("trust", trust, _cut_of(parts.trust), areas, parts.groups.users)
    return tell_apart("area on other prompts", elsewhere, CHANCE, areas, parts.groups.users)


def _write(paths: RunPaths, audit: Audit, parts: Parts) -> None:
    from sluice.services.audit.page import write_page

    directory: Path = paths.audit
    directory.mkdir(exist_ok=True)
    rules = [{"name": rule.name, "change": rule.change} for rule in deciding_rules(audit)]
    told = {"verdict": verdict(audit), "rules": rules, **audit.as_json()}
    write_atomically(directory / JSON_FILE, json.dumps(told, indent=1, allow_nan=False))
    write_page(directory / PAGE_FILE, audit)
    trust, groups = parts.groups.trust, parts.groups
    if trust is None:
        (directory / TRUST_FILE).unlink(missing_ok=True)
        return
    last = last_of_users(groups.users, groups.positions)
    examples = Examples(users=groups.users[last], positions=groups.positions[last])
    write_trust(directory / TRUST_FILE, parts.dataset, examples, trust[last])
