"""The mutants of the group-relative objectives and of what they are made of; see `tests.mutation.mutants`.

(file, what stands in it once, what replaces it, the test files one of which must notice)
"""

_TERM, _GRPO = "learner/objectives/terms/group_term.py", "learner/objectives/grpo.py"
_CORRECTION, _GRPO_SR = "learner/objectives/terms/correction.py", "learner/objectives/grpo_sr.py"
_ECPO, _GBPO = "learner/objectives/ecpo.py", "learner/objectives/gbpo.py"
_MIXTURE, _ADVANTAGES, _WEIGHTS = (
    "learner/objectives/mixture.py",
    "learner/objectives/terms/advantages.py",
    "learner/objectives/terms/member_weights.py",
)
_REWARDS, _COMPONENTS = "learner/rewards/rewards.py", "learner/rewards/components.py"
_GATE, _VARIANTS, _SETTINGS = (
    "learner/gate/gate.py",
    "learner/gate/variants.py",
    "learner/objectives/settings/objective.py",
)
_OBJECTIVES, _GRADIENTS = (
    ("learner/objectives/test_objectives.py",),
    ("learner/objectives/test_policy_gradients.py",),
)
_BOTH = _OBJECTIVES + _GRADIENTS
_STEPS = ("learner/training/test_group_objectives_step.py",)

_CLIPPED = (
    (_GRPO, "clamp(1 - clip_low, 1 + clip_high)", "clamp(1 - clip_high, 1 + clip_low)", _OBJECTIVES),
    (_GRPO, "clamp(1 - clip_low, 1 + clip_high)", "clamp(1 - clip_low, None)", _OBJECTIVES),
    (_GRPO, "clamp(1 - clip_low, 1 + clip_high)", "clamp(None, 1 + clip_high)", _OBJECTIVES),
    (_GRPO, "torch.minimum(ratio", "torch.maximum(ratio", _OBJECTIVES),
    (_GRPO, "ratio_BKL > 1 + clip_high", "ratio_BKL > 1 - clip_low", _OBJECTIVES),
    (_GRPO, "(advantages_BK1 < 0) &", "(advantages_BK1 > 0) &", _OBJECTIVES),
    (
        _GRPO,
        "group.log_probs_BKL - group.old(settings)",
        "group.old(settings) - group.log_probs_BKL",
        _OBJECTIVES,
    ),
    (
        _GRPO,
        "log_ratio_BKL.sum(dim=-1, keepdim=True)",
        "log_ratio_BKL.mean(dim=-1, keepdim=True)",
        _GRADIENTS,
    ),
    (
        _GRPO,
        "log_ratio_BKL.mean(dim=-1, keepdim=True)",
        "log_ratio_BKL.sum(dim=-1, keepdim=True)",
        _GRADIENTS,
    ),
    (
        _GRPO,
        "return (~all_equal(rewards)).sum().double()",
        "return all_equal(rewards).sum().double()",
        _GRADIENTS,
    ),
    (_GRPO, "return (~all_equal(rewards)).sum().double()", "return super().normaliser(batch)", _GRADIENTS),
    (_GRPO, "kept_B = ~all_equal", "kept_B = all_equal", _GRADIENTS),
    (_GRPO, "torch.where(kept_B, term.loss_B, 0.0).sum()", "term.loss_B.sum()", _GRADIENTS),
    (_GRPO, "/ kept_B.sum().clamp(min=1)", "/ kept_B.numel()", _GRADIENTS),
    (_GRPO, "kept_B.sum().clamp(min=1)", "kept_B.sum()", _GRADIENTS),
    (_SETTINGS, "(3e-4, 4e-4)", "(4e-4, 3e-4)", _GRADIENTS),
    (_SETTINGS, "(3e-4, 4e-4)", "(3e-4, 5e-4)", _GRADIENTS),
    (_SETTINGS, "else (0.2, 0.2)", "else (0.2, 0.28)", _OBJECTIVES),
)

