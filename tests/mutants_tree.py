"""Mutants of tree decoding and of the tree engine, as (file, old, new, tests)."""

_DRAW = (
    ("torch.where(torch.isfinite(total), total, 0.0)", "total"),
    ("logits.sort(dim=-1)", "logits.sort(dim=-1, descending=True)"),
    ("<= 1 - top_p", "< top_p"),
    ("    out[..., -1] = False\n", ""),
    ("out.scatter(-1, token, out)", "out"),
    ("right=True)[..., 0]", "right=False)[..., 0]"),
    ("target_BK, right=True)", "target_BK)"),
    ("shares_BWC.gather(1, branch_BK[..., None]", "shares_BWC.gather(1, 0 * branch_BK[..., None]"),
    ("rank_BK.max()) + 1", "rank_BK.max())"),
    ("ascending_BK[:, :1].repeat", "ascending_BK[:, -1:].repeat"),
    ("scatter_(1, order_BK, rank_BK)", "copy_(rank_BK)"),
    ("totals_BWC + noise_BWC", "totals_BWC - noise_BWC"),
    ("shifted + gap", "shifted - gap"),
    ("difference.clamp(min=0) - torch.log1p", "difference.clamp(min=0) + torch.log1p"),
    ("difference.clamp(min=0)", "difference"),
    (".masked_fill(~torch.isfinite(totals_BWC), -torch.inf)", ""),
    ("totals - kappa", "kappa - totals"),
    ("log_rate < -30, log_rate,", "log_rate < -60, log_rate,"),
    ('key=int.from_bytes(key, "little")', "key=0"),
)

_TRIE = (
    ("torch.where(node_R == DEAD, self._depth_start[level], node_R)", "node_R"),
    (" & (node_R != DEAD)[:, None]", ""),
    (".repeat_interleave(width)", ".repeat(width)"),
    ("[:, first : first + followed.shape[1]]", "[:, : followed.shape[1]]"),
    ("code_BW + self.layout.level_offsets[level]", "code_BW"),
)

_ATTENTION = (
    ("_LIKE_LENGTHS * self.lengths_R", "2 * self.lengths_R"),
    ("+ self.known_R[row_N]", ""),
    ("<= until_RS1)", "< until_RS1)"),
    ("torch.from_numpy(known_R).to(device)[:, None, None] + at_S1", "at_S1[None]"),
    ("is_causal=self._mask_R1ST is None", "is_causal=False"),
    ("index_select(0, self._place_N)", "narrow(0, 0, len(self._place_N))"),
    ("<= past_P1)", "< past_P1)"),
    ("[self._row_P].transpose(1, 2)", "[0 * self._row_P].transpose(1, 2)"),
    ("= source_RTGE[where.row,", "= source_RTGE[0,"),
    ("repeat_interleave(heads // groups, dim=1)", "repeat(1, heads // groups, 1, 1)"),
    (">= lengths_B[:, None, None]", "> lengths_B[:, None, None]"),
    (">= lengths_B[:, None, None]", ">= lengths_B[:, None, None] - 1"),
    ("index_select(0, self._parent_N)", "narrow(0, 0, len(self._parent_N))"),
    ("(first_B1 + parent_BW)", "parent_BW"),
    ("(queries_NHE * scale)", "queries_NHE"),
    ("torch.cat([old.index_select", "torch.cat([0 * old.index_select"),
    ("read_BWGQE = read_BWGQE + torch.einsum", "read_BWGQE = torch.einsum"),
)  # fmt: skip

_FORWARD = (
    ("wanted_P if index == last else None", "None"),
    ("x_ND, normed_ND = x_ND[chosen_P], normed_ND[chosen_P]", "x_ND = x_ND[chosen_P]"),
    ("torch.cat([-second, first], dim=-1)", "torch.cat([second, -first], dim=-1)"),
    ("if hasattr(attn, norm) else heads", "if False else heads"),
    ("return _norm(decoder.norm, x_ND)", "return x_ND"),
    ("read_NHE.flatten(1))", "read_NHE.flatten(1)) * 0"),
    ('kind != "full_attention" for kind in kinds', "False for kind in kinds"),
    ("if wanted_P is None else hidden_ND[wanted_P]", ""),
    ("if sorted(called) != list", "if False and sorted(called) != list"),
    ("        config._attn_implementation = own\n", ""),
    ("if sliding_window is not None or softcap is not None:", "if sliding_window is not None:"),
    ("if sliding_window is not None or softcap is not None:", "if softcap is not None:"),
)  # fmt: skip

_PREFIX = (
    ("range(1, limit + 1, self._stride)", "range(1, limit + 2, self._stride)"),
    ("in reversed(range(1, limit", "in (range(1, limit"),
    ("row=row, length=length)", "row=0, length=length)"),
    ("while self.nbytes > self._max_bytes:", "while False:"),
    ("        self.nbytes -= batch.nbytes\n", ""),
    ("batch.nbytes += len(start)", "pass"),
    ("self._found[start][0] is batch:", "True:"),
    ("lengths_B - 1)\n        found", "lengths_B)\n        found"),
    ("np.minimum.at(limit_R", "np.maximum.at(0 * limit_R"),
    ("+ end_B - geometry.known_R[row_B]", "+ end_B"),
    ("cache.add(rows, attention.keys, attention.values)", "pass"),
    ("part if one_each else", "part if len(row_B) == len(part) else"),
    (" | (this == -1)", ""),
    ("np.argsort(-lengths_B[prompt_R]", "np.argsort(lengths_B[prompt_R]"),
    ("np.where(past_BT, -1, history_BT)", "history_BT"),
)

