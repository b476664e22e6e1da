"""Mutants of tree decoding and of the tree engine, as (file, old, new, tests)."""

_DRAW = (
    ("keepdim=True) == -torch.inf", "keepdim=True) == torch.inf"),
    ("logits.sort(dim=-1)", "logits.sort(dim=-1, descending=True)"),
    ("<= 1 - top_p", "< top_p"),
    ("    out[..., -1] = False\n", ""),
    ("out.scatter(-1, token, out)", "out"),
    ("right=True).view_as(branch_BK)", "right=False).view_as(branch_BK)"),
    ("target_BK, right=True)", "target_BK)"),
    ("* width + branch_BK", "* width"),
    ("rank_BK.max()) + 1", "rank_BK.max())"),
    ("ascending_BK[:, :1].repeat", "ascending_BK[:, -1:].repeat"),
    ("scatter_(1, order_BK, rank_BK)", "copy_(rank_BK)"),
    ("totals_BWC + noise_BWC", "totals_BWC - noise_BWC"),
    ("totals_BWC + noise_BWC", "noise_BWC"),
    ("torch.log(-torch.expm1(shifted", "torch.log(torch.exp(shifted"),
    ("shifted.amax(dim=-1, keepdim=True)", "shifted.amax()"),
    ("shifted + gap", "shifted - gap"),
    ("[..., None] - shifted + gap", "[..., None] + shifted + gap"),
    ("largest_BW[..., None] - difference.clamp", "largest_BW[..., None] + difference.clamp"),
    ("difference.clamp(min=0) - torch.log1p", "difference.clamp(min=0) + torch.log1p"),
    ("difference.clamp(min=0)", "difference"),
    ("torch.exp(-difference.abs())", "torch.exp(-difference)"),
    (".masked_fill(~torch.isfinite(totals_BWC), -torch.inf)", ""),
    ("totals - kappa", "kappa - totals"),
    ("log_rate < -30, log_rate,", "log_rate < -60, log_rate,"),
    ("-torch.expm1(-torch.exp(log_rate", "torch.exp(-torch.exp(log_rate"),
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
    ("least * self.lengths_R", "2 * self.lengths_R"),
    ("+ self.known_R[row_P]", ""),
    ("<= until_RS1)", "< until_RS1)"),
    ("torch.from_numpy(known_R).to(device)[:, None, None] + at_S1", "at_S1[None]"),
    ("is_causal=self._mask_R1ST is None", "is_causal=False"),
    ('self._index("packed", heads)', 'self._index("rows", heads)[: len(self._index("packed", heads))]'),
    ("first in range(0, heads, together)", "first in range(0, heads - together, together)"),
    ("self._full = int(geometry.new_R.min()) == geometry.longest", "self._full = True"),
    ("np.clip(at_T - known_R1, 0, new_R1 - 1)", "np.clip(at_T, 0, new_R1 - 1)"),
    ("+= later_UU[:width, :width]", "+= 0"),
    ("queries_RHTE.to(dtype) * scale", "queries_RHTE.to(dtype)"),
    ("<= past_Y1)", "< past_Y1)"),
    ("keys, values = keys[self._row_Y], values[self._row_Y]", "keys, values = keys[0 * self._row_Y], values"),
    ("= source_RGTE[where.row,", "= source_RGTE[0,"),
    ("repeat_interleave(heads // groups, dim=1)", "repeat(1, heads // groups, 1, 1)"),
    (">= lengths_B[:, None, None]", "> lengths_B[:, None, None]"),
    (">= lengths_B[:, None, None]", ">= lengths_B[:, None, None] - 1"),
    ("index_select(0, self._parent_P)", "narrow(0, 0, len(self._parent_P))"),
    ("(first_B1 + parent_BW)", "parent_BW"),
    ("queries_PGQE = (queries_PHE * scale)", "queries_PGQE = queries_PHE"),
    ("(old.index_select(0", "(0 * old.index_select(0"),
    ("read_PGQE += read_BGWQE", "read_PGQE = read_BGWQE"),
)

