"""Log-probs of a few tokens of many distributions, and the entropies of these, in one pass over the logits.

    log p(v) = x_v - log sum_u exp x_u
    entropy = - sum_v p(v) log p(v)
    d log p(v) / d x_u = [u = v] - p(u)

Autograd through log_softmax and gather would keep the log-probs, make a second full-size tensor for the
gather's gradient and a third for the softmax's; here the probabilities are kept, for the gradient and the
entropy alike.
"""

from typing import Any

import torch


def token_log_probs(
    logits_NV: torch.Tensor, rows: torch.Tensor, tokens: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs of tokens and the entropies of their distributions: `TokenLogProbs.forward`."""
    # torch leaves `apply` untyped.
    outputs: tuple[torch.Tensor, torch.Tensor] = TokenLogProbs.apply(  # type: ignore[no-untyped-call]
        logits_NV, rows, tokens
    )
    return outputs


class TokenLogProbs(torch.autograd.Function):
    """`TokenLogProbs.apply(logits_NV, rows, tokens)`; rows and tokens are index tensors of one shape."""

    @staticmethod
    def forward(
        ctx: Any, logits_NV: torch.Tensor, rows: torch.Tensor, tokens: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probs, in nats and in the shape of `tokens`, of each token under its row, and the entropies
        `[N]`.

        The entropies carry no gradient. Logits must be finite: the lowest finite number makes a token
        impossible.
        """
        log_p_NV = torch.log_softmax(logits_NV, dim=-1)
        chosen, p_NV = log_p_NV[rows, tokens], log_p_NV.exp()
        entropy_N = -log_p_NV.mul_(p_NV).sum(dim=-1)
        ctx.save_for_backward(p_NV, rows, tokens)
        ctx.mark_non_differentiable(entropy_N)
        return chosen, entropy_N

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor, _entropy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The gradient of the logits."""
        p_NV, rows, tokens = ctx.saved_tensors
        total_N = gradient.new_zeros(p_NV.shape[0]).index_add_(0, rows.flatten(), gradient.flatten())
        logits_NV = p_NV * -total_N[:, None]
        logits_NV.index_put_((rows, tokens), gradient, accumulate=True)
        return logits_NV, None, None
