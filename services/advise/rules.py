"""The rules by which a finished run is advised: each has a condition on figures, a sentence and a setting.

The most important come first: what spoils a result, then what reward and gate do, then what the training
could do better. The thresholds stand here and nowhere else. All ours.
"""

from sluice.services.advise.figures import RunFigures
from sluice.services.advise.rule import Rule

HALLUCINATION_RISE, HALLUCINATION_FACTOR = 0.005, 1.5
ALMOST_NONE, ALMOST_ALL = 0.03, 0.7  # of the prompts admitted
LOOSE_KL, TIGHT_KL = 0.5, 0.01  # nats per token
LOST = 0.005  # of validation HR@10 from the best to the last; less may be chance
EARLY = 0.5  # a best step before this share of the steps is early
COLLAPSED = 0.5  # entropy that is left of the start's
STALE_VERSIONS, STALE_SHARE = 2.0, 0.05
FEWEST_VALIDATIONS = 3


def _falls_after_best(run: RunFigures) -> bool:
    if run.best_valid_hr is None or run.last_valid_hr is None:
        return False
    return run.best_valid_hr - run.last_valid_hr > LOST


def _is_early(run: RunFigures) -> bool:
    return bool(run.last_step) and run.best_step is not None and run.best_step <= EARLY * (run.last_step or 0)


def _is_not_shown(run: RunFigures) -> bool:
    return run.best_control is not None and run.best_control.low <= 0


def _hallucinates_more(run: RunFigures) -> bool:
    before, after = run.start_hallucination, run.best_hallucination
    if before is None or after is None:
        return False
    return after > before + HALLUCINATION_RISE and after > HALLUCINATION_FACTOR * before


def _is_weak_where_admitted(run: RunFigures) -> bool:
    changed = run.best_control is not None and run.best_control.value != 0
    return changed and run.admitted_change is not None and run.admitted_change <= 0