_FORWARD = (
    ("predicting_Y if index == last else None", "None"),
    ("return projected[..., rows]", "return projected"),
    ("return onednn_linear(x, weight, bias)", "return linear(x, weight, None)"),
    (
        "x_PD, angles = x_PD[chosen_Y], (angles[0][chosen_Y], angles[1][chosen_Y])",
        "x_PD = x_PD[chosen_Y]",
    ),
    ("torch.cat([-first, second], dim=-1)", "torch.cat([first, -second], dim=-1)"),
    ("index == 0 and 2 * vocabulary", "2 * vocabulary"),
    ("tokens_P if chosen_Y is None else tokens_P[chosen_Y]", "tokens_P"),
    ("normed_PD if chosen_Y is None or by_token else", "normed_PD if chosen_Y is None else"),
    ("square_().div_(x.shape[-1])", "square_()"),
    ("if hasattr(attn, norm) else heads", "if False else heads"),
    ("return _norm(decoder.norm, x_PD)", "return x_PD"),
    ("read_PHE.flatten(1))", "0 * read_PHE.flatten(1))"),
    ('kind != "full_attention" for kind in kinds', "False for kind in kinds"),
    ("if predicting_Y is None else hidden_PD[predicting_Y]", ""),
    ("if sorted(attended) != list", "if False and sorted(attended) != list"),
    ("        config._attn_implementation = before\n", ""),
    ("if sliding_window is not None or softcap is not None:", "if sliding_window is not None:"),
    ("if sliding_window is not None or softcap is not None:", "if softcap is not None:"),
)

_PREFIX = (
    ("range(1 + stride, tokens + 1, stride)", "range(1, tokens + 1, stride)"),
    ("self._items(tokens[:limit])", "self._items(tokens)"),
    ("if length < _LEAST_SHARE * len(tokens):", "if length == 0:"),
    ("                self._last = max(self._last, number)\n", ""),
    ("np.argsort(fresh_first)[row_B]", "row_B"),
    ("-new % unit", "0"),
    ("np.where(known_R == 0, lengths_R.max() - lengths_R, 0)", "lengths_R"),
    ("row=row, length=length)", "row=0, length=length)"),
    ("while self.nbytes > self._max_bytes:", "while False:"),
    ("if batch.nbytes > self._max_bytes:", "if False:"),
    ("int(tensors) + _start_bytes", "int(tensors) + 0 * _start_bytes"),
    ("        self.nbytes -= batch.nbytes\n", ""),
    ("+ sum(_start_bytes(len(tokens), self._stride) for tokens in rows)", ""),
    ("_TOKEN_BYTES * (len(starts) + starts[-1])", "_TOKEN_BYTES * starts[-1]"),
    ("self._places[number][0] is batch:", "True:"),
    ("lengths_B - 1)\n        hits", "lengths_B)\n        hits"),
    ("np.minimum.at(limit_R", "np.maximum.at(0 * limit_R"),
    ("+ end_B - geometry.known_R[row_B]", "+ end_B"),
    ("cache.add(rows, attention.keys, attention.values)", "pass"),
    ("kept if one_each else", "kept if len(row_B) == len(kept[0]) else"),
    (" | (this == -1)", ""),
    ("np.lexsort((prompt_R, -lengths_B[prompt_R]))", "np.lexsort((prompt_R, lengths_B[prompt_R]))"),
    ("np.where(past_BT, -1, history_BT)", "history_BT"),
)

_DECODE = (
    ("if self.cache is not None:\n            self.cache.clear()", "pass"),
    (
        "total_BW[..., None] + log_p_BWC\n            total_BW, flat_BW",
        "log_p_BWC\n            total_BW, flat_BW",
    ),
    ("flat_BW, branch_BK = distinct_values(branch_BK *", "flat_BW, branch_BK = distinct(0 * branch_BK *"),
    ("count + 1, perturbed_BWC", "count, perturbed_BWC"),
    ("value=-torch.inf)[:, count : count + 1]", "value=-torch.inf)[:, count - 1 : count]"),
    ("largest_BW = self._gumbel(streams, 1)", "largest_BW = 0 * self._gumbel(streams, 1)"),
    ("total_BW = total_BWC.flatten(1).gather(1, flat_BW)", "total_BW = largest_BW"),
    ("/ self._decoding.temperature\n", "* self._decoding.temperature\n"),
    (
        "return log_softmax(logits)[..., codes].masked_fill",
        "return log_softmax(logits[..., codes]).masked_fill",
    ),
    ("logits = logits.masked_fill_(~allowed_BWC, -torch.inf)", "pass"),
    ("self._decoding.constrained and over_allowed", "over_allowed"),
    (
        "choice_BW + self._decoder.layout.level_offsets[level] if self._decoding.constrained",
        "choice_BW if self._decoding.constrained",
    ),
    (
        "self._node_BW.gather(1, parent_BW), choice_BW)",
        "self._node_BW[:, :1].expand_as(parent_BW), choice_BW)",
    ),
    ("parent_BW if level else None", "None"),
    ("self._prefix.lengths_B[:, None] + level)", "self._prefix.lengths_B[:, None] + level + 1)"),
    ("_pick(self._log_probs_BWl, parent_BW), log_p", "_pick(self._log_probs_BWl, 0 * parent_BW), log_p"),
    ("_pick(self._tokens_BWl, parent_BW), token", "_pick(self._tokens_BWl, 0 * parent_BW), token"),
    ("if excluded is not None and not decoding.constrained:", "if False:"),
    ("project_tokens(self._head, hidden, tokens)", "project(self._head, hidden)"),
    ("self.level, self._decoding.top_p\n", "self.level, 1.0\n"),
)

