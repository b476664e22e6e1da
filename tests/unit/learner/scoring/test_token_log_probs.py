import math

import torch

from sluice.learner.scoring.token_log_probs import TokenLogProbs

ROWS, TOKENS = torch.tensor([[0, 0], [1, 0]]), torch.tensor([[0, 2], [1, 0]])


def test_values_by_hand():
    logits = torch.tensor(
        [[0.0, math.log(2), math.log(5)], [0.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True
    )
    log_probs, entropy = TokenLogProbs.apply(logits, ROWS, TOKENS)
    expected = torch.tensor([[1 / 8, 5 / 8], [1 / 3, 1 / 8]], dtype=torch.float64)
    torch.testing.assert_close(log_probs.exp(), expected)
    first = -(1 / 8 * math.log(1 / 8) + 2 / 8 * math.log(2 / 8) + 5 / 8 * math.log(5 / 8))
    torch.testing.assert_close(entropy, torch.tensor([first, math.log(3)], dtype=torch.float64))
    assert not entropy.requires_grad


def test_gradient_in_double():
    torch.manual_seed(0)
    logits = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: TokenLogProbs.apply(x, ROWS, TOKENS)[0], logits)


def test_an_impossible_token_takes_no_part():
    logits = torch.tensor([[0.0, torch.finfo(torch.float32).min, 0.0]], requires_grad=True)
    log_probs, entropy = TokenLogProbs.apply(logits, torch.tensor([0]), torch.tensor([2]))
    torch.testing.assert_close(log_probs.exp(), torch.tensor([0.5]))
    torch.testing.assert_close(entropy, torch.tensor([math.log(2)]))
    (gradient,) = torch.autograd.grad(log_probs.sum(), logits)
    torch.testing.assert_close(gradient, torch.tensor([[-0.5, 0.0, 0.5]]))
