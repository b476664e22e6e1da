"""Mutants of how a row was shown: what prepare keeps of it, and what an example weighs by it."""

from tests.mutation.mutant import Mutant

EXPOSURE, CLEANING = "learner/evaluation/exposure.py", "catalog/data/cleaning.py"
IN_EXPOSURE = ("learner/evaluation/test_exposure.py",)
IN_PREPARE = ("services/stages/test_exposures.py",)
IN_METRICS = ("learner/test_ranking_metrics.py",)

_EXPOSURE = (
    ("dataset.offsets[users] + positions", "dataset.offsets[users]"),
    ("np.sqrt(dataset.slate_positions", "(dataset.slate_positions"),
    ('settings.examination == "inverse_sqrt"', "True"),
    ("1 / chances[known], settings.propensity_clip", "1 / chances[known], 1000.0"),
    ("np.minimum(1 / chances", "np.maximum(1 / chances"),
    ("np.average(values, weights=weights)", "np.average(values * weights)"),
    ("float(np.count_nonzero(weights))", "float(len(weights))"),
    ('has_weights and settings.select_by == "weighted"', "has_weights"),
    ('if settings.select_by == "weighted" and not weighted:', "if False:"),
    ('if settings.select_by == "auto":', "if False:"),
    ('and summary["effective_examples"] >= FEWEST_EFFECTIVE', ""),
    ('summary["effective_examples"] >= FEWEST_EFFECTIVE', 'summary["effective_examples"] > FEWEST_EFFECTIVE'),
    ("settings) is None:", "settings) is not None:"),
)

_CLEANING = (
    ("pc.less_equal(values, 0)", "pc.less(values, 0)"),
    ("pc.greater(values, 1)", "pc.greater_equal(values, 1)"),
    ("known & ~whole", "known & whole"),
    ("pc.less(values, 1)", "pc.less_equal(values, 1)"),
    ("pc.greater(values, _LAST_PLACE)", "pc.greater_equal(values, _LAST_PLACE)"),
    ("pc.greater(values, _LAST_PLACE)", "pc.greater(values, 10 * _LAST_PLACE**2)"),
)

_OTHERS = (
    (
        "services/config.py",
        'for name in ("propensity_clip", "examination")',
        'for name in ("examination",)',
        ("services/test_config.py",),
    ),
    (
        "services/preflight/sample.py",
        'present.pop("slate_position", None)',
        "pass",
        ("services/preflight/test_ranker.py",),
    ),
    (
        "services/preflight/sample.py",
        'not known.get(count["values"]), ',
        "",
        ("services/preflight/test_ranker.py",),
    ),
    ("services/stages/log_checks.py", "        if count == 0:", "        if False:", IN_PREPARE),
    ("services/stages/log_warnings.py", 'and known < counts["interactions"]', "", IN_PREPARE),
    (
        "services/stages/prepare.py",
        "if field.name in self._source.columns]",
        "]",
        IN_PREPARE,
    ),
    ("learner/ranking_metrics.py", "np.bincount(owner, weights=weights)", "np.bincount(owner)", IN_METRICS),
    ("learner/ranking_metrics.py", "values[counted] * weights[counted]", "values[counted]", IN_METRICS),
    (
        "learner/ranking_metrics.py",
        "bootstrap_mean(change, users, weights=weights)",
        "bootstrap_mean(change, users)",
        IN_METRICS,
    ),
    (
        "learner/ranking_metrics.py",
        "weights.sum() ** 2 / np.square(weights).sum()",
        "weights.sum() / weights.max()",
        IN_EXPOSURE,
    ),
    (
        "services/advise/verdict.py",
        'summary.get("judged_by", "hr@10")',
        '"hr@10"',
        ("services/advise/test_verdict.py",),
    ),
    (
        "learner/training/pretrain.py",
        "    check_choice(dataset, examples, evaluation)\n",
        "",
        ("learner/training/test_pretrain.py",),
    ),
    (
        "services/advise/figures.py",
        'row.get(second, 0.0), -row["step"]',
        '-row["step"]',
        ("services/advise/test_advice.py",),
    ),
    (
        "services/run/summary.py",
        'decides_weighted(metrics["start"], settings)',
        "(weights is not None)",
        ("services/run/test_summary.py",),
    ),
    (
        "services/run/summary.py",
        "metric, PAIRS, of_kind)",
        "metric, PAIRS)",
        ("services/run/test_summary.py",),
    ),
)

EXPOSURE_MUTANTS = (
    *(Mutant(EXPOSURE, old, new, IN_EXPOSURE) for old, new in _EXPOSURE),
    *(Mutant(CLEANING, old, new, IN_PREPARE) for old, new in _CLEANING),
    *(Mutant(file, old, new, tests) for file, old, new, tests in _OTHERS),
)
