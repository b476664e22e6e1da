"""Mutants of the ranker's side: its contract, heads, spread, calibration, baselines, the stratified analysis,
what batches carry.
"""

HEADS, RANKER, FIT = "learner/ranker/heads.py", "learner/ranker/model.py", "learner/ranker/fit.py"
CALIBRATION, QUALITY = "learner/ranker/calibration.py", "learner/ranker/quality.py"
STACK, ITEM_MODELS = "learner/ranker/stack.py", "learner/ranker/item_models.py"
KNOWN_LOGS = "learner/ranker/known_logs.py"
STRATIFIED, COLLATE = "learner/evaluation/stratified.py", "learner/batches/collate.py"

_HEADS = (
    ("match + self.user(states)[..., 0] + self.item[items]", "match + self.user(states)[..., 0]"),
    (
        "match + self.user(states)[..., 0] + self.item[items]",
        "match - self.user(states)[..., 0] + self.item[items]",
    ),
    ("transformed.std(correction=0)", "transformed.std(correction=1)"),
    ("deviation if deviation > 0 else 1.0", "deviation"),
    ("known = ~outcomes.isnan()", "known = outcomes.isnan()"),
    ("/ known.sum().clamp(min=1)", "/ known.sum()"),
    ("/ known.sum().clamp(min=1)", "/ len(known)"),
    ("self.mean + self.deviation * z", "self.mean + z"),
    ("self.mean + self.deviation * z", "self.mean - self.deviation * z"),
    (
        "(z - (self.transform(outcomes) - self.mean) / self.deviation)",
        "(z - (self.transform(outcomes) - self.mean))",
    ),
    (
        "(z - (self.transform(outcomes) - self.mean) / self.deviation)",
        "(z - (outcomes - self.mean) / self.deviation)",
    ),
    ("- self.expected(z.double())).exp()", "+ self.expected(z.double())).exp()"),
    ("(self.expected(z).exp() * self.smearing - 1)", "(self.expected(z).exp() - 1)"),
    ("(self.expected(z).exp() * self.smearing - 1)", "(self.expected(z).exp() * self.smearing)"),
    (".clamp(min=0)", ""),
    ("return outcomes.log1p()", "return outcomes.log()"),
    ("(outcomes.double().sum() + 1) / (len(outcomes) + 2)", "outcomes.double().mean()"),
    ("torch.sigmoid(z + torch.logit(self.mean))", "torch.sigmoid(z - torch.logit(self.mean))"),
    ("binary_cross_entropy_with_logits(z + torch.logit(self.mean)", "binary_cross_entropy_with_logits(z"),
)

_RANKER = (
    ("scores_nBC.std(0, correction=1)", "scores_nBC.std(0, correction=0)"),
    ("scores_nBC.std(0, correction=1)", "scores_nBC.var(0, correction=1)"),
    ('{"scores": scores_nBC.mean(0)}', '{"scores": scores_nBC.sum(0)}'),
    ("if values is not None]).mean(0)", "if values is not None]).sum(0)"),
    ("outcome.value(outcome(states", "outcome.expected(outcome(states"),
    ("np.where(padding, nan, value.cpu().numpy())", "value.cpu().numpy()"),
    ("logs.rows & ~np.isnan(values)", "~np.isnan(values)"),
    ("settings.head_weights[column] > 0 and ", ""),
    (
        "reward if reward is not None and reward in members[0].heads else None",
        "next(iter(members[0].heads), None)",
    ),
)

_FIT = (
    ("- included_C.log()", "+ included_C.log()"),
    ("- included_C.log()", ""),
    ("(1 - 1 / pad) ** settings.negatives", "(1 / pad) ** settings.negatives"),
    ("included_C = 1 - left_out", "included_C = left_out"),
    ("** len(positives_P)", ""),
    ("loss + settings.head_weights[column] * head.loss", "loss + head.loss"),
    ("padding_value=torch.nan\n    )[:, 1:]", "padding_value=torch.nan\n    )[:, :-1]"),
)

_CALIBRATION = (
    ("np.abs(self.predicted - self.observed)", "(self.predicted - self.observed)"),
    ("np.abs(self.predicted - self.observed)", "(self.predicted - self.observed) ** 2"),
    ("self.events / self.events.sum() *", "1 / len(self.events) *"),
    ('side="left"', 'side="right"'),
    ('method="inverted_cdf"', 'method="higher"'),
    ("np.arange(1, bins) / bins", "np.arange(0, bins) / bins"),
    ("mean_predicted, mean_observed =", "mean_observed, mean_predicted ="),
)

_QUALITY = (
    ("weights[items] / weights.sum()", "weights[items] / weights[items].sum()"),
    ("np.argsort(-weights", "np.argsort(weights"),
    ("min(top, np.count_nonzero(known))", "top"),
    ("happened.append(items == target)", "happened.append(items != target)"),
    ("np.sqrt(np.mean((value - actual)[known] ** 2))", "np.mean((value - actual)[known] ** 2)"),
    ("fitted = has_one & log.fitted", "fitted = has_one"),
    ("user_from + log.positions[rows])", "user_from + log.positions[rows] + 1)"),
    ("by_item[log.items[rows]]", "by_item[log.items[rows - 1]]"),
)

