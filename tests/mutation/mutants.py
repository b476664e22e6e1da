"""The mutants of the learning core: one small wrong edit each, and the test files that must notice it."""

from tests.mutation.ab.ab import AB_MUTANTS
from tests.mutation.beams import BEAM_MUTANTS, BEAMS, IN_BEAMS, ROLLOUT_MUTANTS
from tests.mutation.config import CONFIG_MUTANTS
from tests.mutation.evaluation.exposure import EXPOSURE_MUTANTS
from tests.mutation.evaluation.rules import RULE_MUTANTS
from tests.mutation.evaluation.summary import SUMMARY_MUTANTS
from tests.mutation.evaluation.trust import TRUST_MUTANTS
from tests.mutation.evaluation.users import USER_MUTANTS
from tests.mutation.files import FILE_MUTANTS
from tests.mutation.flow import FLOW_MUTANTS
from tests.mutation.mutant import Mutant
from tests.mutation.policy_gradient import POLICY_GRADIENT
from tests.mutation.preference import PREFERENCE
from tests.mutation.prefix import PREFIX_MUTANTS
from tests.mutation.ranker import RANKER_MUTANTS
from tests.mutation.scale import SCALE
from tests.mutation.simulator.world import SIMULATOR_MUTANTS
from tests.mutation.splits import SPLIT_MUTANTS
from tests.mutation.study.arms import STUDY_MUTANTS
from tests.mutation.study.audit import AUDIT_MUTANTS
from tests.mutation.tree import TREE_MUTANTS
from tests.mutation.trie import TRIE_MUTANTS

GATE, REWARDS, ADVANTAGES = (
    "learner/gate/gate.py",
    "learner/rewards/rewards.py",
    "learner/objectives/terms/advantages.py",
)
NLL, MIXTURE = "learner/objectives/nll.py", "learner/objectives/mixture.py"
ADAGRPO, BASE = "learner/objectives/adagrpo.py", "learner/objectives/terms/base.py"
STEP, REDUCTION = "learner/training/step.py", "learner/reduction.py"
IN_GATE, IN_REWARDS, IN_ADVANTAGES = (
    ("learner/gate/test_gate.py",),
    ("learner/rewards/test_rewards.py",),
    ("learner/objectives/terms/test_advantages.py",),
)
IN_OBJECTIVES, IN_STEP = ("learner/objectives/test_objectives.py",), ("learner/training/test_step.py",)

_GATE = (
    ("difficulty_B = policy_rank_B > head", "difficulty_B = policy_rank_B >= head"),
    ("difficulty_B = policy_rank_B > head", "difficulty_B = policy_rank_B <= head"),
    ("(ranker_rank_B <= head)", "(ranker_rank_B < head)"),
    (" & torch.isfinite(batch.target_scores_B)", ""),
    ("agrees_B & below_B", "agrees_B | below_B"),
    ('"both": difficulty_B * discriminability_B', '"both": difficulty_B'),
    ("candidates + 1e-6", "candidates"),
    ("math.floor", "math.ceil"),
    (
        "rivals_BK = batch.distinct_BK & ~batch.hit_BK",
        "rivals_BK = batch.distinct_BK",
    ),
    (
        "rivals_BK = batch.distinct_BK & ~batch.hit_BK",
        "rivals_BK = ~batch.hit_BK",
    ),
    (
        "rivals_BK = batch.distinct_BK & ~batch.hit_BK",
        "rivals_BK = batch.distinct_BK & ~batch.hit_BK & batch.valid_BK",
    ),
    ("likelihood_BK > target_log_prob_B[:, None]", "likelihood_BK >= target_log_prob_B[:, None]"),
    ("return 1 + (rivals_BK &", "return (rivals_BK &"),
    ("place_B = 1 + ", "place_B = "),
    ("batch.hit_BK.shape[1] + 1)", "batch.hit_BK.shape[1])"),
    ("if batch.decoding.is_drawn:", "if not batch.decoding.is_drawn:"),
    ("candidate_scores_BK > batch.target_scores_B", "candidate_scores_BK >= batch.target_scores_B"),
    ("return 1 + (_ranker_rivals(batch)", "return (_ranker_rivals(batch)"),
    (".masked_fill(~rivals_BK, torch.nan)", ""),
    ("pool_BX[:, None, :] > batch", "pool_BX[:, None, :] >= batch"),
    ("rank_BJ = 1 + ", "rank_BJ = "),
    ("margins_BJ = rank_BJ - places", "margins_BJ = rank_BJ - places + 1"),
    ("margins_BJ = places - (pool_size", "margins_BJ = places + 1 - (pool_size"),
    ("+ present_BJ.sum(dim=-1)", "+ present_BJ.shape[1]"),
    ("margins_BJ.isnan()).all(dim=-1)", "margins_BJ.isnan()).any(dim=-1)"),
    ("(margins_BJ > 0) | margins_BJ.isnan()", "margins_BJ > 0"),
    ("(margins_BJ > 0)", "(margins_BJ >= 0)"),
    (".masked_fill(~present_BJ, torch.nan)", ""),
    ("& batch.valid_BK & ~batch.hit_BK", "& ~batch.hit_BK"),
    ("& batch.valid_BK & ~batch.hit_BK", "& batch.valid_BK"),
    ("return batch.distinct_BK & batch.valid_BK", "return batch.valid_BK"),
)

