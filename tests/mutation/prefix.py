"""The mutants of shared prefixes, packed rows and their attention: (file, old, new, tests that must
notice).
"""

PREFIX, FORWARD = "learner/scoring/shared_prefix.py", "learner/scoring/packed_forward.py"
ATTENTION, TOKENS, LINEAR = (
    "learner/scoring/branch_attention.py",
    "learner/scoring/token_log_probs.py",
    "learner/kernels/onednn.py",
)
IN_PREFIX, IN_ATTENTION, IN_TOKENS, IN_LINEAR = (
    ("learner/scoring/test_shared_prefix.py",),
    ("learner/scoring/test_branch_attention.py",),
    ("learner/scoring/test_token_log_probs.py",),
    ("learner/kernels/test_onednn.py",),
)

_PREFIX = (
    ("branches_BSL[:, :, :-1])", "branches_BSL[:, :, 1:])"),
    ("places_BT < lengths_B[:, None]", "places_BT <= lengths_B[:, None]"),
    ("lengths_B[:, None, None] + torch.arange(fed", "lengths_B[:, None, None] + 1 + torch.arange(fed"),
    ("lengths_B[:, None, None] + torch.arange(fed)", "lengths_B[:, None, None] + torch.zeros(fed).long()"),
    ("rest_BSF = prompts + torch", "rest_BSF = torch"),
    ("logits_NV / decoding.temperature", "logits_NV * decoding.temperature"),
    ("if decoding.temperature != 1.0:", "if False:"),
    ("masked_fill(~allowed", "masked_fill(allowed"),
    ("torch.finfo(logits_NV.dtype).min", "-torch.inf"),
    ("torch.where(possible, log_probs, -torch.inf)", "log_probs"),
    ("if allowed_BSLV is None and decoding.temperature == 1.0:", "if True:"),
    ("if allowed_BSLV is None and decoding.temperature == 1.0:", "if decoding.temperature == 1.0:"),
    ("branches_BSL[:, 0], None, PLAIN_POLICY", "branches_BSL[:, 0], None, decoding)"),
    ("branches_BSL[:, 0], None, PLAIN_POLICY)", "branches_BSL[:, 1], None, PLAIN_POLICY)"),
    ("target_rows_BL = rows_BSL[:, 0]", "target_rows_BL = rows_BSL[:, 1]"),
    ("(value_head(hidden_MD))[rows_BSL, 0]", "(value_head(hidden_MD))[rows_BSL.flip(-1), 0]"),
    ("logits.float() if", "logits if"),
)

_FORWARD = (
    ("cumsum(0) - 1", "cumsum(0)"),
    (" + row.branch_start", " + row.branch_start - 1"),
    (
        "if last is not None else output[0, _predicting(row, output.device)]",
        "[: len(_predicting(row, output.device))]",
    ),
    ('raise ValueError("activations', 'str("activations'),
    ("torch.is_grad_enabled() and model.training", "model.training"),
    ("        model.config._attn_implementation = before\n", "        pass\n"),
    ("            del layer.forward\n", "            pass\n"),
    ("rotate_half(x) * sin", "x * sin"),
    ("cos_1PE[:, rows_M], sin_1PE[:, rows_M]", "cos_1PE[:, : len(rows_M)], sin_1PE[:, : len(rows_M)]"),
    ("attention.q_proj(normed_1PD[:, rows_M])", "attention.q_proj(hidden_1PD[:, rows_M])"),
    ("attention.v_proj(normed_1PD)", "attention.v_proj(hidden_1PD)"),
    ('getattr(attention, "q_norm", None)', "None"),
    ('getattr(attention, "k_norm", None)', "None"),
    (
        "float(attention.attention_dropout or 0.0) if layer.training else 0.0",
        "0.0 if layer.training else float(attention.attention_dropout or 0.0)",
    ),
    ("hidden_1PD[:, rows_M] + attention", "normed_1PD[:, rows_M] + attention"),
    ("return hidden_1MD + fed", "return fed"),
    ("layer.post_attention_layernorm(hidden_1MD)", "layer.input_layernorm(hidden_1MD)"),
)

