"""Mutants of the trie, its exclusions and the catalogue's versions."""

TRIE, BUILD, TENSORS = "catalog/trie/trie.py", "catalog/trie/build.py", "catalog/trie/tensors.py"
EXCLUSIONS, VOCABULARY, COLLATE = (
    "catalog/trie/exclusions.py",
    "catalog/trie/vocabulary.py",
    "learner/batches/collate.py",
)
_IN_TRIE = ("catalog/trie/test_trie.py", "catalog/trie/test_tensors.py")
_IN_TENSORS = ("catalog/trie/test_tensors.py",)
_IN_VOCABULARY = ("catalog/trie/test_vocabulary.py",)

_BUILD = (
    ("live[retired] = False", "pass", _IN_VOCABULARY),
    ("if len(distinct) < len(order):", "if False:", ("catalog/trie/test_trie.py",)),
    ("    packed <<= row_bits\n", "", _IN_TRIE),
    ("packed |= tokens[part, level] - low[level]", "packed |= tokens[part, level]", _IN_TRIE),
    ("keys.partition(", "len(", _IN_TENSORS),
    (
        "packed |= np.arange(part.start, part.stop)",
        "packed |= np.arange(part.stop - part.start)",
        _IN_TENSORS,
    ),
    ("extremes[..., 0].min(axis=0)", "extremes[..., 0].max(axis=0)", _IN_TENSORS),
    ("within = slice(part.start, min(part.stop, len(order)))", "within = part", _IN_TENSORS),
    ("= np.arange(within.start, max(", "= np.arange(0, max(", _IN_TENSORS),
    ("sum(level_bits) + row_bits > _KEY_BITS", "False", _IN_TRIE),
    ("tokens.T[::-1]", "tokens.T", _IN_TRIE),
    ("changed[1:] |= column", "changed[1:] = column", _IN_TRIE),
    ("most_children[level] = counts.max()", "most_children[level] = counts.min()", _IN_TRIE),
    ("* row_bytes <= _TOKEN_BYTES * len(codes)", "* row_bytes < _TOKEN_BYTES * len(codes)", _IN_TRIE),
    ("* row_bytes <= _TOKEN_BYTES * len(codes)", "* row_bytes <= len(codes)", _IN_TRIE),
    ("bits_start[level] = sum(len(part) for part in bits)", "bits_start[level] = 0", _IN_TRIE),
    ("codes & 7", "codes & 3", _IN_TRIE),
    ("(codes >> 3)", "(codes >> 4)", _IN_TRIE),
    ("np.full(rows, -1, dtype=np.int32)", "np.zeros(rows, dtype=np.int32)", _IN_VOCABULARY),
)

_TENSORS = (
    (
        "token[xp.minimum(jump - 1, last)] < tokens",
        "token[xp.minimum(jump - 1, last)] <= tokens",
        _IN_TENSORS,
    ),
    ("xp.minimum(jump - 1, last)", "xp.minimum(jump, last)", _IN_TENSORS),
    ("matches = (low < end) & ", "matches = ", _IN_TENSORS),
    ("(low < end) & (token[xp.minimum(low, last)] == tokens)", "(low < end)", _IN_TENSORS),
    ("most_children.bit_length()", "(most_children.bit_length() - 1)", _IN_TENSORS),
    ("(nodes < len(first_child) - 1)", "(nodes < len(first_child))", _IN_TENSORS),
    ("children < end[:, None], permitted)", "children <= end[:, None], permitted)", _IN_TENSORS),
    ("children, meant, forbidden)", "children, meant, permitted)", _IN_TENSORS),
    ("torch.where(meant, token, self.width[level])", "token.clamp(max=self.width[level])", _IN_TENSORS),
    ("logits[:, :low] = -torch.inf", "pass", _IN_TENSORS),
    ("logits[:, high:] = -torch.inf", "pass", _IN_TENSORS),
    ("logits.index_fill_(0, own, -torch.inf)", "pass", _IN_TENSORS),
    ("restricted if within is None else restricted[within]", "restricted", _IN_TENSORS),
    ('side="right") - 1', 'side="left") - 1', _IN_TENSORS),
    ("nodes - int(self._depth_start[level])", "nodes * 0", _IN_TENSORS),
    ("torch.from_numpy(requests[rows].astype", "torch.from_numpy(requests[: len(rows)].astype", _IN_TENSORS),
)