_SHARED = (
    (_TERM, "(reference - log_probs)", "(log_probs - reference)", _OBJECTIVES),
    (_TERM, "difference.exp() - difference - 1", "difference.exp() - difference", _OBJECTIVES),
    (
        _TERM,
        'self.behaviour_BKL if settings.old_policy == "behaviour" else self.start_BKL',
        "self.behaviour_BKL",
        _BOTH,
    ),
    (
        _TERM,
        'self.behaviour_BKL if settings.old_policy == "behaviour" else self.start_BKL',
        "self.start_BKL",
        _BOTH,
    ),
    (
        _TERM,
        "surrogate_BKL * correction_weights(group.start_BKL, group.behaviour_BKL, settings.correction)",
        "surrogate_BKL",
        _OBJECTIVES,
    ),
    (_TERM, "objective_BKL - settings.kl_beta", "objective_BKL + settings.kl_beta", _OBJECTIVES),
    (_TERM, "loss_B=-over_group", "loss_B=over_group", _OBJECTIVES),
    (_TERM, "values_BKL.mean(dim=(1, 2))", "values_BKL.mean(dim=1).sum(dim=-1)", _OBJECTIVES),
    (
        _TERM,
        "weights.counts_BK * values_BKL.mean(dim=2)",
        "weights.raw_BK * values_BKL.mean(dim=2)",
        ("learner/objectives/terms/test_member_weights.py",),
    ),
    (
        _TERM,
        "weights.counts_BK * values_BKL.mean(dim=2)",
        "weights.counts_BK * values_BKL.sum(dim=2)",
        ("learner/objectives/terms/test_member_weights.py",),
    ),
    (
        _TERM,
        "(weights.counts_BK * values_BKL.mean(dim=2)).sum(dim=1)",
        "(weights.counts_BK * values_BKL.mean(dim=2)).mean(dim=1)",
        ("learner/objectives/terms/test_member_weights.py",),
    ),
    (
        _TERM,
        "torch.where(rewards.injected_BK[..., None], start_BKL, batch.behaviour_log_probs_BKL)",
        "start_BKL",
        _OBJECTIVES,
    ),
    (
        _TERM,
        "rewards.injected_BK[..., None], start_BKL,",
        "~rewards.injected_BK[..., None], start_BKL,",
        _OBJECTIVES,
    ),
    (_TERM, "        torch.isfinite(start_BSL[:, 0]).all(dim=-1),\n", "", _OBJECTIVES),
    (_TERM, "mean_of(reward_B, ~admitted_B)", "mean_of(reward_B, admitted_B)", _OBJECTIVES),
    (_TERM, "mean_of(~batch.valid_BK)", "mean_of(batch.valid_BK)", _OBJECTIVES),
    (_TERM, "mean_of(batch.hit_BK.any(dim=-1))", "mean_of(batch.hit_BK)", _OBJECTIVES),
    (_TERM, "mean_of(inside, _drawn(group, inside))", "mean_of(inside)", _STEPS + _GRADIENTS),
    (_TERM, "term.loss_B.mean())", "term.loss_B.sum())", _STEPS),
    (
        _CORRECTION,
        "log_ratio = start_BKL - behaviour_BKL",
        "log_ratio = behaviour_BKL - start_BKL",
        _OBJECTIVES,
    ),
    (_CORRECTION, "log_ratio.sum(dim=-1, keepdim=True)", "log_ratio.mean(dim=-1, keepdim=True)", _OBJECTIVES),
    (_CORRECTION, "clamp(settings.low, settings.high)", "clamp(0, settings.high)", _OBJECTIVES),
    (_CORRECTION, "clamp(settings.low, settings.high)", "clamp(settings.low)", _OBJECTIVES),
    (_CORRECTION, "@torch.no_grad()\ndef correction", "def correction", _OBJECTIVES),
    (_CORRECTION, "settings), ratio, 0.0)", "settings), 1.0, 0.0)", _GRADIENTS),
    (_CORRECTION, "settings), ratio, 0.0)", "settings), 0.0, ratio)", _GRADIENTS),
    (_CORRECTION, "(ratio >= settings.low) & ", "", _GRADIENTS),
    (_CORRECTION, " & (ratio <= settings.high)", "", _GRADIENTS),
    (_CORRECTION, 'if settings.outside == "mask":', "if False:", _GRADIENTS),
    (_MIXTURE, "gate_B * term.loss_B", "term.loss_B", ("learner/gate/test_variants.py",)),
)