RULES: tuple[Rule[RunFigures], ...] = (
    Rule(
        name="hallucination rose",
        holds=_hallucinates_more,
        says=lambda run: (
            f"hallucination rose from {run.start_hallucination:.2%} to {run.best_hallucination:.2%} (bound: "
            f"+{HALLUCINATION_RISE:.1%} and {HALLUCINATION_FACTOR:g} times)"
        ),
        change="lower objective.weight, or roll out with rollout.decode.constrained false, which punishes "
        "what is no item",
    ),
    Rule(
        name="gate admits almost none",
        holds=lambda run: run.gate_rate is not None and run.gate_rate < ALMOST_NONE,
        says=lambda run: f"the gate admitted {run.gate_rate:.1%} of the prompts (bound: {ALMOST_NONE:.0%})",
        change="raise objective.gate.tau, or lower objective.gate.rho or rollout.distractors",
    ),
    Rule(
        name="gate admits almost all",
        holds=lambda run: run.gate_rate is not None and run.gate_rate > ALMOST_ALL,
        says=lambda run: f"the gate admitted {run.gate_rate:.1%} of the prompts (bound: {ALMOST_ALL:.0%})",
        change="lower objective.gate.tau, or raise objective.gate.rho or rollout.distractors",
    ),
    Rule(
        name="ranker weaker than the start",
        holds=lambda run: (
            run.ranker_hr is not None and run.start_hr is not None and run.ranker_hr < run.start_hr
        ),
        says=lambda run: (
            f"the ranker itself has an HR@10 of {run.ranker_hr:.4f}, less than the start's {run.start_hr:.4f}"
        ),
        change="fit a better ranker (ranker.ease, ranker.itemknn, newer logs), and ask `sluice audit` first",
    ),
    Rule(
        name="ranker too weak where admitted",
        holds=_is_weak_where_admitted,
        says=lambda run: (
            "weighted by what the gate admits, the strata have best - control "
            f"{run.admitted_change:+.4f} of HR@10 (bound: above 0)"
        ),
        change="make the gate stricter (objective.gate.rho up, objective.gate.trust), or the ranker better",
    ),
    Rule(
        name="lists got narrower",
        holds=lambda run: run.narrowed is not None,
        says=lambda run: (
            f"the lists got narrower from the start to the best checkpoint: {run.narrowed} (bound: an "
            "interval below 0)"
        ),
        change="raise objective.grpo.kl_beta, or lower objective.weight",
    ),
    Rule(
        name="policy collapsed",
        holds=lambda run: (
            run.first_entropy is not None
            and run.last_entropy is not None
            and run.last_entropy < COLLAPSED * run.first_entropy
        ),
        says=lambda run: (
            f"the entropy of the rollouts fell from {run.first_entropy:.2f} to {run.last_entropy:.2f} nats "
            f"(bound: {COLLAPSED:.0%} of the first)"
        ),
        change="raise objective.grpo.kl_beta or rollout.decode.temperature",
    ),
    Rule(
        name="KL too loose",
        holds=lambda run: run.kl is not None and run.kl > LOOSE_KL and _falls_after_best(run),
        says=lambda run: (
            f"the policy ended {run.kl:.3f} nats per token from the reference (bound: {LOOSE_KL:g}) while "
            f"validation {run.chosen_by} fell from {run.best_valid_hr:.4f} to {run.last_valid_hr:.4f}"
        ),
        change="raise objective.grpo.kl_beta",
    ),
    Rule(
        name="best far before the last",
        holds=lambda run: _is_early(run) and _falls_after_best(run),
        says=lambda run: (
            f"validation {run.chosen_by} was best at step {run.best_step} of {run.last_step}, "
            f"{run.best_valid_hr:.4f}, and fell to {run.last_valid_hr:.4f} (bound: {LOST:g})"
        ),
        change="lower learner.lr or learner.steps, or set learner.patience",
    ),
    Rule(
        name="groups are stale",
        holds=lambda run: (run.staleness or 0.0) > STALE_VERSIONS or (run.stale_share or 0.0) > STALE_SHARE,
        says=lambda run: (
            f"groups were {run.staleness or 0.0:.1f} weight versions old (bound: {STALE_VERSIONS:g}), and "
            f"{run.stale_share or 0.0:.1%} were dropped as stale (bound: {STALE_SHARE:.0%})"
        ),
        change="lower queue.max_groups or weights.publish_every",
    ),
    Rule(
        name="KL too tight",
        holds=lambda run: run.kl is not None and run.kl < TIGHT_KL and _is_not_shown(run),
        says=lambda run: (
            f"the policy ended only {run.kl:.4f} nats per token from the reference (bound: {TIGHT_KL:g}), "
            f"and best - control is {run.best_control}"
        ),
        change="lower objective.grpo.kl_beta, or raise learner.lr",
    ),
    Rule(
        name="reward not followed",
        holds=lambda run: (
            run.first_reward is not None
            and run.last_reward is not None
            and run.last_reward <= run.first_reward
            and _is_not_shown(run)
        ),
        says=lambda run: (
            f"the mean reward of admitted groups went from {run.first_reward:.3f} to {run.last_reward:.3f} "
            "(bound: a rise)"
        ),
        change="raise objective.weight or learner.lr",
    ),
    Rule(
        name="control as good",
        holds=_is_not_shown,
        says=lambda run: (
            f"more NLL alone is as good: best - control is {run.best_control} of {run.judged_by}"
        ),
        change="raise objective.weight, and ask `sluice audit` how much the reward can add at most",
    ),
    Rule(
        name="still rising",
        holds=lambda run: run.validations >= FEWEST_VALIDATIONS and run.best_step == run.last_step,
        says=lambda run: (
            f"validation {run.chosen_by} was best at the last step {run.last_step}, with "
            f"{run.best_valid_hr:.4f}"
        ),
        change="raise learner.steps",
    ),
)
