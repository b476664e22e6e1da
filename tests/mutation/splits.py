"""The mutants of the parts of the logs, of who sees which, and of intervals over users."""

from tests.mutation.mutant import Mutant

_SPLITS = ("catalog/data/test_splits.py",)
_CUT_OFFS = ("services/stages/test_cut_offs.py",)
_PREPARE = ("services/stages/test_prepare.py",)
_METRICS = ("learner/test_ranking_metrics.py",)

SPLIT_MUTANTS = (
    *(
        Mutant("catalog/data/splits.py", old, new, _SPLITS)
        for old, new in (
            ("(position >= np.repeat(ends", "(position > np.repeat(ends"),
            ("shares + _ROUNDING)", "shares - _ROUNDING)"),
            ("np.cumsum([split.pretrain_share,", "np.asarray([split.pretrain_share,"),
            ("np.cumsum(labels <= part)", "np.cumsum(labels < part)"),
            ("self.valid_from if self.fresh_from is None else self.fresh_from", "self.valid_from"),
            ("timestamps >= fresh_from]", "timestamps > fresh_from]"),
            ("if isinstance(split, FreshLogs):\n        shares", "if False:\n        shares"),
            (
                "bounds = [earliest, *cuts.values()]\n    if any(later <= earlier for earlier, later in "
                "pairwise(bounds)):",
                "bounds = [earliest, *cuts.values()]\n    if any(later < earlier for earlier, later in "
                "pairwise(bounds)):",
            ),
            ("pairwise(bounds)) or bounds[-1] > latest", "pairwise(bounds))"),
            ("bounds[-1] > latest", "bounds[-1] >= latest"),
            ("moment * per_second // own", "moment"),
            ("* per_second // 10**6", "// 10**6"),
            ("own < np.maximum.accumulate(own)", "own <= np.maximum.accumulate(own)"),
        )
    ),
    *(
        Mutant(file, old, new, _PREPARE)
        for file, old, new in (
            (
                "catalog/data/partition.py",
                "_renumber(_in_order_of_parts(events), place)",
                "_renumber(events, place)",
            ),
            ("catalog/data/sources.py", "replace(file, part=name)", 'replace(file, part="test")'),
            ("catalog/data/cleaning.py", "as_numpy(numbers.is_null()),", "as_numpy(numbers.is_valid()),"),
            ("services/stages/prepare.py", "late += count", "late = count"),
            ("services/stages/data_warnings.py", "shared > _MANY * items", "shared > items"),
        )
    ),
    *(
        Mutant("catalog/data/semantic_ids.py", old, new, ("catalog/data/test_semantic_ids.py",))
        for old, new in (
            ("round(math.log2(items * 2 / 3))", "math.ceil(math.log2(items * 2 / 3))"),
            ("math.ceil(math.log2(missing))", "round(math.log2(missing))"),
            ("/ math.prod(sizes)) > 1:", "/ math.prod(sizes)) >= 1:"),
            ("_LARGEST_LEVEL_BITS = 2, 13", "_LARGEST_LEVEL_BITS = 2, 12"),
            ("distance > before * (1 - _LEAST_GAIN)", "distance > before"),
            ("min(step, iterations - done)", "step"),
            ("init_centroids=kmeans.centroids", "init_centroids=None"),
        )
    ),
    *(
        Mutant("learner/training/pretrain.py", old, new, ("learner/training/test_pretrain.py",))
        for old, new in (
            ("validations[-1][metric] > best", "validations[-1][metric] >= best"),
            ("since_best >= settings.patience", "since_best > settings.patience"),
            ("deepcopy(average.module.state_dict())", "deepcopy(model.state_dict())"),
            ("model.load_state_dict(best_weights)", "best_weights"),
            ("min(decay, (1 + t) / (10 + t))", "decay"),
            ("and not _among(weight, tokens)", ""),
            ('adjust_lr_fn="match_rms_adamw"', 'adjust_lr_fn="original"'),
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
    Mutant(
        "learner/ranker/known_logs.py",
        "self.dataset.impressions(self.part)",
        'self.dataset.impressions("test")',
        _CUT_OFFS,
    ),
    Mutant(
        "catalog/data/splits.py",
        "np.lexsort((is_row, *reversed(columns)))",
        "np.lexsort((~is_row, *reversed(columns)))",
        ("catalog/data/test_dataset.py",),
    ),
    Mutant("services/stages/prepare.py", "own = labels == PRETRAIN", "own = labels == labels", _CUT_OFFS),
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