_ALONE = (
    (_GRPO_SR, "(log_probs_BKL - log_probs_BKL.detach())", "(log_probs_BKL - log_probs_BKL)", _GRADIENTS),
    (
        _GRPO_SR,
        "(log_probs_BKL - log_probs_BKL.detach())",
        "(log_probs_BKL.detach() - log_probs_BKL)",
        _GRADIENTS,
    ),
    (_GRPO_SR, "loss_B=-over_group", "loss_B=over_group", _GRADIENTS),
    (_GRPO_SR, "term.loss_B + self.alpha * nll", "term.loss_B - self.alpha * nll", _GRADIENTS),
    (_GRPO_SR, "term.loss_B + self.alpha * nll", "term.loss_B + nll", _GRADIENTS),
    (_GRPO_SR, "loss_B.mean())", "loss_B.sum())", _STEPS),
    (_ECPO, "@torch.no_grad()\n", "", _GRADIENTS),
    (_ECPO, "log_probs_BKL - math.log(largest_ratio)", "log_probs_BKL + math.log(largest_ratio)", _GRADIENTS),
    (_ECPO, "log_probs_BKL - math.log(largest_ratio)", "log_probs_BKL", _GRADIENTS),
    (_ECPO, "torch.maximum(log_probs", "torch.minimum(log_probs", _GRADIENTS),
    (_ECPO, "1 + high + self.settings", "1 + low + self.settings", _GRADIENTS),
    (_ECPO, "1 + high + self.settings.early_clip_margin", "1 + high", _GRADIENTS),
    (_ECPO, "group.log_probs_BKL - raised_BKL", "group.log_probs_BKL - old_BKL", _GRADIENTS),
    (
        _ECPO,
        "clipped_surrogate(log_ratio_BKL, group.advantages_BK, low, high)",
        "clipped_surrogate(log_ratio_BKL, group.advantages_BK, high, low)",
        _GRADIENTS,
    ),
    (_GBPO, "@torch.no_grad()\n", "", _GRADIENTS),
    (_GBPO, "(-torch.expm1(log_probs_BKL.clamp(max=0.0))).log()", "log_probs_BKL", _GRADIENTS),
    (_GBPO, ".clamp(max=0.0)", "", _GRADIENTS),
    (_GBPO, ">= 0, log_probs_BKL, complement", "<= 0, log_probs_BKL, complement", _GRADIENTS),
    (_GBPO, "torch.maximum(old", "torch.minimum(old", _GRADIENTS),
    (_GBPO, "torch.maximum(old_BKL, bound_BKL)", "old_BKL", _GRADIENTS),
    (_GBPO, "ratio_of(group.log_probs_BKL - raised_BKL)", "group.log_probs_BKL - raised_BKL", _GRADIENTS),
    (
        _GBPO,
        "ratio_BKL * group.advantages_BK[..., None]",
        "ratio_BKL * -group.advantages_BK[..., None]",
        _GRADIENTS,
    ),
)

_IN_WEIGHTS = ("learner/objectives/terms/test_member_weights.py",)
_MEMBERS = (
    (_ADVANTAGES, "candidates / (candidates - 1)", "(candidates - 1) / candidates", _GRADIENTS),
    (_ADVANTAGES, 'if kind == "rloo":', "if False:", _GRADIENTS),
    (_ADVANTAGES, 'if kind == "grpo":', "if True:", _GRADIENTS),
    (_ADVANTAGES, " and not weights.normalised", "", _IN_WEIGHTS),
    (_ADVANTAGES, "elif weights is not None and not weights.normalised:", "elif False:", _IN_WEIGHTS),
    (
        _ADVANTAGES,
        "(shares_BK * (rewards_BK - mean_B1).square())",
        "(rewards_BK - mean_B1).square()",
        _IN_WEIGHTS,
    ),
    (_ADVANTAGES, "(shares_BK * rewards_BK)", "(weights_BK * rewards_BK)", _IN_WEIGHTS),
    (_ADVANTAGES, "keepdim=True).sqrt()", "keepdim=True)", _IN_WEIGHTS),
    (
        _WEIGHTS,
        "log_p_BK - batch.inclusion_log_probs_BK",
        "batch.inclusion_log_probs_BK - log_p_BK",
        _IN_WEIGHTS,
    ),
    (
        _WEIGHTS,
        "batch.behaviour_log_probs_BKL.sum(dim=-1)",
        "batch.behaviour_log_probs_BKL.mean(dim=-1)",
        _IN_WEIGHTS,
    ),
    (_WEIGHTS, "- raw_BK + p_BK\n", "- raw_BK\n", _IN_WEIGHTS),
    (_WEIGHTS, "- raw_BK + p_BK\n", "+ p_BK\n", _IN_WEIGHTS),
    (_WEIGHTS, "(1 - weights.probabilities_BK + raw_BK)", "(1 - weights.probabilities_BK)", _IN_WEIGHTS),
    (_WEIGHTS, "(1 - weights.probabilities_BK + raw_BK)", "(1 + raw_BK)", _IN_WEIGHTS),
    (_WEIGHTS, "+ raw_BK) - total_B1", "+ raw_BK) + total_B1", _IN_WEIGHTS),
    (_WEIGHTS, "total_B1 / raw_BK.sum(dim=-1, keepdim=True)", "total_B1", _IN_WEIGHTS),
    (_WEIGHTS, 'if ground_truth == "inject":', "if False:", _IN_WEIGHTS),
)

