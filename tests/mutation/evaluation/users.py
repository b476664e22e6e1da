"""Mutants of what is known of users: read by prepare, learned from by the ranker, and told to rankers."""

from tests.mutation.mutant import Mutant

_IN_PREPARE = ("services/stages/test_user_attributes.py",)
_IN_RANKER = ("learner/ranker/test_user_attributes.py",)

_EDITS = (
    (
        "services/stages/prepare.py",
        "self._user_attributes.get(user, [])",
        "self._user_attributes[user]",
        _IN_PREPARE,
    ),
    (
        "services/stages/log_checks.py",
        "    if with_attributes:\n        return\n",
        "    return\n",
        _IN_PREPARE,
    ),
    ("catalog/data/items.py", "len(texts) > MOST_VALUES", "len(texts) >= MOST_VALUES", _IN_PREPARE),
    ("services/stages/prepare.py", "sum(not texts for", "sum(bool(texts) for", _IN_PREPARE),
    (
        "catalog/data/sources.py",
        "(self.catalogue, self.users) if file",
        "(self.catalogue,) if file",
        _IN_PREPARE,
    ),
    (
        "learner/ranker/model.py",
        "nn.init.zeros_(self.user_embedding.weight)",
        "nn.init.normal_(self.user_embedding.weight, std=0.03)",
        _IN_RANKER,
    ),
    ("learner/ranker/model.py", "if fitted != known:", "if False:", _IN_RANKER),
    ("learner/ranker/model.py", "matrix.indices + 2", "matrix.indices + 1", _IN_RANKER),
    ("learner/ranker/model.py", "codes[counts == 0, 0] = 1", "pass", _IN_RANKER),
    ("learner/ranker/model.py", "strangers_B if users_B is None else users_B", "strangers_B", _IN_RANKER),
    ("learner/ranker/fit.py", 'side="right") - 1)', 'side="right"))', _IN_RANKER),
    (
        "learner/ranker/stack.py",
        "score_part(part, histories, candidates, users).astype",
        "score_part(part, histories, candidates).astype",
        _IN_RANKER,
    ),
    ("learner/ranker/contract.py", 'if not getattr(ranker, "needs_users", False):', "if True:", _IN_RANKER),
    (
        "learner/full_catalogue.py",
        "score.score(histories, users) if",
        "score.score(histories, users[::-1]) if",
        _IN_RANKER,
    ),
    (
        "actors/ranker/micro_batcher.py",
        "candidates[rows], users[rows]",
        "candidates[rows], users[: len(candidates[rows])]",
        ("actors/ranker/test_micro_batcher.py",),
    ),
    (
        "learner/trust/meter.py",
        "np.array([user for _, user, _ in keys])",
        "np.array([place for _, _, place in keys])",
        ("learner/trust/test_meter.py",),
    ),
    (
        "learner/evaluation/stratified.py",
        "examples.users[first : first + batch]",
        "examples.users[:batch]",
        ("learner/evaluation/test_stratified.py",),
    ),
)

USER_MUTANTS = tuple(Mutant(file, old, new, tests) for file, old, new, tests in _EDITS)
