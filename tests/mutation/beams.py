"""The mutants of the rollout side: beams and sampling without replacement, prompts, groups."""

BEAMS, IN_BEAMS = "actors/engines/vllm/beams.py", ("actors/engines/vllm/test_beams.py",)

BEAM_MUTANTS = (
    ("totals_W[:, None] + log_probs_WV", "log_probs_WV"),
    ("self.log_probs_Wl[parent_W], chosen_W", "self.log_probs_Wl[: len(parent_W)], chosen_W"),
    ("self.tokens_Wl[parent_W], token_W", "self.tokens_Wl[: len(parent_W)], token_W"),
    ("self._keep(values_WV.reshape(-1)[best])", "self._keep(np.sort(values_WV.reshape(-1)[best]))"),
    ("if len(self.tokens_Wl) < count:", "if len(self.tokens_Wl) <= count:"),
    ("if len(self.tokens_Wl) < count:", "if False:"),
    ("self.width = candidates + 1", "self.width = candidates"),
    ("self.width = candidates + 1", "self.width = candidates + 2"),
    ("self._perturbed_W = generator.gumbel(size=1)", "self._perturbed_W = np.zeros(1)"),
    ("self._generator.gumbel(size=totals_WV.shape)", "self._generator.gumbel(size=totals_WV.shape[1])"),
    ("self._generator.gumbel(size=totals_WV.shape)", "self._generator.normal(size=totals_WV.shape)"),
    ("self._perturbed_W = values_W\n", "pass\n"),
    ("self._perturbed_W[self._candidates :]", "self._perturbed_W[self._candidates - 1 :]"),
    ("rest[0] if len(rest) else -np.inf", "rest[0] if len(rest) else 0.0"),
    ("rest[0] if len(rest) else -np.inf", "-np.inf"),
    ("self.log_probs_Wl[:count].sum(axis=1, dtype=np.float64)", "self._perturbed_W[:count]"),
    ("flat = -values.reshape(-1)", "flat = values.reshape(-1)"),
    ('flat[best], kind="stable"', '-flat[best], kind="stable"'),
    ("return best[np.isfinite(flat[best])]", "return best"),
)

_GROUPS, _WORKER = "actors/rollout/groups.py", "actors/rollout/worker.py"
_IN_GROUPS, _IN_WORKER = ("actors/rollout/test_groups.py",), ("actors/rollout/test_worker.py",)
_IN_CONSUMED = ("actors/rollout/test_consumed_items.py",)

ROLLOUT_MUTANTS = (
    (_GROUPS, "np.maximum(known, _RAREST_SHARE)", "1.0", _IN_GROUPS),
    (
        _GROUPS,
        'np.where(generated < len(shares), shares.take(generated, mode="clip"), 0.0)',
        "shares.take(generated)",
        _IN_GROUPS,
    ),
    (_GROUPS, "_MIDDLE_OF * distractors if", "distractors if", _IN_GROUPS),
    (_GROUPS, "max(0, len(order) - keep) // 2", "0", _IN_GROUPS),
    (_GROUPS, "max(0, len(order) - keep) // 2", "max(0, len(order) - keep)", _IN_GROUPS),
    (_WORKER, "            draw=self._settings.distractor_draw,\n", "", _IN_WORKER),
    (_GROUPS, "excluded = seen[seen != target]", "excluded = seen", _IN_GROUPS),
    (_GROUPS, "excluded = seen[seen != target]", "excluded = seen", _IN_CONSUMED),
    (_GROUPS, "if dataset.settings.exclude_seen:", "if True:", _IN_GROUPS),
    (_GROUPS, "np.where(_in_rows(generated, excluded), -1, generated)", "generated", _IN_GROUPS),
    (_GROUPS, "np.where(_in_rows(generated, excluded), -1, generated)", "generated", _IN_CONSUMED),
    (_GROUPS, "(candidate_items < 0) & (generated >= 0)", "candidate_items < 0", _IN_GROUPS),
    (
        _GROUPS,
        "    keys[_in_rows(np.broadcast_to(generated, keys.shape), excluded)] = np.inf\n",
        "",
        _IN_GROUPS,
    ),
    (_WORKER, "left[prompt.lease.lease_id] < needed]", "left[prompt.lease.lease_id] <= needed]", _IN_WORKER),
    (_WORKER, "left[prompt.lease.lease_id] >= needed]", "True]", _IN_WORKER),
    (_WORKER, "if not self._decoding.constrained:", "if False:", _IN_WORKER),
    (_WORKER, 'self._count["invalid"] += len(short)', "pass", _IN_WORKER),
    ("catalog/trie/trie.py", "[np.unique(excluded)]", "[excluded]", ("catalog/trie/test_trie.py",)),
    (
        "catalog/trie/trie.py",
        "int((self.item_leaf[np.unique(excluded)] >= 0).sum())",
        "len(np.unique(excluded))",
        ("catalog/trie/test_trie.py",),
    ),
    (
        "learner/batches/sources.py",
        "consumed / batch.candidate_items_BK.numel()",
        "consumed / len(groups)",
        ("learner/batches/test_sources.py",),
    ),
)