_ATTENTION = (
    ("len(self.history_lengths) if self.last_only else", ""),
    ("max(self.history_lengths) + self.fed", "max(self.history_lengths)"),
    ("packed_row.longest > sliding_window", "packed_row.longest >= sliding_window"),
    ('("softcap", "s_aux", "position_bias")', '("softcap", "position_bias")'),
    ("or attention_mask is not None", ""),
    ("part.repeat_interleave(groups, dim=1)", "part.repeat(1, groups, 1, 1)"),
    ("query_1HME.shape[-1] ** -0.5 if scaling", "1.0 if scaling"),
    ("query_1HME.to(value_1GPE.dtype), key_1GPE.to(value_1GPE.dtype)", "query_1HME, key_1GPE"),
    ("(branch_R[:, None] == branch_R[None]).tril()", "(branch_R[:, None] == branch_R[None])"),
    ("(branch_R[:, None] == branch_R[None]).tril()", "(branch_R[:, None] >= branch_R[None]).tril()"),
    ("key_BHTE, value_BHTE, is_causal=True)", "key_BHTE, value_BHTE)"),
    ("attn_mask=blocks.real_B11T)", "attn_mask=None)"),
    ("attn_mask=blocks.seen_B1RX)", "attn_mask=None)"),
    ("place_n = (at_T < lengths_B[:, None])", "place_n = (at_T <= lengths_B[:, None])"),
    (
        "real_BT = torch.arange(longest, device=device) < lengths",
        "real_BT = torch.arange(longest, device=device) <= lengths",
    ),
    ("index_select(0, blocks.place_n)", "flip(0).index_select(0, blocks.place_n)"),
    ("blocks.index_copy(0, self.place_n, part_nHE)", "blocks.index_copy(0, self.place_n, part_nHE.detach())"),
    ("causal, branch = not row.last_only,", "causal, branch = False,"),
    ("causal, branch = not row.last_only,", "causal, branch = True,"),
    ("(query_CFHE[:, late] * key_CFHE[:, early])", "(query_CFHE[:, early] * key_CFHE[:, late])"),
    (".sum(dim=-1).mul_(scale)", ".sum(dim=-1)"),
    ("score_ZCFH[0] = history_CFH\n", "score_ZCFH[0] = history_CFH + 1\n"),
    ("        output_CFHE.mul_(weight_ZCFH1[0])\n", ""),
    ("weight_ZCFH1[1 + lag, :, late], value_CFHE", "weight_ZCFH1[0, :, late], value_CFHE"),
    ("total_CFH.flatten(0, 1).T[None]", "history_CFH.flatten(0, 1).T[None]"),
    (
        "part(span.history_queries, span.history, not row.last_only)",
        "part(span.history_queries, span.history, True)",
    ),
    ("part(span.branch_queries, span.history, False)", "part(span.branch_queries, span.history, True)"),
    ("torch.add(from_history[0], from_branches[0], out", "torch.add(from_history[0], 0, out"),
    ("torch.add(from_history[1], from_branches[1], out", "torch.add(from_branches[1], 0, out"),
    ("(from_value_CfH - inner_CFH[:, late])", "from_value_CfH"),
    ("[..., None] * weight_CfH1 * scale", "[..., None] * weight_CfH1"),
    ("            d_query_CFHE[:, late].addcmul_(d_score_CfH1, key_CFHE[:, early])\n", ""),
    ("        d_key_CFHE.zero_()\n", ""),
    ("d_key_CFHE[:, early].addcmul_", "d_key_CFHE[:, late].addcmul_"),
    ("d_value_CFHE[:, early].addcmul_", "d_value_CFHE[:, late].addcmul_"),
    ("for lag in range(row.fed))", "for lag in range(1))"),
)

_TOKENS = (
    ("-log_p_MV.mul_(p_MV)", "log_p_MV.mul_(p_MV)"),
    ("        ctx.mark_non_differentiable(entropy_M)\n", ""),
    ("log_p_MV[rows, tokens]", "logits_MV[rows, tokens]"),
    ("p_MV * -total_M", "p_MV * total_M"),
    ("accumulate=True", "accumulate=False"),
    (
        "index_add_(0, rows.flatten(), gradient.flatten())",
        "index_copy_(0, rows.flatten(), gradient.flatten())",
    ),
)

_LINEAR = (
    ("_product(gradient, weight.t()) if wants_x", "_product(gradient, weight.t()) if True"),
    ("x.flatten(0, -2).t()) if wants_weight", "x.flatten(0, -2).t()) if True"),
    ("if wants_bias else None", "if False else None"),
    ("rows_NO.sum(dim=0)", "rows_NO.mean(dim=0)"),
    ("ctx.save_for_backward(x, weight)", "ctx.save_for_backward(x * 2, weight)"),
    ("        and x.numel() > 0\n", ""),
    ("not torch.compiler.is_compiling()", "True"),
    ('        and not torch.is_autocast_enabled("cpu")\n', ""),
    ("x.dtype == weight.dtype == torch.float32", "x.dtype == weight.dtype"),
    ("return _product(x, weight, bias)", "return _product(x, weight, None)"),
    ('return "bf16" if exact else "ieee"', 'return "bf16"'),
    (
        "            if not self._inside:\n                _matmul",
        "            if True:\n                _matmul",
    ),
    (
        "            if not self._inside:\n                precision",
        "            if True:\n                precision",
    ),
    ("fp32_precision = precision\n", "fp32_precision\n"),
)

PREFIX_MUTANTS = (
    *((PREFIX, old, new, IN_PREFIX) for old, new in _PREFIX),
    *((FORWARD, old, new, IN_PREFIX) for old, new in _FORWARD),
    *((ATTENTION, old, new, IN_ATTENTION) for old, new in _ATTENTION),
    *((TOKENS, old, new, IN_TOKENS) for old, new in _TOKENS),
    *((LINEAR, old, new, IN_LINEAR) for old, new in _LINEAR),
    ("learner/training/step.py", "        use_onednn_matmul(model)\n", "", IN_LINEAR),
    ("learner/training/pretrain.py", "    use_onednn_matmul(model)\n", "", IN_LINEAR),
)
