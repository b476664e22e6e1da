"""Mutants of the gate by user: places, draws, meter, halves, and what trust does to the gate."""

from tests.mutation.mutant import Mutant

PLACES, METER, HALVES = "learner/trust/places.py", "learner/trust/meter.py", "learner/trust/halves.py"
GATE, SETTINGS = "learner/gate/gate.py", "learner/gate/settings.py"

_PLACES = (
    ("(others < own)", "(others > own)"),
    ("0.5 * (others == own)", "(others == own)"),
    ("(~np.isnan(others)).sum(axis=1)", "others.shape[1]"),
    ("own = np.unique(own)", "own = np.sort(own)"),
    ("total = int(self._ends[-1] - skipped[-1])", "total = int(self._ends[-1])"),
    ('starts, numbers, side="right"', 'starts, numbers, side="left"'),
    ('self._ends, numbers, side="right"', 'self._ends, numbers, side="left"'),
    ("- widths - skipped[:-1]", "- widths"),
    ("zlib.crc32(version.encode()), user, position", "0, user, position"),
    ("zlib.crc32(version.encode()), user, position", "zlib.crc32(version.encode()), user"),
)

_METER = (
    (
        "range(max(1, position - self._settings.items), position)",
        "range(max(1, position - self._settings.items), position + 1)",
    ),
    ("max(1, position - self._settings.items)", "max(1, position - self._settings.items - 1)"),
    ("max(1, position - self._settings.items)", "max(0, position - self._settings.items)"),
    (">= self._settings.at_least", "> self._settings.at_least"),
    ("if not np.isnan(place := places[key])", "if (place := places[key]) is not None"),
    (
        "dataset.history(user, position, dataset.settings.max_history)",
        "dataset.history(user, position + 1, dataset.settings.max_history)",
    ),
    (
        "dataset.history(user, position, dataset.settings.max_history)",
        "dataset.history(user, position, None)",
    ),
    ("max(position + 1, int(self._known[user]))", "position + 1"),
    ("max(position + 1, int(self._known[user]))", "int(self._known[user])"),
    ("max(position + 1, int(self._known[user]))", "max(position, int(self._known[user]))"),
    ("return self._rankers[half].version, user, position", "return self._rankers[half].version, user, 0"),
    ("return self._rankers[half].version, user, position", 'return "", user, position'),
    (
        "missing[half_of(self._dataset.user_ids[key[1]])]",
        "missing[1 - half_of(self._dataset.user_ids[key[1]])]",
    ),
    ("self._places.move_to_end(key)", "pass"),
    ("self._places.popitem(last=False)", "self._places.popitem(last=True)"),
    ("while len(self._places) > self._remember", "while len(self._places) > 9 * self._remember"),
    ("KnownLogs.until(dataset, until)", 'KnownLogs.until(dataset, "test")'),
    ("scores = check_scores(candidates, ask", "scores = (lambda _, scores: scores)(candidates, ask"),
)

_HALVES = (
    (HALVES, "half_of(user_id) == half", "half_of(user_id) != half"),
    (HALVES, 'settings.use != "builtin" and not can', 'settings.use != "builtin" or not can'),
    ("learner/trust/fit.py", "logs.without(users_of(dataset, half))", "logs"),
    ("learner/ranker/known_logs.py", "lengths[users] = 0", "lengths[users] = 1"),
    ("learner/ranker/known_logs.py", "lengths = self.lengths.copy()", "lengths = self.lengths"),
    ("learner/ranker/load.py", "options[_WITHOUT_USERS] = without_users", "pass"),
)

_GATE = (
    (GATE, "trust_B > settings.above", "trust_B >= settings.above"),
    (GATE, "(2 * trust_B - 1).clamp(min=0.0)", "(2 * trust_B - 1)"),
    (GATE, "(2 * trust_B - 1).clamp(min=0.0)", "trust_B"),
    (GATE, "parts_B[settings.parts] * trust_B", "parts_B[settings.parts]"),
    (GATE, 'settings.parts in ("both", "difficulty") else', 'settings.parts in ("both",) else'),
    (GATE, "torch.ones_like(difficulty_B)", "discriminability_B"),
    (SETTINGS, "if self.at_least > self.items", "if self.at_least > self.items + 1"),
    (SETTINGS, 'if self.parts == "trust" and self.trust is None', "if False"),
    ("learner/objectives/adagrpo.py", '("discriminability", "trust")', '("discriminability",)'),
    (
        "learner/objectives/adagrpo.py",
        '"trust": mean_of(result.trust_B, known_B)',
        '"trust": mean_of(result.trust_B.nan_to_num())',
    ),
    ("learner/objectives/adagrpo.py", ">= 0.5, known_B)", ">= 0.5)"),
)

_AREAS = (
    *((PLACES, old, new, ("learner/trust/test_places.py",)) for old, new in _PLACES),
    *((METER, old, new, ("learner/trust/test_meter.py",)) for old, new in _METER),
    *((file, old, new, ("learner/trust/test_halves.py",)) for file, old, new in _HALVES),
    *((file, old, new, ("learner/gate/test_trust.py",)) for file, old, new in _GATE),
    (
        "learner/batches/collate.py",
        "group.trust for group in groups if group.trust is not None",
        "group.trust or 0.0 for group in groups",
        ("learner/batches/test_collate.py",),
    ),
    (
        "actors/ranker/micro_batcher.py",
        "replace(whole, trust=await self._measure_trust(self._meter, batch))",
        "replace(whole, trust=(await self._measure_trust(self._meter, batch))[::-1])",
        ("actors/ranker/test_micro_batcher.py",),
    ),
    (
        "learner/ranker/output.py",
        "self.trust[chosen].copy()",
        "self.trust[:rows].copy()",
        ("actors/ranker/test_micro_batcher.py",),
    ),
    (
        "services/stages/fit_ranker.py",
        "    if with_halves:\n        build_once",
        "    if True:\n        build_once",
        ("services/stages/test_fit_ranker.py",),
    ),
    (
        "learner/ranker/wrong_for_some.py",
        "logs = logs.without(without_users)",
        "pass",
        ("learner/trust/test_halves.py",),
    ),
    (
        "services/run/fleet.py",
        "meter_factory=meter_factory(config, paths, open_dataset),",
        "meter_factory=None,",
        ("services/run/test_trust.py",),
    ),
    (
        "services/preflight/ranker_process.py",
        'question["trust"] and not without_users',
        "not without_users",
        ("services/preflight/test_ranker.py",),
    ),
)

TRUST_MUTANTS = tuple(Mutant(*mutant) for mutant in _AREAS)