_REWARDS = (
    ("lowest_B1 - invalid_margin", "lowest_B1 + invalid_margin"),
    ("lowest_B1 - invalid_margin", "lowest_B1"),
    ("masked_fill(~valid_BK, torch.inf).amin", "masked_fill(~valid_BK, -torch.inf).amax"),
    ("torch.where(valid_BK.any(dim=-1, keepdim=True), rewards_BK, 0.0)", "rewards_BK"),
    ("rewards_BK.amax(dim=-1, keepdim=True)", "rewards_BK.amin(dim=-1, keepdim=True)"),
    ("torch.where(batch.hit_BK, best_B1, rewards_BK)", "torch.where(batch.hit_BK, rewards_BK, best_B1)"),
    ("1 + least_like_target(batch)", "least_like_target(batch)"),
    ("injectable_B & missed_B", "missed_B"),
    ("else injectable_B & missed_B", "else injectable_B"),
    ("batch = with_target_at(batch, injected_BK)", "pass"),
    ("branch_BK = branch_BK.masked_fill(injected_BK, 0)", "pass"),
    (".cumprod(dim=-1)", ""),
    ("prefix_BK.amin", "prefix_BK.amax"),
    ("torch.inf).argmin", "-torch.inf).argmax"),
)

_ADVANTAGES = (
    (
        "wide_BK - wide_BK.mean(dim=-1, keepdim=True)",
        "wide_BK.mean(dim=-1, keepdim=True) - wide_BK",
    ),
    ("wide_BK - wide_BK.mean(dim=-1, keepdim=True)", "wide_BK - wide_BK.mean()"),
    ("correction=1", "correction=0"),
    ("STD_FLOOR = 1e-4", "STD_FLOOR = 1e-6"),
    ("torch.where(all_equal(rewards_BK)[:, None], 0.0, centred_BK)", "centred_BK"),
    ("@torch.no_grad()\n", ""),
)

