import math

import pytest
import torch

from learner.shared_prefix import BranchScorer, branch_log_probs
from tests.unit.learner_cases import in_double, random_batch, sharpen, tiny_llama, tiny_policy


def branches_of(batch):
    return torch.cat([batch.target_BL[:, None], batch.candidates_BKL], dim=1)


def per_sequence(model, batch, allowed_BSLV=None, temperature=1.0):
    """The reference: one plain forward per branch, without padding, mask or position ids."""
    branches_BSL = branches_of(batch)
    prompts, branches, levels = branches_BSL.shape
    log_probs, entropies = [], []
    for prompt in range(prompts):
        history = batch.history_BT[prompt, : batch.history_lengths_B[prompt]]
        for branch in range(branches):
            tokens = branches_BSL[prompt, branch]
            logits = model(torch.cat([history, tokens])[None]).logits[0, len(history) - 1 : -1] / temperature
            if allowed_BSLV is not None:
                logits = logits.masked_fill(~allowed_BSLV[prompt, branch], -torch.inf)
            log_p = torch.log_softmax(logits, dim=-1)
            log_probs.append(log_p[torch.arange(levels), tokens])
            entropies.append(-(log_p.exp() * log_p).nan_to_num(0.0).sum(-1))
    shape = (prompts, branches, levels)
    return torch.stack(log_probs).view(shape), torch.stack(entropies).view(shape)


def shared(model, batch, allowed_BSLV=None, temperature=1.0):
    return branch_log_probs(
        model, batch.history_BT, batch.history_lengths_B, branches_of(batch), allowed_BSLV, temperature
    )


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


MODELS = {"qwen3": lambda: tiny_policy().model, "llama": tiny_llama}


