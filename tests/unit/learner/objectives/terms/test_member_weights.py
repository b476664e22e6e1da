import itertools

import numpy as np
import pytest
import torch

from sluice.catalog.decoding import Decoding
from sluice.catalog.errors import ConfigError
from sluice.learner.batches.batch import GroupBatch
from sluice.learner.objectives.grpo import GrpoLoss, grpo_term
from sluice.learner.objectives.settings.objective import GrpoSettings
from sluice.learner.objectives.terms.advantages import group_advantages
from sluice.learner.objectives.terms.member_weights import member_weights
from tests.unit.learner.learner_cases import objective_input, one_group
from tests.unit.learner.objective_cases import pair, scores_of

LOGITS = torch.tensor([0.9, -0.4, 0.2, -1.3], dtype=torch.float64)  # of the behaviour policy over four items
REWARDS = torch.tensor([0.3, 2.0, -1.0, 4.0], dtype=torch.float64)
FIRST_SHARE = 0.3  # of an item's log-prob falls to its first token, the rest to its second


def two_of_two():
    """K = 2 with p .5 and .2, q .8 and .4, so that w is .625 and .5."""
    p, q = torch.tensor([[0.5, 0.2]], dtype=torch.float64), torch.tensor([[0.8, 0.4]], dtype=torch.float64)
    batch, _ = pair(
        behaviour_log_probs_BKL=(p.log() / 3)[..., None].expand(1, 2, 3), inclusion_log_probs_BK=q.log()
    )
    return batch


def weights_of(batch, kind):
    return member_weights(batch, kind, "none")


def test_weights_by_hand():
    unbiased, normalised = (weights_of(two_of_two(), kind) for kind in ("unbiased", "normalised"))
    assert unbiased.counts_BK[0].tolist() == pytest.approx([0.625, 0.5])
    assert normalised.raw_BK[0].tolist() == pytest.approx([0.625, 0.5])
    # W - w + p is .5 + .5 and .625 + .2
    assert normalised.counts_BK[0].tolist() == pytest.approx([0.625, 0.5 / 0.825])
    assert normalised.probabilities_BK[0].tolist() == pytest.approx([0.5, 0.2])


def test_samples_and_beams_have_no_weights():
    assert weights_of(one_group(), "unbiased") is None


def test_an_injected_item_has_no_weight():
    with pytest.raises(ConfigError, match="ground_truth=inject"):
        member_weights(two_of_two(), "unbiased", "inject")