_DECODE = (
    ("if self.cache is not None:\n            self.cache.clear()", "pass"),
    ("total_BW[..., None] + log_p_BWC\n            total_BW, flat_BW", "log_p_BWC\n            total_BW, flat_BW"),
    ("flat_BW, branch_BK = distinct(branch_BK *", "flat_BW, branch_BK = distinct(0 * branch_BK *"),
    ("count + 1, perturbed_BWC", "count, perturbed_BWC"),
    ("value=-torch.inf)[:, count : count + 1]", "value=-torch.inf)[:, count - 1 : count]"),
    ("largest_BW = self._gumbel(streams, 1)", "largest_BW = 0 * self._gumbel(streams, 1)"),
    ("total_BW = total_BWC.flatten(1).gather(1, flat_BW)", "total_BW = largest_BW"),
    ("/ temperature\n", "* temperature\n"),
    ("return log_softmax(logits)[..., codes].masked_fill", "return log_softmax(logits[..., codes]).masked_fill"),
    ("logits = logits.masked_fill_(~allowed_BWC, -torch.inf)", "pass"),
    ("self._constrained and over_allowed", "over_allowed"),
    ("choice_BW + self._decoder.layout.level_offsets[level] if self._constrained", "choice_BW if self._constrained"),
    ("self._node_BW.gather(1, parent_BW), choice_BW)", "self._node_BW[:, :1].expand_as(parent_BW), choice_BW)"),
    ("parent_BW if level else None", "None"),
    ("self._prefix.lengths_B[:, None] + level)", "self._prefix.lengths_B[:, None] + level + 1)"),
    ("_pick(self._log_probs_BWl, parent_BW), log_p", "_pick(self._log_probs_BWl, 0 * parent_BW), log_p"),
    ("_pick(self._tokens_BWl, parent_BW), token", "_pick(self._tokens_BWl, 0 * parent_BW), token"),
    ("if excluded is not None and not constrained:", "if False:"),
    ("None if head.bias is None else head.bias[tokens]", "None"),
    ("return head(hidden)[..., tokens].float()", "return head(hidden).float()"),
)  # fmt: skip

_ENGINE = (
    ("len(chosen) < self._per_step:", "True:"),
    ("if wanted == decode and", "if True and"),
    (" and known is catalogue:", ":"),
    ("self._decoder.catalogue = catalogue\n", "pass\n"),
    ("extendleft(reversed(later))", "extendleft(later)"),
    ("        self._decoder.forget()\n        self._version", "        self._version"),
    ("        self._version = weights.version\n", ""),
    ("renormalise=True", "renormalise=False"),
    ("[request.excluded for request in requests] if decode.constrained else None", "None"),
    ('f"{self._seed}/{request.request_id}"', 'f"{request.request_id}"'),
    ('f"{self._seed}/{request.request_id}"', 'f"{self._seed}"'),
    ('wanted = {"temperature": decode.temperature,', 'wanted = {"temperature": 1.0,'),
    ("top_p=decode.top_p, ", ""),
    ("self._names.difference_update(", "len("),
    ("if policy.layout != vocabulary.layout:", "if False:"),
    ("positions < needed:", "positions <= needed + 99:"),
    ("dtype=_DTYPES[engine.dtype]", "dtype=torch.float32"),
)

_CHECKS = (
    ("not 1 <= length <= max_prompt_tokens", "not 0 <= length <= max_prompt_tokens"),
    ("not 1 <= length <= max_prompt_tokens", "not 1 <= length"),
    ("high >= layout.vocab_size", "high > layout.vocab_size"),
    ("available < needed", "available <= needed"),
    ('needed = 1 if decode.kind == "sample" else', "needed = 1 if True else"),
    ("    weights.verify()\n", ""),
    ("if known.get(name) != shape:", "if False:"),
    ("    if absent:", "    if False:"),
    ("later.version <= before.version", "later.version < before.version"),
    ("if later.layout != before.layout:", "if False:"),
)

TREE_MUTANTS = tuple(
    (file, old, new, tests)
    for file, tests, edits in (
        ("learner/tree_draw.py", ("test_tree_draw.py",), _DRAW),
        ("learner/tree_trie.py", ("test_tree_trie.py",), _TRIE),
        ("learner/tree_attention.py", ("test_tree_prefix.py", "test_tree_decode.py"), _ATTENTION),
        ("learner/tree_forward.py", ("test_tree_forward.py",), _FORWARD),
        ("learner/tree_prefix.py", ("test_tree_prefix.py",), _PREFIX),
        ("learner/tree_decode.py", ("test_tree_decode.py", "test_tree_prefix.py"), _DECODE),
        ("actors/tree_engine.py", ("test_tree_engine.py",), _ENGINE),
        ("actors/engine_checks.py", ("test_tree_engine.py",), _CHECKS),
    )
    for old, new in edits
)
