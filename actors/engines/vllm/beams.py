"""Beams of one prompt, grown a token at a time: its K likeliest sequences, or K sequences sampled without
replacement.

Both keep the best W partial sequences of every level. They differ in what a partial sequence is worth:

- `Beams`: its log-prob l.
- `StochasticBeams` (Kool, van Hoof, Welling 2019, "Stochastic Beams and Where to Find Them", arXiv
  1903.06059): the largest G(o) = l(o) + Gumbel noise among all whole sequences o that begin with it, found
  without visiting them. The root's is Gumbel(0); the children's are drawn on the condition that the largest
  of them is their parent's. [paper]

The K whole sequences of largest G are a sample without replacement, in the order of drawing: the first is a
sample of the policy, the second one of the policy without the first, and so on. With kappa the (K+1)-th
largest G, which is why W = K + 1, a sequence had the chance

    q(o) = P(l(o) + Gumbel > kappa) = 1 - exp(-exp(l(o) - kappa))

of being among them, and for every f  [paper]

    E[ sum over the K sequences of f(o) exp(l(o)) / q(o) ] = E over the policy of f(o)

The root's value has to be drawn, too: a constant gives the same samples, but a kappa that makes the estimator
biased.

An engine of one request per beam uses this module: it asks what may follow `tokens_Wl` and calls `grow`. The
tree decoder does the same for many prompts at once; both take the formulas from
`sluice.learner.decoding.draw`. Suffixes as in `sluice.learner.batches.batch`, and W beams, l tokens so far.
"""

from dataclasses import dataclass

import numpy as np
import torch

from sluice.catalog.errors import RunError
from sluice.learner.decoding.draw import log_inclusion, perturb_totals


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """The K whole sequences that a search ended with."""

    tokens_KL: np.ndarray  # int64
    log_probs_KL: np.ndarray  # float32 nats
    inclusion_log_probs_K: np.ndarray | None  # float32 nats, log q; None: not sampled


class Beams:
    """The likeliest sequences, likeliest first."""

    def __init__(self, candidates: int) -> None:
        """Begin with the empty sequence, to end with K `candidates`."""
        self._candidates = candidates
        self.width = candidates  # W, at most
        self.tokens_Wl = np.empty((1, 0), dtype=np.int64)
        self.log_probs_Wl = np.empty((1, 0), dtype=np.float32)

    def grow(self, log_probs_WV: np.ndarray) -> np.ndarray:
        """Take the beams one token further; returns the beam `[W]` that each of the new ones continues.

        Args:
            log_probs_WV: nats of every next token after each beam, -inf: not allowed, or known to be no
                rival.
        """
        totals_W = self.log_probs_Wl.sum(axis=1, dtype=np.float64)
        values_WV = self._values(totals_W[:, None] + log_probs_WV)
        best = _largest(values_WV, self.width)
        parent_W, token_W = np.unravel_index(best, values_WV.shape)
        self.tokens_Wl = np.concatenate([self.tokens_Wl[parent_W], token_W[:, None]], axis=1)
        chosen_W = log_probs_WV[parent_W, token_W].astype(np.float32)
        self.log_probs_Wl = np.concatenate([self.log_probs_Wl[parent_W], chosen_W[:, None]], axis=1)
        self._keep(values_WV.reshape(-1)[best])
        return parent_W

    def candidates(self) -> Candidates:
        """What the search ended with.

        Raises:
            RunError: the policy gave fewer than K sequences a probability above zero.
        """
        count = self._candidates
        if len(self.tokens_Wl) < count:
            raise RunError(
                f"a beam search found {len(self.tokens_Wl)} sequences of a probability above zero and "
                f"{count} are wanted: check that the policy's logits are finite, or lower "
                "rollout.decode.candidates"
            )
        return Candidates(
            tokens_KL=self.tokens_Wl[:count],
            log_probs_KL=self.log_probs_Wl[:count],
            inclusion_log_probs_K=self._inclusion(self.log_probs_Wl[:count].sum(axis=1, dtype=np.float64)),
        )

    def _values(self, totals_WV: np.ndarray) -> np.ndarray:
        return totals_WV

    def _keep(self, values_W: np.ndarray) -> None:
        """Nothing: a beam's value is the sum of its log-probs."""

    def _inclusion(self, totals_K: np.ndarray) -> np.ndarray | None:
        return None


class StochasticBeams(Beams):
    """Sequences sampled without replacement, in the order of drawing."""

    def __init__(self, candidates: int, generator: np.random.Generator) -> None:
        """`generator` decides the sample, together with the log-probs given to `grow`."""
        super().__init__(candidates)
        self.width = candidates + 1  # the last one gives kappa
        self._generator = generator
        self._perturbed_W = generator.gumbel(size=1)  # G of the likeliest sequence below each beam

    def _values(self, totals_WV: np.ndarray) -> np.ndarray:
        # Noise for every token, allowed or not: what a token gets does not depend on the others.
        noise_WV = self._generator.gumbel(size=totals_WV.shape)
        return perturb_totals(*map(torch.from_numpy, (totals_WV, noise_WV, self._perturbed_W))).numpy()

    def _keep(self, values_W: np.ndarray) -> None:
        self._perturbed_W = values_W

    def _inclusion(self, totals_K: np.ndarray) -> np.ndarray:
        rest = self._perturbed_W[self._candidates :]
        kappa = rest[0] if len(rest) else -np.inf  # there is no other sequence: each of the K is certain
        return log_inclusion(torch.from_numpy(totals_K), torch.tensor(kappa)).float().numpy()


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """Places of the `count` largest finite values (fewer if there are fewer) in the flattened array, largest
    first.
    """
    flat = -values.reshape(-1)
    best = np.argpartition(flat, count)[:count] if count < len(flat) else np.arange(len(flat))
    best = best[np.argsort(flat[best], kind="stable")]
    return best[np.isfinite(flat[best])]  # type: ignore[no-any-return]  # to mypy, a ufunc gives Any
