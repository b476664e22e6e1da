"""The mutants of `actors/engines/vllm/beams.py`: beams, and sampling without replacement."""

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