_IN_COMPONENTS = ("learner/rewards/test_components.py",)
_REWARD = tuple(
    (file, old, new, _IN_COMPONENTS)
    for file, old, new in (
        (_COMPONENTS, "scores_BK.sigmoid()", "(-scores_BK).sigmoid()"),
        (_COMPONENTS, "scores_BK.masked_fill(~valid_BK, torch.nan)", "scores_BK"),
        (_COMPONENTS, "present_BK[:, None, :] < scores", "present_BK[:, None, :] > scores"),
        (_COMPONENTS, "present_BK[:, None, :] < scores", "present_BK[:, None, :] <= scores"),
        (
            _COMPONENTS,
            "(present_BK[:, None, :] == scores_BK[:, :, None]).sum(dim=-1) - 1",
            "(present_BK[:, None, :] == scores_BK[:, :, None]).sum(dim=-1)",
        ),
        (_COMPONENTS, "+ 0.5 * ties_BK) / (valid_B1 - 1)", ") / (valid_B1 - 1)"),
        (_COMPONENTS, "ties_BK) / (valid_B1 - 1)", "ties_BK) / valid_B1"),
        (_COMPONENTS, "torch.where(scores_BK.isnan(), scores_BK, share_BK)", "share_BK"),
        (_COMPONENTS, "torch.where(valid_BK, scores_BK, 0.0)", "scores_BK.nan_to_num(0.0)"),
        (
            _COMPONENTS,
            "torch.where(valid_BK, scores_BK - mean_B1, 0.0)",
            "(scores_BK - mean_B1).nan_to_num(0.0)",
        ),
        (_COMPONENTS, "keepdim=True) / (valid_B1 - 1).clamp(min=1)", "keepdim=True) / valid_B1"),
        (_COMPONENTS, "STD_FLOOR = 1e-4", "STD_FLOOR = 1e-6"),
        (_COMPONENTS, "variance_B1.sqrt()", "variance_B1"),
        (_COMPONENTS, 'if like == "target":', "if True:"),
        (_COMPONENTS, "batch.target_BL[:, None, :tokens]", "batch.target_BL[:, None, : tokens - 1]"),
        (_COMPONENTS, "batch.history_BT[:, 1 : 1 + items * levels]", "batch.history_BT[:, : items * levels]"),
        (_COMPONENTS, "relevant_BIl[:, None]).all(dim=-1)", "relevant_BIl[:, None]).any(dim=-1)"),
        (_COMPONENTS, "likelihood_BK[:, None, :] > likelihood", "likelihood_BK[:, None, :] < likelihood"),
        (_COMPONENTS, "tril(diagonal=-1)", "triu(diagonal=1)"),
        (_COMPONENTS, "ahead_BKK & ~batch.same_BKK", "ahead_BKK"),
        (_COMPONENTS, "torch.arange(2, candidates + 2", "torch.arange(3, candidates + 3"),
        (_COMPONENTS, "penalty_BK = -(weights_K", "penalty_BK = (weights_K"),
        (_COMPONENTS, "weights_K / weights_K.sum()", "weights_K"),
        (_COMPONENTS, "batch.hit_BK.any(dim=-1, keepdim=True) & ", ""),
        (_COMPONENTS, "keepdim=True) & ~batch.hit_BK", "keepdim=True)"),
        (_COMPONENTS, ".sum(dim=-1) - 1\n    return 1 - same", ".sum(dim=-1)\n    return 1 - same"),
        (_COMPONENTS, "return 1 - same_BK", "return same_BK"),
        (_COMPONENTS, "(head_BKl.shape[1] - 1)", "head_BKl.shape[1]"),
        (_COMPONENTS, "return -batch.candidate_popularity", "return batch.candidate_popularity"),
        (_COMPONENTS, ".clamp(min=RAREST_SHARE)", ""),
        (_COMPONENTS, "torch.where(batch.hit_BK, reward_B1, 0.0)", "reward_B1 + 0 * batch.hit_BK"),
        (_COMPONENTS, ".nan_to_num(nan=0.0)[:, None]", "[:, None]"),
        (_REWARDS, 'gated["ranker"] * gated.pop("relevance")', 'gated["ranker"] + gated.pop("relevance")'),
        (_REWARDS, "component.weight * gated", "gated"),
        (_REWARDS, "sum(weighted[1:], start=weighted[0])", "weighted[0]"),
        (_REWARDS, "mean_of(value_BK, batch.valid_BK)", "mean_of(value_BK)"),
        (
            _REWARDS,
            "batch.target_BL[:, None], batch.candidates_BKL",
            "batch.candidates_BKL, batch.target_BL[:, None]",
        ),
        (_REWARDS, "batch.target_items_B[:, None], batch.candidate_items_BK", "7, batch.candidate_items_BK"),
        (
            _REWARDS,
            "batch.target_scores_B[:, None], batch.candidate_scores_BK",
            "0.0, batch.candidate_scores_BK",
        ),
    )
)

