"""The mutants of the learning core: one small wrong edit each, and the test files that must notice it."""

from dataclasses import dataclass

from tests.mutants_tree import TREE_MUTANTS
from tests.mutants_trie import EDITS as TRIE_EDITS


@dataclass(frozen=True)
class Mutant:
    """Replace `old`, which stands exactly once in `file`, by `new`; one of `tests` (in tests/unit) must then fail."""

    file: str
    old: str
    new: str
    tests: tuple[str, ...]


GATE, REWARDS, ADVANTAGES = "learner/gate.py", "learner/rewards.py", "learner/advantages.py"
GRPO, NLL, MIXTURE = "learner/objectives/grpo.py", "learner/objectives/nll.py", "learner/objectives/mixture.py"
ADAGRPO, BASE = "learner/objectives/adagrpo.py", "learner/objectives/base.py"
PREFIX, STEP = "learner/shared_prefix.py", "learner/step.py"
IN_GATE, IN_REWARDS, IN_ADVANTAGES = ("test_gate.py",), ("test_rewards.py",), ("test_advantages.py",)
IN_OBJECTIVES, IN_PREFIX, IN_STEP = ("test_objectives.py",), ("test_shared_prefix.py",), ("test_step.py",)

_GATE = (
    ("difficulty_B = policy_rank_B > head", "difficulty_B = policy_rank_B >= head"),
    ("difficulty_B = policy_rank_B > head", "difficulty_B = policy_rank_B <= head"),
    ("(ranker_rank_B <= head)", "(ranker_rank_B < head)"),
    (" & torch.isfinite(batch.target_scores_B)", ""),
    ("agrees_B & below_B", "agrees_B | below_B"),
    ("difficulty_B & discriminability_B", "difficulty_B | discriminability_B"),
    ("candidates + 1e-6", "candidates"),
    ("math.floor", "math.ceil"),
    (
        "rivals_BK = _first_of_its_kind(batch.candidates_BKL) & ~batch.hit_BK",
        "rivals_BK = _first_of_its_kind(batch.candidates_BKL)",
    ),
    (
        "rivals_BK = _first_of_its_kind(batch.candidates_BKL) & ~batch.hit_BK",
        "rivals_BK = ~batch.hit_BK",
    ),
    (
        "rivals_BK = _first_of_its_kind(batch.candidates_BKL) & ~batch.hit_BK",
        "rivals_BK = _first_of_its_kind(batch.candidates_BKL) & ~batch.hit_BK & batch.valid_BK",
    ),
    ("likelihood_BK > target_log_prob_B[:, None]", "likelihood_BK >= target_log_prob_B[:, None]"),
    ("return 1 + (rivals_BK &", "return (rivals_BK &"),
    ("place_B = 1 + ", "place_B = "),
    ("batch.hit_BK.shape[1] + 1)", "batch.hit_BK.shape[1])"),
    ("if not batch.beams:", "if batch.beams:"),
    ("candidate_scores_BK > batch.target_scores_B", "candidate_scores_BK >= batch.target_scores_B"),
    ("return 1 + (_ranker_rivals(batch)", "return (_ranker_rivals(batch)"),
    (".masked_fill(~rivals_BK, torch.nan)", ""),
    ("pool_BP[:, None, :] > batch", "pool_BP[:, None, :] >= batch"),
    ("rank_BM = 1 + ", "rank_BM = "),
    ("below_BM = rank_BM > places", "below_BM = rank_BM >= places"),
    ("rank_BM + 1 <= places", "rank_BM <= places"),
    ("+ present_BM.sum(dim=-1)", "+ present_BM.shape[1]"),
    ("(below_BM | ~present_BM).all(dim=-1)", "(below_BM | ~present_BM).any(dim=-1)"),
    ("(below_BM | ~present_BM)", "below_BM"),
    ("& batch.valid_BK & ~batch.hit_BK", "& ~batch.hit_BK"),
    ("& batch.valid_BK & ~batch.hit_BK", "& batch.valid_BK"),
    ("return _first_of_its_kind(batch.candidates_BKL) & batch.valid_BK", "return batch.valid_BK"),
    ("tril(diagonal=-1)", "tril(diagonal=0)"),
)  # fmt: skip

