"""Log-probs of a few tokens of many distributions, and the entropies of these, in one pass over the logits.

    log p(v) = x_v - log sum_u exp x_u
    entropy = - sum_v p(v) log p(v)
    d log p(v) / d x_u = [u = v] - p(u)

Autograd through log_softmax and gather would keep the log-probs, make a second full-size tensor for the
gather's gradient and a third for the softmax's; here the probabilities are kept, for the gradient and the
entropy alike.

Dimension suffixes: M distributions, V vocabulary.
"""

from typing import Any

import torch


def token_log_probs(
    logits_MV: torch.Tensor, rows: torch.Tensor, tokens: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs of tokens in their shape, and entropies `[M]`, in nats: see `TokenLogProbs.forward`."""
    # torch leaves `apply` untyped.
    outputs: tuple[torch.Tensor, torch.Tensor] = TokenLogProbs.apply(  # type: ignore[no-untyped-call]
        logits_MV, rows, tokens
    )
    return outputs


class TokenLogProbs(torch.autograd.Function):
    """`TokenLogProbs.apply(logits_MV, rows, tokens)`; rows and tokens are index tensors of one shape."""

    @staticmethod
    def forward(
        ctx: Any, logits_MV: torch.Tensor, rows: torch.Tensor, tokens: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probs of each token under its row, in the shape of `tokens`, and the entropies `[M]`, in nats.

        The entropies carry no gradient. Logits must be finite: the lowest finite number makes a token
        impossible.
        """
        log_p_MV = torch.log_softmax(logits_MV, dim=-1)
        chosen, p_MV = log_p_MV[rows, tokens], log_p_MV.exp()
        entropy_M = -log_p_MV.mul_(p_MV).sum(dim=-1)
        ctx.save_for_backward(p_MV, rows, tokens)
        ctx.mark_non_differentiable(entropy_M)
        return chosen, entropy_M

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor, _entropy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The gradient of the logits."""
        p_MV, rows, tokens = ctx.saved_tensors
        total_M = gradient.new_zeros(p_MV.shape[0]).index_add_(0, rows.flatten(), gradient.flatten())
        logits_MV = p_MV * -total_M[:, None]
        logits_MV.index_put_((rows, tokens), gradient, accumulate=True)
        return logits_MV, None, None
