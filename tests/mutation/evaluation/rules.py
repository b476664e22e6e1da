"""Mutants of who is judged on what and by which rule: lists, cuts, breadth, intervals, selection."""

from tests.mutation.mutant import Mutant

EVALUATE, BASELINES = "learner/evaluation/evaluate.py", "learner/evaluation/baselines.py"
BREADTH, VALIDATION = "learner/evaluation/breadth.py", "learner/training/validation.py"
METRICS, PRETRAIN, LOOP = (
    "learner/ranking_metrics.py",
    "learner/training/pretrain.py",
    "learner/training/train_loop.py",
)
EXPOSURE = "learner/evaluation/exposure.py"
CODES = "catalog/data/semantic_ids.py"
IN_CUT_OFFS, IN_LOOP = ("services/stages/test_cut_offs.py",), ("learner/training/test_train_loop.py",)

_EVALUATE = (
    ("if dataset.settings.exclude_seen else None", "if False else None"),
    (
        "np.where(np.isfinite(ranked.log_probs_BW), vocabulary.trie.lookup(ranked.tokens_BWL), -1)",
        "vocabulary.trie.lookup(ranked.tokens_BWL)",
    ),
    ("(free_items[:, :TOP] < 0)", "(free_items[:, ::-1][:, :TOP] < 0)"),
    ("items[row, np.isin(items[row], seen)] = -1", "pass"),
    ("/ (len(self.users) * TOP)", "/ len(self.users)"),
    ("per_user(self.ranks, self.width)", "per_user(self.ranks)"),
)

_BASELINES = (
    ("np.argsort(-scores", "np.argsort(scores"),
    ("[:, :width]", ""),
    ("order, axis=1)), order, -1)", "order, axis=1)), order, order)"),
    ("score, width, whole_history=True)", "score, width)"),
)

_SCORES = (
    ("dataset.history(*pair, limit)", "dataset.history(*pair, 1)"),
    ("limit = None if whole_history else", "limit = None if True else"),
    ("rankable = np.isfinite(scores)", "rankable = np.ones_like(scores, dtype=bool)"),
    ("if dataset.settings.exclude_seen:", "if False:"),
)

_BREADTH = (
    ("np.argsort(-dataset.item_shares", "np.argsort(dataset.item_shares"),
    ("HEAD_SHARE = 0.1", "HEAD_SHARE = 0.2"),
    ("counts[head].sum() / places", "(counts[head] > 0).sum() / places"),
    ("-(shares * np.log(shares))", "(shares * np.log(shares))"),
    ("& (ordered[:, 1:] >= 0)", ""),
    ("_covered(shown[1]) - _covered(shown[0])", "_covered(shown[0]) - _covered(shown[1])"),
    ("stats.norm.ppf(0.5 + confidence / 2)", "stats.norm.ppf(0.975)"),
    ("_, owner = np.unique(users, return_inverse=True)", "owner = np.arange(len(users))"),
    ("changes[name][2] < 0", "changes[name][0] < 0"),
    ('falls("coverage") or (', "("),
    ('and changes["hr@1"][0] > 0', ""),
)

_METRICS = (
    ("confidence_level=confidence", "confidence_level=0.5"),
    ("width is None or k <= width", "True"),
    ("width is None or k <= width", "width is None or k < width"),
)

_OTHERS = (
    (
        EVALUATE,
        'fields["users"], fields["positions"]]',
        'fields["users"], fields["users"]]',
        ("learner/training/test_validation.py",),
    ),
    (
        VALIDATION,
        "UserResults.concatenate(parts)",
        "UserResults.concatenate(parts[:1])",
        ("learner/training/test_validation.py",),
    ),
    (PRETRAIN, 'dataset.examples("valid")', 'dataset.examples("test")', IN_CUT_OFFS),
    (PRETRAIN, "if validations[-1][metric] > best:", "if True:", IN_CUT_OFFS),
    (PRETRAIN, "if validations[-1][metric] > best:", "if validations[-1][metric] >= best:", IN_CUT_OFFS),
    (LOOP, 'self.dataset.examples("valid")', 'self.dataset.examples("test")', IN_LOOP),
    (LOOP, "is_best = score > self.best", "is_best = score >= self.best", IN_LOOP),
    (LOOP, "is_best = score > self.best", "is_best = True", IN_LOOP),
    (EXPOSURE, '("hr@10", "ndcg@10")', '("ndcg@10", "hr@10")', IN_LOOP),
    (LOOP, "self.validate_and_checkpoint(0)", "pass", IN_LOOP),
    (LOOP, "            if worker.out_of_patience:", "            if False:", IN_LOOP),
    ("learner/ranker/model.py", "history[-limit:]", "history[:limit]", ("learner/ranker/test_model.py",)),
    (CODES, "-popularity, *codes.T", "popularity, *codes.T", ("catalog/data/test_semantic_ids.py",)),
    (CODES, "np.maximum(values, 0, out=values)", "pass", ("catalog/data/test_semantic_ids.py",)),
    (
        "learner/batches/sources.py",
        'column("version_min")',
        'column("version_max")',
        ("learner/batches/test_sources.py",),
    ),
    (
        "actors/queue/ledger.py",
        "state.learner_version - entry.finished.version_min",
        "state.learner_version - entry.finished.version_max",
        ("actors/queue/test_ledger.py",),
    ),
)

_AREAS = (
    (EVALUATE, _EVALUATE, ("learner/evaluation/test_evaluate.py",)),
    (BASELINES, _BASELINES, ("learner/evaluation/test_baselines.py", "learner/evaluation/test_evaluate.py")),
    (
        "learner/full_catalogue.py",
        _SCORES,
        ("learner/evaluation/test_baselines.py", "learner/evaluation/test_evaluate.py"),
    ),
    (
        "learner/full_catalogue.py",
        (
            ("& earlier)", ")"),
            ("others[rows, self.targets] = False", "pass"),
            ("(self.scores == own)).sum(axis=1) / 2", "(self.scores == own)).sum(axis=1)"),
        ),
        ("learner/ranker/test_quality.py",),
    ),
    (BREADTH, _BREADTH, ("learner/evaluation/test_breadth.py",)),
    (METRICS, _METRICS, ("learner/test_ranking_metrics.py",)),
)

RULE_MUTANTS = (
    *(Mutant(file, old, new, tests) for file, edits, tests in _AREAS for old, new in edits),
    *(Mutant(file, old, new, tests) for file, old, new, tests in _OTHERS),
)