_SMALL_OBJECTIVES = (
    (BASE, "-scores.target_log_probs_BL.sum(dim=-1)", "-scores.target_log_probs_BL.mean(dim=-1)"),
    (BASE, "-scores.target_log_probs_BL.sum(dim=-1)", "scores.target_log_probs_BL.sum(dim=-1)"),
    (BASE, "-scores.target_log_probs_BL.sum(dim=-1)", "-scores.log_probs_BSL[:, 0].sum(dim=-1)"),
    (NLL, "loss=nll_B.mean()", "loss=nll_B.sum()"),
    (MIXTURE, "grpo_term(inputs, settings, gate_B > 0)", "grpo_term(inputs, settings, gate_B == 0)"),
    (MIXTURE, "nll_B + weight * admitted_grpo_B", "nll_B + admitted_grpo_B"),
    (MIXTURE, "nll_B + weight * admitted_grpo_B", "nll_B - weight * admitted_grpo_B"),
    (ADAGRPO, "start.log_probs_BSL[:, 0].sum(dim=-1)", "scores.log_probs_BSL[:, 0].sum(dim=-1)"),
    (ADAGRPO, "start.log_probs_BSL[:, 0].sum(dim=-1)", "start.log_probs_BSL[:, 0].mean(dim=-1)"),
    (
        BASE,
        "[batch.target_BL[:, None], batch.candidates_BKL]",
        "[batch.candidates_BKL, batch.target_BL[:, None]]",
    ),
    (REDUCTION, "values.detach()", "values"),
    (REDUCTION, "torch.where(where, values, 0.0).sum()", "values.sum()"),
)

_STEP = (
    ("scores.detach()", "scores"),
    ("if starts[index] is None:", "if True:"),
    ("(on_every_parameter(terms.loss, scores) * weights[index])", "on_every_parameter(terms.loss, scores)"),
    ("self.model.train(self.settings.dropout > 0)", "self.model.train(True)"),
    ("        self.model.eval()\n        return [self._score(part, t", "        return [self._score(part, t"),
    ("if not drops or not", "if not"),
    ("not drops or not self.objective.needs_clean_target(parts[0])", "not drops"),
    ("clean_target_B=targets[index],", ""),
    ("allowed_BSLV[:, :1]", "allowed_BSLV[:, 1:2]"),
    ("self.optimizer.found_inf = (~torch.isfinite(norm)).float()", "pass"),
    ('if not math.isfinite(values["grad_norm"]):', "if False:"),
    ('torch.set_rng_state(state["rng"]["torch"])', "pass"),
    ('load_optimizer_state(self.optimizer, state["optimizer"])', "pass"),
    ('load_schedule_state(self._schedule, state["schedule"])', "pass"),
    ("        self._schedule.step()\n", ""),
    ("totals[name] + value if", "value if"),
    ("self.settings.max_grad_norm)", "1e9)"),
)

MUTANTS = (
    *(Mutant(GATE, old, new, IN_GATE) for old, new in _GATE),
    *(Mutant(REWARDS, old, new, IN_REWARDS) for old, new in _REWARDS),
    *(Mutant(ADVANTAGES, old, new, IN_ADVANTAGES) for old, new in _ADVANTAGES),
    *(Mutant(file, old, new, IN_OBJECTIVES) for file, old, new in _SMALL_OBJECTIVES),
    *(Mutant(*mutant) for mutant in PREFIX_MUTANTS),
    *(Mutant(STEP, old, new, IN_STEP) for old, new in _STEP),
    *(Mutant(*mutant) for mutant in POLICY_GRADIENT),
    *(Mutant(BEAMS, old, new, IN_BEAMS) for old, new in BEAM_MUTANTS),
    *(Mutant(*mutant) for mutant in ROLLOUT_MUTANTS),
    *(Mutant(*mutant) for mutant in RANKER_MUTANTS),
    *AB_MUTANTS,
    *SCALE,
    *SPLIT_MUTANTS,
    *STUDY_MUTANTS,
    *AUDIT_MUTANTS,
    *RULE_MUTANTS,
    *EXPOSURE_MUTANTS,
    *USER_MUTANTS,
    *SUMMARY_MUTANTS,
    *SIMULATOR_MUTANTS,
    *TRUST_MUTANTS,
    *(Mutant(*mutant) for mutant in PREFERENCE),
    *(Mutant(*mutant) for mutant in TRIE_MUTANTS),
    *(Mutant(*mutant) for mutant in TREE_MUTANTS),
    *(Mutant(*mutant) for mutant in FLOW_MUTANTS),
    *(Mutant(*mutant) for mutant in FILE_MUTANTS),
    *(Mutant(*mutant) for mutant in CONFIG_MUTANTS),
)