@pytest.mark.parametrize(
    ("weights", "kind", "expected"),
    [
        # sum of w r is 2.125: 1 (1 - .5 + .625) - 2.125 and 3 (1 - .2 + .5) - 2.125
        ("unbiased", "dr_grpo", [-1.0, 1.775]),
        ("unbiased", "rloo", [-1.0, 1.775]),
        # the weighted mean is 17/9, the weighted deviation .99380799
        ("unbiased", "grpo", [-1.0061294, 1.7858796]),
        ("normalised", "dr_grpo", [1 - 17 / 9, 3 - 17 / 9]),
        ("normalised", "grpo", [-0.8888889 * 1.0061294, 1.1111111 * 1.0061294]),
    ],
)
def test_advantages_by_hand(weights, kind, expected):
    rewards = torch.tensor([[1.0, 3.0]], dtype=torch.float64)
    found = group_advantages(rewards, kind, weights_of(two_of_two(), weights))
    assert found[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_equal_rewards():
    rewards = torch.full((1, 2), 0.1, dtype=torch.float64)
    unbiased, normalised = (weights_of(two_of_two(), kind) for kind in ("unbiased", "normalised"))
    assert group_advantages(rewards, "grpo", unbiased).tolist() == [[0.0, 0.0]]
    assert group_advantages(rewards, "dr_grpo", normalised).tolist() == [[0.0, 0.0]]
    # zero only in the mean over groups: .1 (1 - p + w - 1.125)
    assert group_advantages(rewards, "dr_grpo", unbiased)[0].tolist() == pytest.approx([0.0, 0.0175])


@pytest.mark.parametrize(
    ("kind", "counts", "advantages"),
    [("unbiased", (0.625, 0.5), (-1.0, 1.775)), ("normalised", (0.625, 0.5 / 0.825), (-8 / 9, 10 / 9))],
)
def test_members_count_by_their_weights_in_the_loss_and_the_kl(kind, counts, advantages):
    batch, log_probs = two_of_two(), torch.full((1, 3, 3), -1.0, dtype=torch.float64)
    settings = GrpoSettings(
        kl_beta=0.5, old_policy="batch_start", advantage="dr_grpo", inclusion_weights=kind
    )
    log_probs[0, 2] = -2.0  # where the reference is 1 above: d = 1 in candidate 1, 0 in candidate 0
    terms = GrpoLoss(settings)(
        objective_input(
            batch,
            scores_of(log_probs),
            scores_of(log_probs),
            torch.full((1, 3, 3), -1.0, dtype=torch.float64),
        )
    )
    surrogate = counts[0] * advantages[0] + counts[1] * advantages[1]  # the ratios are 1
    assert terms.loss.item() == pytest.approx(-surrogate + 0.5 * counts[1] * (np.e - 2), abs=1e-7)
    assert terms.metrics["inclusion_weight_sum"].tolist() == pytest.approx([1.125, 1.0])


@pytest.mark.parametrize("kind", ["unbiased", "normalised"])
def test_gradcheck(kind):
    batch, settings = (
        two_of_two(),
        GrpoSettings(kl_beta=0.1, clip_high=0.9, clip_low=0.9, inclusion_weights=kind),
    )
    generator = torch.Generator().manual_seed(0)
    start = -1 - 0.3 * torch.rand(1, 3, 3, dtype=torch.float64, generator=generator)
    point = (start + 0.1).requires_grad_()

    def loss(log_probs):
        return GrpoLoss(settings)(
            objective_input(batch, scores_of(log_probs), scores_of(start), start - 0.2)
        ).loss

    assert torch.autograd.gradcheck(loss, (point,))


def every_group(size, nodes=200):
    """All unordered groups of a Gumbel top-k of four items with the threshold integrated out: groups and
    their mass.

    Given u = exp(-threshold), item i is in with q_i = 1 - exp(-p_i u); the next one after the group, t, has
    the density p_t exp(-p_t u), and all others stay below with exp(-p_j u).
    """
    p = LOGITS.softmax(0).numpy()
    x, w = np.polynomial.legendre.leggauss(nodes)
    x, w = (x + 1) / 2, w / 2
    u, du = 8 * x / (1 - x), 8 * w / (1 - x) ** 2
    items, inclusion, mass = [], [], []
    for group in itertools.combinations(range(4), size):
        out = [j for j in range(4) if j not in group]
        q = 1 - np.exp(-p[list(group)][None] * u[:, None])
        rest = p[out].sum()
        items += [group] * nodes
        inclusion.append(np.log(q))
        mass.append(q.prod(axis=1) * rest * np.exp(-rest * u) * du)
    return (
        torch.tensor(items),
        torch.from_numpy(np.concatenate(inclusion)),
        torch.from_numpy(np.concatenate(mass)),
    )


def expected_gradient(theta, settings, groups):
    """The exact expectation, over the groups that the search may return, of the gradient of the GRPO term."""
    items_BK, inclusion_BK, mass_B = groups

    def tokens(log_probs):
        return torch.stack([FIRST_SHARE * log_probs, (1 - FIRST_SHARE) * log_probs], dim=-1)

    prompts = len(items_BK)
    batch = GroupBatch(
        history_BT=torch.ones(prompts, 1, dtype=torch.int64),
        history_lengths_B=torch.ones(prompts, dtype=torch.int64),
        target_BL=torch.zeros(prompts, 2, dtype=torch.int64),
        candidates_BKL=torch.stack([items_BK, items_BK], dim=-1),
        behaviour_log_probs_BKL=tokens(LOGITS.log_softmax(0)[items_BK]),
        candidate_items_BK=items_BK,
        target_items_B=torch.full((prompts,), 99),
        candidate_scores_BK=REWARDS[items_BK],
        target_scores_B=torch.zeros(prompts),
        distractor_scores_BJ=torch.zeros(prompts, 1),
        allowed_BSLV=None,
        decoding=Decoding(candidates=items_BK.shape[1]),
        inclusion_log_probs_BK=inclusion_BK,
    )
    leaf = theta.clone().requires_grad_()
    members = tokens(leaf.log_softmax(0)[items_BK])
    scores = scores_of(torch.cat([members[:, :1].detach(), members], dim=1))
    loss_B = grpo_term(objective_input(batch, scores, scores.detach()), settings).loss_B
    (mass_B * loss_B).sum().backward()
    return -leaf.grad


def true_gradient(theta):
    leaf = theta.clone().requires_grad_()
    (leaf.softmax(0) * REWARDS).sum().backward()
    return leaf.grad


ON = LOGITS
OFF = LOGITS + torch.tensor([0.3, -0.5, 0.2, 0.4], dtype=torch.float64)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("theta", [ON, OFF], ids=["on", "off"])
def test_the_gradient_of_groups_without_replacement_is_that_of_the_expected_reward(size, theta):
    groups = every_group(size)
    assert groups[2].sum().item() == pytest.approx(1, abs=1e-9)
    settings = GrpoSettings(kl_beta=0, advantage="dr_grpo", ratio="sequence", clip_low=0.999, clip_high=1e6)
    found = expected_gradient(theta, settings, groups)
    torch.testing.assert_close(found, true_gradient(theta), atol=1e-7, rtol=1e-6)


def test_the_token_ratio_on_policy_has_the_same_gradient_per_token():
    settings = GrpoSettings(kl_beta=0, advantage="rloo")
    found = expected_gradient(ON, settings, every_group(2))
    torch.testing.assert_close(found, true_gradient(ON) / 2, atol=1e-7, rtol=1e-6)


def test_counting_members_alike_would_be_biased_and_normalising_is_a_little():
    settings = GrpoSettings(kl_beta=0, advantage="rloo", ratio="sequence", clip_low=0.999, clip_high=1e6)
    items, inclusion, mass = every_group(3)
    true = true_gradient(ON)
    # with q = K p every weight is 1/K: the sum that samples would have
    alike = expected_gradient(ON, settings, (items, (3 * LOGITS.softmax(0)[items]).log(), mass))
    normalised = expected_gradient(
        ON, settings.model_copy(update={"inclusion_weights": "normalised"}), (items, inclusion, mass)
    )
    assert (alike - true).abs().max() > 0.1
    assert 1e-3 < (normalised - true).abs().max() < 0.1


def test_a_group_of_all_items_has_no_variance():
    items, q = torch.tensor([[0, 1, 2, 3]]), torch.zeros(1, 4, dtype=torch.float64)
    for kind in ("unbiased", "normalised"):
        settings = GrpoSettings(
            kl_beta=0,
            advantage="dr_grpo",
            ratio="sequence",
            clip_low=0.999,
            clip_high=1e6,
            inclusion_weights=kind,
        )
        found = expected_gradient(OFF, settings, (items, q, torch.ones(1, dtype=torch.float64)))
        torch.testing.assert_close(found, true_gradient(OFF), atol=1e-12, rtol=1e-10)
