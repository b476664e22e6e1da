"""What the ranker predicts of an interaction that takes place, and whether an item that is shown is clicked:
one head for each outcome that the logs have.

Every head is linear in the state h of the history and the vector v of the item,

    z(x, i) = <Q h, v_i> + <u, h> + c + e_i

on a standardised scale, so that the weights of the heads mean the same on any data. This module alone knows
the scales (m and s are the mean and the deviation of t(y) over the training part, which for the ranker is
the logs until `ranker.until`):

    head            t(y)              prediction of t(y)           loss, mean over known outcomes
    rating          y                 m + s z                      (z - (y - m)/s)^2
    dwell_seconds   log(1 + y)        m + s z                      (z - (t(y) - m)/s)^2
    click           y in {0, 1}       sigmoid(z + logit m)         binary cross-entropy

An interaction of a log with impressions is a click, an impression is none.

The dwell time itself is predicted as exp(m + s z) f - 1, with f the mean of exp(t(y) - m - s z) over the
training part: without that factor it would be a median (the smearing estimate of Duan, 1983).
"""

import torch
from torch import nn


class OutcomeHead(nn.Module):
    """A head with a squared loss on the outcome itself: ratings."""

    mean: torch.Tensor  # m, a scalar
    deviation: torch.Tensor  # s, a scalar

    def __init__(self, items: int, hidden_size: int) -> None:
        """`items` is N; row N of the item terms is padding."""
        super().__init__()
        self.query = nn.Linear(hidden_size, hidden_size)
        self.user = nn.Linear(hidden_size, 1)
        self.item = nn.Parameter(torch.zeros(items + 1))
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("deviation", torch.ones(()))

    def forward(self, states: torch.Tensor, items: torch.Tensor, vectors_ND: torch.Tensor) -> torch.Tensor:
        """z `[...]` of `items` `[...]` under states `[..., D]` that broadcast against them."""
        match = (self.query(states) * vectors_ND[items]).sum(-1)
        z: torch.Tensor = match + self.user(states)[..., 0] + self.item[items]
        return z

    def fit_scale(self, outcomes: torch.Tensor) -> None:
        """Take m and s from the n >= 1 known outcomes `[n]` of the training part; s is 1 if all are equal."""
        transformed = self.transform(outcomes.double())
        self.mean.fill_(transformed.mean())
        deviation = transformed.std(correction=0)
        self.deviation.fill_(deviation if deviation > 0 else 1.0)

    def transform(self, outcomes: torch.Tensor) -> torch.Tensor:
        """t(y), the scale on which the head is fitted and judged."""
        return outcomes

    def loss(self, z: torch.Tensor, outcomes: torch.Tensor) -> torch.Tensor:
        """Mean loss over the outcomes `[P]` that are not NaN; 0 where none is known."""
        known = ~outcomes.isnan()
        loss = self._losses(z, torch.where(known, outcomes, 0.0))
        return torch.where(known, loss, 0.0).sum() / known.sum().clamp(min=1)

    def expected(self, z: torch.Tensor) -> torch.Tensor:
        """The prediction of t(y)."""
        return self.mean + self.deviation * z

    def value(self, z: torch.Tensor) -> torch.Tensor:
        """The prediction of y, in the unit of the log."""
        return self.expected(z)

    def _losses(self, z: torch.Tensor, outcomes: torch.Tensor) -> torch.Tensor:
        return (z - (self.transform(outcomes) - self.mean) / self.deviation).square()


class DwellHead(OutcomeHead):
    """A squared loss on the logarithm of the dwell time."""

    smearing: torch.Tensor  # f, a scalar

    def __init__(self, items: int, hidden_size: int) -> None:
        super().__init__(items, hidden_size)
        self.register_buffer("smearing", torch.ones(()))

    def fit_smearing(self, z: torch.Tensor, outcomes: torch.Tensor) -> None:
        """Take the factor f from z and the known dwell times `[n]` of the training part, after fitting."""
        self.smearing.fill_((self.transform(outcomes.double()) - self.expected(z.double())).exp().mean())

    def transform(self, outcomes: torch.Tensor) -> torch.Tensor:
        """log(1 + seconds)."""
        return outcomes.log1p()

    def value(self, z: torch.Tensor) -> torch.Tensor:
        """Seconds, at least 0."""
        return (self.expected(z).exp() * self.smearing - 1).clamp(min=0)


class ClickHead(OutcomeHead):
    """A logistic loss."""

    def fit_scale(self, outcomes: torch.Tensor) -> None:
        """m is the share of clicks, with one click and one miss added so that its logit is finite."""
        self.mean.fill_((outcomes.double().sum() + 1) / (len(outcomes) + 2))

    def expected(self, z: torch.Tensor) -> torch.Tensor:
        """The probability of a click."""
        return torch.sigmoid(z + torch.logit(self.mean))

    def _losses(self, z: torch.Tensor, outcomes: torch.Tensor) -> torch.Tensor:
        return nn.functional.binary_cross_entropy_with_logits(
            z + torch.logit(self.mean), outcomes, reduction="none"
        )


# By the outcomes of `sluice.catalog.data.settings.OUTCOMES`.
HEADS: dict[str, type[OutcomeHead]] = {
    "rating": OutcomeHead,
    "click": ClickHead,
    "dwell_seconds": DwellHead,
}