_REWARDS = (
    ("lowest_B1 - invalid_margin", "lowest_B1 + invalid_margin"),
    ("lowest_B1 - invalid_margin", "lowest_B1"),
    ("masked_fill(~valid_BK, torch.inf).amin", "masked_fill(~valid_BK, -torch.inf).amax"),
    ("torch.where(valid_BK.any(dim=-1, keepdim=True), rewards_BK, 0.0)", "rewards_BK"),
    ("rewards_BK.amax(dim=-1, keepdim=True)", "rewards_BK.amin(dim=-1, keepdim=True)"),
    ("torch.where(batch.hit_BK, best_B1, rewards_BK)", "torch.where(batch.hit_BK, rewards_BK, best_B1)"),
    ("1 + least_like_target(batch)", "least_like_target(batch)"),
    ("injectable_B & ~batch.hit_BK.any(dim=-1)", "~batch.hit_BK.any(dim=-1)"),
    ("else injectable_B & ~batch.hit_BK.any(dim=-1)", "else injectable_B"),
    ("valid_BK = valid_BK | injected_BK", "pass"),
    ("branch_BK = branch_BK.masked_fill(injected_BK, 0)", "pass"),
    (".cumprod(dim=-1)", ""),
    ("prefix_BK.amin", "prefix_BK.amax"),
    ("torch.inf).argmin", "-torch.inf).argmax"),
)

_ADVANTAGES = (
    ("rewards_BK - rewards_BK.mean(dim=-1, keepdim=True)", "rewards_BK.mean(dim=-1, keepdim=True) - rewards_BK"),
    ("rewards_BK - rewards_BK.mean(dim=-1, keepdim=True)", "rewards_BK - rewards_BK.mean()"),
    ("correction=1", "correction=0"),
    ("STD_FLOOR = 1e-4", "STD_FLOOR = 1e-6"),
    ("torch.where(equal_B1, 0.0, centred_BK / (std_B1 + STD_FLOOR))", "centred_BK / (std_B1 + STD_FLOOR)"),
    ("@torch.no_grad()\n", ""),
)

_GRPO = (
    ("clamp(1 - clip_low, 1 + clip_high)", "clamp(1 - clip_high, 1 + clip_low)"),
    ("clamp(1 - clip_low, 1 + clip_high)", "clamp(1 - clip_low, None)"),
    ("clamp(1 - clip_low, 1 + clip_high)", "clamp(None, 1 + clip_high)"),
    ("torch.minimum(ratio", "torch.maximum(ratio"),
    ("difference = reference - log_probs", "difference = log_probs - reference"),
    ("difference.exp() - difference - 1", "difference.exp() - difference"),
    ("log_ratio = start_BKL - behaviour_BKL", "log_ratio = behaviour_BKL - start_BKL"),
    ("log_ratio.sum(dim=-1, keepdim=True)", "log_ratio.mean(dim=-1, keepdim=True)"),
    ("clamp(settings.low, settings.high)", "clamp(0, settings.high)"),
    ("clamp(settings.low, settings.high)", "clamp(settings.low)"),
    ("@torch.no_grad()\ndef truncated", "def truncated"),
    ("surrogate_BKL * truncated_correction(start_BKL, behaviour_BKL, settings.correction)", "surrogate_BKL"),
    ('behaviour_BKL if settings.old_policy == "behaviour" else start_BKL', "behaviour_BKL"),
    ('behaviour_BKL if settings.old_policy == "behaviour" else start_BKL', "start_BKL"),
    ("log_probs_BKL - old_BKL", "old_BKL - log_probs_BKL"),
    ("objective_BKL - settings.kl_beta", "objective_BKL + settings.kl_beta"),
    ("loss_B=-objective_BKL", "loss_B=objective_BKL"),
    ("objective_BKL.mean(dim=(1, 2))", "objective_BKL.mean(dim=1).sum(dim=-1)"),
    ("torch.where(rewards.injected_BK[..., None], start_BKL, batch.behaviour_log_probs_BKL)", "start_BKL"),
    ("rewards.injected_BK[..., None], start_BKL,", "~rewards.injected_BK[..., None], start_BKL,"),
    (", torch.isfinite(start_BSL[:, 0]).all(dim=-1)", ""),
    ("ratio_BKL > 1 + settings.clip_high", "ratio_BKL > 1 - settings.clip_low"),
    ("(advantages_BK1 < 0) &", "(advantages_BK1 > 0) &"),
    ("mean_of(reward_B, ~admitted_B)", "mean_of(reward_B, admitted_B)"),
    ("mean_of(~batch.valid_BK)", "mean_of(batch.valid_BK)"),
    ("mean_of(batch.hit_BK.any(dim=-1))", "mean_of(batch.hit_BK)"),
)  # fmt: skip