_IMPRESSIONS = (
    (FIT, "torch.zeros_like(z_M)", "torch.ones_like(z_M)"),
    (FIT, 'shown is not None and column == "click"', "False"),
    (FIT, "items_BT if shown is not None else", "items_BT if shown is None else"),
    (RANKER, "torch.zeros(len(logs.impressions))", "torch.zeros(0)"),
    (KNOWN_LOGS, "[np.sort(window) for window in rows]", "rows"),
    (KNOWN_LOGS, "shown.positions - 1\n", "shown.positions\n"),
    (KNOWN_LOGS, "shown.where(shown.positions > 0)", "shown.where(shown.positions >= 0)"),
    (KNOWN_LOGS, "shown.positions < self.lengths[shown.users]", "shown.positions >= 0"),
    (QUALITY, 'impressions=column == "click"', "impressions=False"),
    (
        KNOWN_LOGS,
        "self.item_counts() + np.bincount(self.impressions.items",
        "0 * np.bincount(self.impressions.items",
    ),
    (QUALITY, "counts = logs.exposures()", "counts = -logs.exposures()"),
    (QUALITY, 'decile_of[np.argsort(counts, kind="stable")]', "decile_of[:]"),
    (QUALITY, "(shown.parts == SPLITS.index(split))", "(shown.parts <= SPLITS.index(split))"),
    (QUALITY, '"fitted": shown.parts <= SPLITS.index(until)', '"fitted": shown.parts < 0'),
)

_STRATIFIED = (
    ("np.log2(before / after)", "np.log2(after / before)"),
    ("np.log2(before / after)", "(before / after)"),
    ("ranks == 0, width + 1, ranks)", "ranks == 0, width, ranks)"),
    ("judged.ranks == 0, judged.width + 1, judged.ranks)", "judged.ranks == 0, judged.width, judged.ranks)"),
    (
        "np.exp(np.bincount(owner, weights=logs) / np.bincount(owner))",
        "np.exp(np.bincount(owner, weights=logs))",
    ),
    ("np.where(known[place] == users, means[place], np.nan)", "means[place]"),
    ("9)\n    place", "17)\n    place"),
    ("((ranks >= 1) & (ranks <= TOP)).astype", "(ranks <= TOP).astype"),
    ("((ranks >= 1) & (ranks <= TOP)).astype", "((ranks >= 1) & (ranks < TOP)).astype"),
    ("(ranks > TOP) & (ranks <= width)", "(ranks >= TOP) & (ranks <= width)"),
    ("(ranks > TOP) & (ranks <= width)", "(ranks > TOP) & (ranks < width)"),
    ("(mean_ranks(judged, users) for judged in defining)", '(results["start"].ranks for judged in defining)'),
    ('hits["best"] - hits["control"]', 'hits["control"] - hits["best"]'),
    ("bootstrap_mean(change, users[inside])", "bootstrap_mean(change, np.arange(len(change)))"),
    ("if members >= FEWEST_USERS", "if True"),
    ("len(np.unique(users[inside]))", "int(inside.sum())"),
    ("admitted[inside].mean()", "admitted.mean()"),
    ("np.append(own, targets[row])", "own"),
    ("setdiff1d(shown, np.append(own, targets[row]))", "setdiff1d(shown, targets[row : row + 1])"),
    ("if dataset.settings.exclude_seen:", "if False:"),
    ("places = -torch.arange", "places = torch.arange"),
    ('Decoding(kind="beam", candidates', "Decoding(candidates"),
    ("target_scores_B=scores[:, 0]", "target_scores_B=scores[:, 1]"),
    ("scores[:, 1 + beams :]", "scores[:, beams:]"),
)

_COLLATE = (
    ("if unknown.all():", "if unknown.any():"),
    ("    if unknown.any():\n        raise", "    if False:\n        raise"),
    ("[items_BK < 0, items_BK >= len(shares)], [np.nan, 0.0]", "[items_BK >= len(shares)], [0.0]"),
    ("[items_BK < 0, items_BK >= len(shares)], [np.nan, 0.0]", "[items_BK < 0], [np.nan]"),
    (
        "np.asarray([g.user for g in decoded]), np.asarray([g.position for g in decoded])",
        "np.asarray([g.position for g in decoded]), np.asarray([g.user for g in decoded])",
    ),
    ("_logged_rewards(dataset, examples.users, examples.positions)", "None"),
    (
        '_if_known(decoded, "target_value", "candidate_values")',
        '_if_known(decoded, "target_spread", "candidate_values")',
    ),
    (
        '_if_known(decoded, "target_spread", "candidate_spread")',
        '_if_known(decoded, "target_score", "candidate_spread")',
    ),
)

