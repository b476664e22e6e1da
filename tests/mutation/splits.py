"""The mutants of the parts of the logs, of who sees which, and of intervals over users."""

from tests.mutation.mutant import Mutant

_SPLITS = ("catalog/data/test_splits.py",)
_CUT_OFFS = ("services/stages/test_cut_offs.py",)
_METRICS = ("learner/test_ranking_metrics.py",)

SPLIT_MUTANTS = (
    *(
        Mutant("catalog/data/splits.py", old, new, _SPLITS)
        for old, new in (
            ("(position >= np.repeat(ends", "(position > np.repeat(ends"),
            ("shares + _ROUNDING)", "shares - _ROUNDING)"),
            ("np.cumsum([split.pretrain_share,", "np.asarray([split.pretrain_share,"),
            ("np.cumsum(labels <= part)", "np.cumsum(labels < part)"),
            ("cuts.valid_from if cuts.fresh_from is None else cuts.fresh_from", "cuts.valid_from"),
            ("timestamps >= fresh_from]", "timestamps > fresh_from]"),
            ("if isinstance(split, FreshLogs):\n        shares", "if False:\n        shares"),
            ("later <= earlier for", "later < earlier for"),
        )
    ),
    Mutant("learner/training/pretrain.py", 'until: str = "pretrain"', 'until: str = "fresh"', _CUT_OFFS),
    Mutant("learner/training/pretrain.py", "lengths_until(until)", 'lengths_until("pretrain")', _CUT_OFFS),
    Mutant(
        "learner/evaluation/baselines.py", 'until(dataset, "fresh")', 'until(dataset, "valid")', _CUT_OFFS
    ),
    Mutant(
        "learner/ranker/fit.py",
        "KnownLogs.until(dataset, settings.until)",
        'KnownLogs.until(dataset, "fresh")',
        _CUT_OFFS,
    ),
    Mutant(
        "learner/ranker/fit.py",
        "lengths=logs.lengths,\n",
        'lengths=dataset.lengths_until("valid"),\n',
        _CUT_OFFS,
    ),
    Mutant(
        "learner/batches/sources.py",
        "examples(dataset.prompt_part)",
        'examples("pretrain")',
        _CUT_OFFS,
    ),
    Mutant("services/stages/prepare.py", "item[labels == PRETRAIN]", "item[labels == labels]", _CUT_OFFS),
    *(
        Mutant("learner/ranking_metrics.py", old, new, _METRICS)
        for old, new in (
            ("_, owner = np.unique(users, return_inverse=True)", "owner = np.arange(len(values))"),
            ("sums.sum(axis=axis) / counts.sum(axis=axis)", "(sums / counts).mean(axis=axis)"),
            ("paired=True", "paired=False"),
            ("values[first] - values[second]", "values[second] - values[first]"),
        )
    ),
)