_SMALL_OBJECTIVES = (
    (NLL, "-scores.target_log_probs_BL.sum(dim=-1)", "-scores.target_log_probs_BL.mean(dim=-1)"),
    (NLL, "-scores.target_log_probs_BL.sum(dim=-1)", "scores.target_log_probs_BL.sum(dim=-1)"),
    (NLL, "-scores.target_log_probs_BL.sum(dim=-1)", "-scores.log_probs_BSL[:, 0].sum(dim=-1)"),
    (NLL, "loss=nll_B.mean()", "loss=nll_B.sum()"),
    (MIXTURE, "torch.where(admitted_B, term.loss_B, 0.0)", "term.loss_B"),
    (MIXTURE, "torch.where(admitted_B, term.loss_B, 0.0)", "term.loss_B * admitted_B"),
    (MIXTURE, "torch.where(admitted_B, term.loss_B, 0.0)", "torch.where(admitted_B, 0.0, term.loss_B)"),
    (MIXTURE, "nll_B + weight * admitted_grpo_B", "nll_B + admitted_grpo_B"),
    (MIXTURE, "nll_B + weight * admitted_grpo_B", "nll_B - weight * admitted_grpo_B"),
    (ADAGRPO, "start.log_probs_BSL[:, 0].sum(dim=-1)", "scores.log_probs_BSL[:, 0].sum(dim=-1)"),
    (ADAGRPO, "start.log_probs_BSL[:, 0].sum(dim=-1)", "start.log_probs_BSL[:, 0].mean(dim=-1)"),
    (BASE, "[batch.target_BL[:, None], batch.candidates_BKL]", "[batch.candidates_BKL, batch.target_BL[:, None]]"),
    (BASE, "values.detach()", "values"),
    (BASE, "torch.where(where, values, 0.0).sum()", "values.sum()"),
)

_PREFIX = (
    ("branches_BSL[:, :, :-1])", "branches_BSL[:, :, 1:])"),
    ("history_lengths_B - 1]", "history_lengths_B - 2]"),
    ("lengths_B[:, None] + within_R", "lengths_B[:, None] + 1 + within_R"),
    ("torch.arange(fed, device=device).repeat(branches)", "torch.arange(branches * fed, device=device)"),
    (" & (place_R[None, :] < lengths_B[:, None])", ""),
    ("place_R[None, :] < lengths_B[:, None]", "place_R[None, :] <= lengths_B[:, None]"),
    ("real_history_BR[:, None, :] & not_later_RR[None]", "real_history_BR[:, None, :]"),
    ("place_R[None, :] <= place_R[:, None]", "place_R[None, :] < place_R[:, None]"),
    ("(branch_R[:, None] == branch_R[None, :]) & ", ""),
    ("logits / temperature", "logits * temperature"),
    ("~allowed & possible", "allowed & possible"),
    ("~allowed & possible", "~allowed"),
    ("if allowed_BSLV is None and temperature == 1.0:", "if True:"),
    ("rest_tokens_BSF[:, 0, :, None], None, 1.0)", "rest_tokens_BSF[:, 0, :, None], None, temperature)"),
    ("log_p.detach().exp()", "log_p.exp()"),
    ("logits.float() if", "logits if"),
)

_STEP = (
    ("scores.detach()", "scores"),
    ("if starts[index] is None:", "if True:"),
    ("float(mass * workers / total)", "float(workers / len(masses))"),
    ("terms.loss * weights[index]", "terms.loss"),
    ("self.settings.dropout > 0", "True"),
    (".requires_grad_(False)", ""),
    ("if not torch.isfinite(norm):", "if False:"),
    ("(step + 1) / settings.warmup_steps", "step / settings.warmup_steps"),
    ("0.5 * (1 + math.cos", "0.5 * (1 - math.cos"),
    ("p.ndim >= 2", "p.ndim >= 1"),
    ('torch.set_rng_state(state["rng"]["torch"])', "pass"),
    ('self.optimizer.load_state_dict(state["optimizer"])', "pass"),
    ('self._schedule.load_state_dict(state["schedule"])', "pass"),
    ("        self._schedule.step()\n", ""),
    ("table[:, 0] / table[:, 1]", "table[:, 0]"),
    ("totals[name] + value if", "value if"),
    ("self.settings.max_grad_norm)", "1e9)"),
)

MUTANTS = (
    *(Mutant(GATE, old, new, IN_GATE) for old, new in _GATE),
    *(Mutant(REWARDS, old, new, IN_REWARDS) for old, new in _REWARDS),
    *(Mutant(ADVANTAGES, old, new, IN_ADVANTAGES) for old, new in _ADVANTAGES),
    *(Mutant(GRPO, old, new, IN_OBJECTIVES) for old, new in _GRPO),
    *(Mutant(file, old, new, IN_OBJECTIVES) for file, old, new in _SMALL_OBJECTIVES),
    *(Mutant(PREFIX, old, new, IN_PREFIX) for old, new in _PREFIX),
    *(Mutant(STEP, old, new, IN_STEP) for old, new in _STEP),
    *(Mutant(*mutant) for mutant in TREE_MUTANTS),
    *(Mutant(*edit) for edit in TRIE_EDITS),
)