_STACK = (
    ("self.weights[name] * score_part(", "score_part("),
    ("bounds=[(0, None)]", "bounds=[(None, None)]"),
    ("(fitted.x / scale)", "fitted.x"),
    ("no_rival = candidates == targets[:, None]", "no_rival = np.zeros(candidates.shape, dtype=bool)"),
    ("if dataset.settings.exclude_seen:", "if False:"),
    ("return np.where(candidates < 0, np.float32(np.nan), scores)", "return scores"),
    ('self.weights["sequence"] * known.spread', "known.spread"),
    ("scores_BN.mean(axis=1, keepdims=True)", "scores_BN.max(axis=1, keepdims=True)"),
)

_ITEM_MODELS = (
    ("gram[np.diag_indices(items)] += settings.l2", "pass"),
    ("weights /= -diagonal", "weights /= -diagonal[:, None]"),
    ("weights[row, :row] = weights[:row, row]", "pass"),
    ("bags.data[:] = 1.0", "pass"),
    ("history[-window:]", "history[:window]"),
    ("np.arange(len(h) - 1, -1, -1)", "np.arange(len(h))"),
    ("_BYTES_PER_PAIR * items**2 / 1e9", "_BYTES_PER_PAIR * items / 1e9"),
)

_KNOWN_LOGS = (
    ("lengths=self.lengths - out)", "lengths=self.lengths)"),
    ("np.maximum(1, ", "np.maximum(2, "),
    ("first = np.repeat(self.lengths - out, out)", "first = np.repeat(0 * out, out)"),
)

_TRIAL = (
    ("row[:count] = row[:count][::-1]", "pass"),
    ("not isinstance(version, str) or not version", "not isinstance(version, str)"),
    ("not isinstance(version, str) or not version", "not version"),
    ('if dtype.kind != "f":', "if False:"),
    ("given = questions.copied()", "given = questions"),
    ("if not _alike(scores, again):", "if False:"),
    ("if not _alike(expected, answer):", "if False:"),
    ("np.take_along_axis(scores, places, axis=1), _answer", "scores, _answer"),
    ("if not _alike(scores, alone):", "if False:"),
    ("    yield from _later(ask, questions)\n", ""),
    ("(candidates >= 0).sum(axis=1) - 1] = self.later_item", "(candidates >= 0).sum(axis=1) - 1] = 0"),
    ("scores is not None and not _alike(scores, answer.scores)", "False"),
    ("_TOLERANCE * float(np.ptp(known))", "0.0"),
    ("if one.version != other.version:", "if False:"),
    ("if not _alike(*answers):", "if False:"),
    ("return check_scores(questions.candidates, answer)", "return np.asarray(answer)"),
    ("return check_output(questions.candidates, answer)", "return answer"),
    ("and all(map(np.array_equal, given.histories, questions.histories))", ""),
    ('"candidates": np.array_equal(given.candidates, questions.candidates)', '"candidates": True'),
    (
        'if getattr(ranker, "needs_users", False):\n            parts',
        "if False:\n            parts",
    ),
    (
        'if getattr(ranker, "needs_users", False):\n        yield',
        "if False:\n        yield",
    ),
    ('hasattr(ranker, "needs_users") or', "True or"),
    ('hasattr(ranker, "needs_users") or', ""),
)

_POOL = (
    ("if len(self._bad) >= BAD_IN_A_ROW:", "if len(self._bad) > BAD_IN_A_ROW:"),
    ("self._bad = [] if bad is None else [*self._bad, bad]", "self._bad = [*self._bad, bad or str()]"),
    ("if answered and _is_the_rankers(error):", "if _is_the_rankers(error):"),
    ("or isinstance(error, ActorDiedError)", ""),
    ('getattr(error, "cause", error), RankerError)', "error, RankerError)"),
    ("            self._settle(None)\n", ""),
)

_AREAS = (
    ("learner/ranker/trial.py", _TRIAL, ("learner/ranker/test_trial.py",)),
    ("actors/ranker/pool.py", _POOL, ("actors/ranker/test_pool.py",)),
    (STACK, _STACK, ("learner/ranker/test_stack.py",)),
    (ITEM_MODELS, _ITEM_MODELS, ("learner/ranker/test_item_models.py",)),
    (KNOWN_LOGS, _KNOWN_LOGS, ("learner/ranker/test_known_logs.py",)),
    (HEADS, _HEADS, ("learner/ranker/test_heads.py",)),
    (RANKER, _RANKER, ("learner/ranker/test_quality.py",)),
    (FIT, _FIT, ("learner/ranker/test_quality.py",)),
    (CALIBRATION, _CALIBRATION, ("learner/ranker/test_calibration.py",)),
    (QUALITY, _QUALITY, ("learner/ranker/test_quality.py",)),
    (STRATIFIED, _STRATIFIED, ("learner/evaluation/test_stratified.py",)),
    (COLLATE, _COLLATE, ("learner/batches/test_collate.py",)),
)

RANKER_MUTANTS = (
    *((file, old, new, tests) for file, edits, tests in _AREAS for old, new in edits),
    *((file, old, new, ("learner/ranker/test_impressions.py",)) for file, old, new in _IMPRESSIONS),
)