# Which kind of decoding is which method, seen by the engine alone.
_BY_KIND = (
    ("renormalise=True)", "renormalise=False)"),
    ('if decoding.kind == "beam":', "if False:"),
    ('if decoding.kind == "stochastic_beam":', "if False:"),
)

_ENGINE = (
    ("len(chosen) < self._per_step:", "True:"),
    ("if own_decoding == decoding and", "if True and"),
    (" and own_catalogue is catalogue:", ":"),
    ("self._decoder.catalogue = catalogue\n", "pass\n"),
    ("extendleft(reversed(later))", "extendleft(later)"),
    ("            self._decoder.forget()\n        self._loaded", "            pass\n        self._loaded"),
    ("        if names:\n            self._decoder", "        if True:\n            self._decoder"),
    ("weights.tensors(names)", "weights.tensors()"),
    ("weights.changed(self._loaded)", "weights.changed(())"),
    ("self._loaded, self._version = weights.manifest, weights.version", "self._loaded = weights.manifest"),
    ("self._loaded, self._version = weights.manifest, weights.version", "self._version = weights.version"),
    ("[request.excluded for request in requests] if decoding.constrained else None", "None"),
    ('f"{self._seed}/{request.request_id}"', 'f"{request.request_id}"'),
    ('f"{self._seed}/{request.request_id}"', 'f"{self._seed}"'),
    ("decode(prefix, decoding, streams", "decode(prefix, self._decoding, streams"),
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
    ("request.request_id in in_flight or", "False or"),
    (" or request.request_id in names", ""),
    ("needed = decoding.distinct", "needed = 1"),
    ("if known.get(name) != shape:", "if False:"),
    ("    if absent:", "    if False:"),
    ("later.version <= before.version", "later.version < before.version"),
    ("if later.layout != before.layout:", "if False:"),
)

_SETTINGS = (
    *((f"            {name}=self.{name},\n", "") for name in ("kind", "temperature", "top_p")),
    ("        self.decoding(exclude_seen=False)\n        return self", "        return self"),
    ("exclude_seen if self.constrained is None else", ""),
    ("exclude_seen if self.constrained is None else self.constrained", "exclude_seen"),
    ("exclude_seen if self.constrained is None", "True if self.constrained is None"),
)

_DECODING = (
    ("self.temperature != 1.0 or", "False or"),
    ("or self.top_p != 1.0", "or False"),
    ('self.kind == "beam" and', "True and"),
    ('self.kind == "stochastic_beam" and', 'self.kind != "beam" and'),
    ("self.candidates + 1 if", "self.candidates if"),
    ("return 1 if", "return self.candidates if"),
    ('return self.kind != "beam"', 'return self.kind == "sample"'),
)

TREE_MUTANTS = tuple(
    (file, old, new, tests)
    for file, tests, edits in (
        ("learner/decoding/draw.py", ("learner/decoding/test_draw.py",), _DRAW),
        ("learner/decoding/device_trie.py", ("learner/decoding/test_device_trie.py",), _TRIE),
        (
            "learner/decoding/attention.py",
            ("learner/decoding/test_prefix.py", "learner/decoding/test_tree.py"),
            _ATTENTION,
        ),
        ("learner/decoding/forward.py", ("learner/decoding/test_forward.py",), _FORWARD),
        ("learner/decoding/prefix.py", ("learner/decoding/test_prefix.py",), _PREFIX),
        (
            "learner/decoding/tree.py",
            ("learner/decoding/test_tree.py", "learner/decoding/test_prefix.py"),
            _DECODE,
        ),
        ("learner/decoding/tree.py", ("actors/engines/test_tree.py",), _BY_KIND),
        ("actors/engines/tree.py", ("actors/engines/test_tree.py",), _ENGINE),
        ("actors/settings.py", ("actors/test_settings.py",), _SETTINGS),
        ("catalog/decoding.py", ("catalog/test_decoding.py",), _DECODING),
        ("actors/engines/checks.py", ("actors/engines/test_tree.py",), _CHECKS),
    )
    for old, new in edits
)