@pytest.mark.parametrize("architecture", MODELS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("case", ["plain", "temperature", "constrained"])
def test_equals_one_forward_per_sequence(architecture, dtype, tolerance, case):
    model = MODELS[architecture]()
    if dtype == torch.float64:
        model = in_double(model)
    batch = random_batch(constrained=case == "constrained")
    temperature = 1.0 if case == "plain" else 0.7
    expected, entropy = per_sequence(model, batch, batch.allowed_BSLV, temperature)
    free, _ = per_sequence(model, batch)
    scores = shared(model, batch, batch.allowed_BSLV, temperature)
    torch.testing.assert_close(scores.log_probs_BSL, expected, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(scores.target_log_probs_BL, free[:, 0], atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(scores.entropy_BSL, entropy.detach(), atol=tolerance, rtol=tolerance)

    torch.manual_seed(0)
    weights = torch.randn_like(expected)
    wanted = gradients(model, (expected * weights).sum() + free[:, 0].sum())
    found = gradients(model, (scores.log_probs_BSL * weights).sum() + scores.target_log_probs_BL.sum())
    for name, gradient in wanted.items():
        scale = max(1.0, gradient.abs().max().item())
        torch.testing.assert_close(found[name] / scale, gradient / scale, atol=tolerance, rtol=tolerance)


def test_padding_tokens_and_width_do_not_matter():
    model = sharpen(tiny_policy().model.double())
    batch = random_batch()
    expected = shared(model, batch).log_probs_BSL
    padding = torch.arange(20)[None] >= batch.history_lengths_B[:, None]
    wider = torch.cat([batch.history_BT, torch.zeros(4, 7, dtype=torch.int64)], dim=1).masked_fill(padding, 9)
    found = branch_log_probs(model, wider, batch.history_lengths_B, branches_of(batch)).log_probs_BSL
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)


def test_a_branch_does_not_see_the_others():
    model = sharpen(tiny_policy().model.double())
    batch = random_batch()
    together = shared(model, batch).log_probs_BSL
    alone = branch_log_probs(model, batch.history_BT, batch.history_lengths_B, batch.candidates_BKL[:, 2:3])
    torch.testing.assert_close(alone.log_probs_BSL[:, 0], together[:, 3], atol=1e-12, rtol=1e-12)


def test_items_of_one_token():
    model = tiny_policy().model.double()
    batch = random_batch(target_BL=torch.tensor([[3], [4], [5], [6]]), candidates_BKL=torch.tensor([[[5], [3]]] * 4))
    scores = shared(model, batch)
    assert scores.log_probs_BSL.shape == (4, 3, 1)
    expected, _ = per_sequence(model, batch)
    torch.testing.assert_close(scores.log_probs_BSL, expected, atol=1e-12, rtol=1e-12)


def test_a_forced_token_has_log_prob_zero_and_a_pair_is_renormalised():
    model = sharpen(tiny_policy().model.double())
    batch = random_batch()
    allowed = torch.zeros(4, 5, 3, 15, dtype=torch.bool)
    allowed.scatter_(-1, branches_of(batch)[..., None], True)
    scores = shared(model, batch, allowed)
    assert scores.log_probs_BSL.abs().max() == 0 and scores.entropy_BSL.abs().max() == 0
    # EOS joins at the first level: p(token) / (p(token) + p(EOS)), from the free distribution of either
    allowed[:, :, 0, 2] = True
    eos = branches_of(batch).clone()
    eos[..., 0] = 2
    free = shared(model, batch).log_probs_BSL[..., 0].exp()
    free_eos = branch_log_probs(model, batch.history_BT, batch.history_lengths_B, eos).log_probs_BSL[..., 0].exp()
    found = shared(model, batch, allowed).log_probs_BSL[..., 0].exp()
    torch.testing.assert_close(found, free / (free + free_eos), atol=1e-12, rtol=1e-12)


def test_token_that_is_not_allowed_is_impossible_and_harmless():
    model = tiny_policy().model.double()
    batch = random_batch(constrained=True)
    allowed = batch.allowed_BSLV.clone()
    allowed[0, 0, 1] = False  # nothing at all is allowed
    allowed[1, 2, 2, batch.candidates_BKL[1, 1, 2]] = False
    scores = shared(model, batch, allowed)
    impossible = torch.isinf(scores.log_probs_BSL)
    assert impossible.nonzero().tolist() == [[0, 0, 1], [1, 2, 2]]
    assert torch.isfinite(scores.entropy_BSL).all()
    found = gradients(model, scores.log_probs_BSL.masked_fill(impossible, 0.0).sum() + scores.log_probs_BSL[1, 2, 2])
    assert all(torch.isfinite(gradient).all() for gradient in found.values())


def test_entropy_of_a_uniform_policy():
    model = tiny_policy().model.double()
    with torch.no_grad():
        model.model.norm.weight.zero_()
    scores = shared(model, random_batch())
    torch.testing.assert_close(scores.entropy_BSL, torch.full((4, 5, 3), math.log(15), dtype=torch.float64))
    torch.testing.assert_close(scores.log_probs_BSL, torch.full((4, 5, 3), -math.log(15), dtype=torch.float64))
    assert not scores.entropy_BSL.requires_grad


def test_half_precision_logits_are_normalised_in_float32():
    batch = random_batch()
    scores = shared(tiny_policy().model.bfloat16(), batch)
    assert scores.log_probs_BSL.dtype == torch.float32
    torch.testing.assert_close(
        scores.log_probs_BSL, shared(tiny_policy().model, batch).log_probs_BSL, atol=0.05, rtol=0
    )


def test_scorer_is_the_function_as_a_module():
    policy, batch = tiny_policy(), random_batch()
    scorer = BranchScorer(policy.model)
    found = scorer(batch.history_BT, batch.history_lengths_B, branches_of(batch), None, 0.5)
    assert torch.equal(found.log_probs_BSL, shared(policy.model, batch, None, 0.5).log_probs_BSL)
    assert {id(p) for p in scorer.parameters()} == {id(p) for p in policy.model.parameters()}