_GATES = tuple(
    (file, old, new, ("learner/gate/test_variants.py",))
    for file, old, new in (
        (_GATE, "< settings.random_rate", "> settings.random_rate"),
        (_GATE, "settings.random_seed", "0"),
        (_GATE, "torch.where(torch.isfinite(batch.target_scores_B), gate_B, 0.0)", "gate_B"),
        (_GATE, "self.gate_B >= 0.5", "self.gate_B >= 0"),
        (
            _VARIANTS,
            "torch.where(real_BT, _mixed(batch.history_BT + (places_T << 32)), 0)",
            "_mixed(batch.history_BT + (places_T << 32))",
        ),
        (_VARIANTS, "batch.history_BT + (places_T << 32)", "batch.history_BT"),
        (_VARIANTS, "rest_BX + ((1 + torch", "rest_BX + 0 * ((1 + torch"),
        (_VARIANTS, "history_BT.sum(dim=1) + rest_BX", "rest_BX"),
        (
            _VARIANTS,
            "[batch.target_BL, batch.candidates_BKL.flatten(1)]",
            "[batch.candidates_BKL.flatten(1)]",
        ),
        (_VARIANTS, "[batch.target_BL, batch.candidates_BKL.flatten(1)]", "[batch.target_BL]"),
        (_VARIANTS, " + _mixed(rest_BX.new_full((), seed))", ""),
        (_VARIANTS, "/ 2**53", "/ 2**52"),
        (_VARIANTS, "policy_rank_B - head - 0.5", "policy_rank_B - head + 0.5"),
        (_VARIANTS, "policy_rank_B - head - 0.5", "head + 0.5 - policy_rank_B"),
        (_VARIANTS, "head + 0.5 - ranker_rank_B", "head - 0.5 - ranker_rank_B"),
        (_VARIANTS, "least_B - 0.5", "least_B + 0.5"),
        (_VARIANTS, "- 0.5) / softness)\n    agrees", "- 0.5))\n    agrees"),
        (_VARIANTS, "ranker_rank_B) / softness", "ranker_rank_B)"),
        (_VARIANTS, "(least_B - 0.5) / softness", "(least_B - 0.5)"),
        (_VARIANTS, ".amin(dim=-1)", ".amax(dim=-1)"),
        (_VARIANTS, "(0, 1), value=torch.inf)", "(0, 1), value=0.0)"),
        (_VARIANTS, "nan_to_num(nan=torch.inf)", "nan_to_num(nan=0.0)"),
        (_VARIANTS, "return difficulty_B, agrees_B * ", "return difficulty_B, agrees_B + "),
    )
)

_RATIO, _EFFECTS = "learner/objectives/terms/ratio.py", "learner/objectives/settings/effects.py"
_IN_EDGES = ("learner/objectives/test_edges.py",)
_IN_EFFECTS = ("learner/objectives/settings/test_effects.py",)