_EXCLUSIONS = (
    ("owner, leaf = owner[leaf >= 0], leaf[leaf >= 0]", "owner, leaf = owner, leaf", _IN_TENSORS),
    ("keys = parents[counts == trie", "keys = parents[counts <= trie", _IN_TENSORS),
    ("keys = parents[counts == trie", "keys = parents[counts > trie", _IN_TENSORS),
    ('side="right") - 1', 'side="left") - 1', _IN_TENSORS),
    ("max(self._longest, int(counts.max()))", "1", _IN_TENSORS),
    ("part._keys + first[at] * part._stride", "part._keys + at * part._stride", _IN_TENSORS),
    ("] - request * self._stride", "]", _IN_TENSORS),
    ("max((part._longest for part in parts), default=0)", "1", _IN_TENSORS),
    ("base + first), torch", "first), torch", _IN_TENSORS),
    ("at < high[:, None]", "at <= high[:, None]", _IN_TENSORS),
    ("return self._keys[at] == keys", "return self._keys[at] <= keys", _IN_TENSORS),
)

_TRIE = (
    ("np.where(node != DEAD, self.leaf_item[leaf], -1)", "self.leaf_item[leaf]", _IN_TENSORS),
    ("np.clip(tokens, -1, self.vocab_size)", "np.asarray(tokens) % self.vocab_size", _IN_TENSORS),
    (
        "self.first_child[node + 1] - self",
        "self.first_child[node + 1] - 1 - self",
        ("catalog/trie/test_trie.py",),
    ),
)

_ARRAYS = (
    ("return width // 8 + 1", "return -(-width // 8)", _IN_TENSORS),
    ('mmap_mode="r"', "mmap_mode=None", _IN_TENSORS),
    ("{field.name: getattr(self, field.name) for field in fields(self)}", "vars(self)", _IN_TENSORS),
)

_VERSIONS = (
    ("self.version + 1, retired)", "self.version, retired)", _IN_VOCABULARY),
    ("np.concatenate([self.retired, retire])", "retire", _IN_VOCABULARY),
    ("(retire < 0) | (retire >= rows)", "(retire >= rows)", _IN_VOCABULARY),
    ("(retire < 0) | (retire >= rows)", "(retire < 0) | (retire > rows)", _IN_VOCABULARY),
    ("if len(gone := retire[self.trie.item_leaf[retire] < 0]):", "if False:", _IN_VOCABULARY),
    ("if self.version <= before.version:", "if self.version < before.version:", _IN_VOCABULARY),
    ("self.layout != before.layout or ", "", _IN_VOCABULARY),
    ("not np.array_equal(kept, before.item_tokens)", "False", _IN_VOCABULARY),
    ("(*before.earlier, before.trie, *self.earlier)", "(before.trie, *self.earlier)", _IN_VOCABULARY),
    ("(*before.earlier, before.trie, *self.earlier)", "(*before.earlier, before.trie)", _IN_VOCABULARY),
    ("(*before.earlier, before.trie, *self.earlier)", "(*before.earlier, *self.earlier)", _IN_VOCABULARY),
    ("reverse=True)[:_EARLIER_TRIES]", "reverse=True)", _IN_VOCABULARY),
    ("sorted(tries, reverse=True)", "sorted(tries)", _IN_VOCABULARY),
    ("self.trie_of(version).lookup", "self.trie.lookup", _IN_VOCABULARY),
)

_COLLATE = (
    (
        "vocabulary.trie_of(version), np.flatnonzero",
        "vocabulary.trie, np.flatnonzero",
        ("learner/batches/test_collate.py",),
    ),
    ("np.flatnonzero(versions_B == version)", "np.arange(prompts)", ("learner/batches/test_collate.py",)),
    (
        "[groups[row].excluded for row in rows.tolist()]",
        "[group.excluded for group in groups]",
        ("learner/batches/test_collate.py",),
    ),
)

TRIE_MUTANTS = tuple(
    (file, *edit)
    for file, edits in (
        (BUILD, _BUILD),
        (TENSORS, _TENSORS),
        (EXCLUSIONS, _EXCLUSIONS),
        (TRIE, _TRIE),
        ("catalog/trie/arrays.py", _ARRAYS),
        (VOCABULARY, _VERSIONS),
        (COLLATE, _COLLATE),
    )
    for edit in edits
)
