"""Mutants of the audit and of the advice: bound, areas, bands, rules and what they suggest."""

from tests.mutation.mutant import Mutant

BOUND, ROLLOUTS, ORDER = (
    "services/audit/bound.py",
    "services/study/groups.py",
    "services/audit/order.py",
)
RULES, SUGGEST, TRUSTED = "services/audit/rules.py", "services/audit/suggest.py", "services/audit/trusted.py"
ADVICE, ADVICE_RULES, FIGURES = (
    "services/advise/advice.py",
    "services/advise/rules.py",
    "services/advise/figures.py",
)

_BOUND = (
    ("lists.log_probs + strengths", "lists.log_probs - strengths"),
    ("strength, 0.0)", "strength, strength)"),
    ("np.nan_to_num(lists.scores) / spread_of(lists.scores)", "np.nan_to_num(lists.scores)"),
    ("np.nanstd(known, axis=1).mean()", "np.nanstd(known)"),
    ("_best(gains, half != own)", "_best(gains, half == own)"),
    ("[half == own] = gains[place]", "[half != own] = gains[place]"),
    ("len(known))[owner] % HALVES", "len(owner)) % HALVES"),
    ("spread_of(lists.scores) / strength if", "spread_of(lists.scores) * strength if"),
    ("now[name] - start[name]", "start[name] - now[name]"),
)

_AREAS = (
    ("tied_BK = batch.hit_BK | ", "tied_BK = "),
    ("torch.where(batch.valid_BK, below_BK", "torch.where(batch.valid_BK & ~batch.hit_BK, below_BK"),
    ("/ batch.valid_BK.sum(dim=1)", "/ batch.distinct_BK.sum(dim=1)"),
    ("(batch.candidate_scores_BK < own_B1)", "(batch.candidate_scores_BK > own_B1)"),
    ("torch.where(tied_BK, 0.5,", "torch.where(tied_BK, 1.0,"),
)

_ORDER = (
    ("np.argsort(exposures", "np.argsort(-exposures"),
    ("np.searchsorted(LENGTHS, positions)", 'np.searchsorted(LENGTHS, positions, side="right")'),
    ("known = ages > 0", "known = ages >= 0"),
    ("(sums[owner] - values)", "(sums[owner])"),
    ("others = counts[owner] - known", "others = counts[owner]"),
    ("policy_best != ranker_best", "policy_best == ranker_best"),
)

_RULES = (
    ("below.high < above.low and", ""),
    ("below.low <= CHANCE < above.low", "below.low <= CHANCE <= above.low"),
    ("FEW_PROMPTS <= known.share <= 1 - FEW_PROMPTS", "FEW_PROMPTS <= known.share"),
    ('.gain["hr@10"].low > 0 and', '.gain["hr@10"].low >= 0 and'),
    ("and audit.area.low > CHANCE", ""),
    (".value < ALMOST_NONE", ".value <= ALMOST_NONE"),
    (".value > ALMOST_ALL", ".value >= ALMOST_ALL"),
)

_SUGGEST = (
    ("FEWEST <= cell.rate <= MOST", "FEWEST <= cell.rate"),
    ("best = max(cell.elsewhere", "best = min(cell.elsewhere"),
    ("abs(cell.rate - AIM)", "cell.rate"),
    ("cell.elsewhere > best - ALIKE", "cell.elsewhere >= best"),
)

_TRUSTED = (
    ("known & (figure > above)", "known & (figure >= above)"),
    ("high.sum() / known.sum()", "high.mean()"),
    ("np.lexsort((positions, users))", "np.lexsort((-positions, users))"),
    ('known, side="left"', 'known, side="right"'),
)

_ADVICE = (
    (ADVICE_RULES, "run.gate_rate < ALMOST_NONE", "run.gate_rate <= ALMOST_NONE"),
    (ADVICE_RULES, "run.gate_rate > ALMOST_ALL", "run.gate_rate >= ALMOST_ALL"),
    (ADVICE_RULES, "after > before + HALLUCINATION_RISE and", ""),
    (ADVICE_RULES, "run.best_control.low <= 0", "run.best_control.high <= 0"),
    (ADVICE_RULES, "run.ranker_hr < run.start_hr", "run.ranker_hr > run.start_hr"),
    (ADVICE_RULES, "run.best_step == run.last_step", "run.best_step != run.last_step"),
    (FIGURES, 'row.get(second, 0.0), -row["step"])', 'row.get(second, 0.0), row["step"])'),
    (FIGURES, "weights=weights", "weights=None"),
    (FIGURES, 'accounting["stale"] / accounting["issued"]', 'accounting["stale"] / accounting["trained"]'),
    (ADVICE, "key=lambda cell: -_difference(cell).value", "key=lambda cell: _difference(cell).value"),
    (ADVICE, "_difference(worst).high < 0", "_difference(worst).value < 0"),
    (ADVICE, "else rules[1:])", "else rules)"),
)

_IN_AUDIT = tuple(f"services/audit/test_{name}.py" for name in ("bound", "order", "rules"))

AUDIT_MUTANTS = (
    *(
        Mutant(file, old, new, _IN_AUDIT)
        for file, edits in (
            (BOUND, _BOUND),
            (ROLLOUTS, _AREAS),
            (ORDER, _ORDER),
            (RULES, _RULES),
            (SUGGEST, _SUGGEST),
            (TRUSTED, _TRUSTED),
        )
        for old, new in edits
    ),
    *(Mutant(file, old, new, ("services/advise/test_advice.py",)) for file, old, new in _ADVICE),
)