_STRATA, _IN_STRATA = "learner/batches/strata.py", ("learner/batches/test_strata.py",)

_EDGES = (
    (_STRATA, "np.sort(shares)[::-1]", "np.sort(shares)", _IN_STRATA),
    (_STRATA, '"middle": middle & ~head', '"middle": middle', _IN_STRATA),
    (_STRATA, " | shares.isnan()", "", _IN_STRATA),
    (_TERM, "advantages_BK > 0, counted_BK", "advantages_BK >= 0, counted_BK", _IN_STRATA),
    (_RATIO, "log_ratio.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)", "log_ratio", _IN_EDGES),
    (_RATIO, "LARGEST_LOG_RATIO = 20.0", "LARGEST_LOG_RATIO = 90.0", _IN_EDGES),
    (
        _GRPO,
        "ratio_of(log_ratio_BKL), advantages_BK[..., None]\n    clipped",
        "log_ratio_BKL.exp(), advantages_BK[..., None]\n    clipped",
        _IN_EDGES,
    ),
    (
        _GBPO,
        "ratio_of(group.log_probs_BKL - raised_BKL)",
        "(group.log_probs_BKL - raised_BKL).exp()",
        _IN_EDGES,
    ),
    (_CORRECTION, "return ratio_of(log_ratio)", "return log_ratio.exp()", _IN_EDGES),
    (
        _WEIGHTS,
        "ratio_of(log_p_BK - batch.inclusion_log_probs_BK)",
        "(log_p_BK - batch.inclusion_log_probs_BK).exp()",
        _IN_EDGES,
    ),
    (_WEIGHTS, "rest_BK.clamp(min=math.exp(-LARGEST_LOG_RATIO))", "rest_BK", _IN_EDGES),
    (_TERM, ".clamp(max=LARGEST_LOG_RATIO)", "", _IN_EDGES),
    (
        _TERM,
        "torch.where(counts_B[:, None, None], log_probs_BKL, log_probs_BKL.detach())",
        "log_probs_BKL",
        _IN_EDGES,
    ),
    (_TERM, "torch.where(group.counts_B, values_B, 0.0)", "values_B", _IN_EDGES),
    (_TERM, "counts_B = counts_B & admitted_B", "pass", _IN_EDGES),
    (
        _TERM,
        "counts_B = (advantages_BK != 0).any(dim=-1)",
        "counts_B = torch.ones_like(advantages_BK[:, 0], dtype=torch.bool)",
        _IN_EDGES,
    ),
    (_ADVANTAGES, "rewards_BK.double()", "rewards_BK.half()", _IN_EDGES),
    (_EFFECTS, 'kind != "stochastic_beam" and', "False and", _IN_EFFECTS),
    (_EFFECTS, "if constrained and", "if False and", _IN_EFFECTS),
    (_EFFECTS, 'and kind != "sample"', "and False", _IN_EFFECTS),
    (_EFFECTS, "tokens > levels", "tokens > 9", _IN_EFFECTS),
    (_EFFECTS, '"clip", "value_clip",', '"clip",', _IN_EFFECTS),
    (_EFFECTS, '"early_clip_margin")', ")", _IN_EFFECTS),
    (_EFFECTS, '== "gspo"', '== ""', _IN_EFFECTS),
    (_EFFECTS, "return candidates**2 // 4", "return candidates**2", _IN_EFFECTS),
    (_EFFECTS, "        return candidates\n", "        return candidates + 99\n", _IN_EFFECTS),
    (_SETTINGS, 'if self.level == "none" and', "if False and", _IN_EFFECTS),
    (
        "learner/gate/settings.py",
        '("parts", "tau", "rho", "distractor_rule", "trust")',
        '("parts",)',
        _IN_EFFECTS,
    ),
    (
        "learner/gate/settings.py",
        'self.parts == "difficulty" and self.trust',
        "False and self.trust",
        _IN_EFFECTS,
    ),
    (
        "learner/objectives/settings/preference.py",
        "only is not None and abs(only.weight) != 1",
        "False",
        _IN_EFFECTS,
    ),
    ("learner/rewards/settings.py", "return -component.weight", "return 0.0", _IN_EFFECTS),
)

POLICY_GRADIENT = _EDGES + _CLIPPED + _SHARED + _ALONE + _MEMBERS + _REWARD + _GATES
