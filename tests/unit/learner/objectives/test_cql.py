import itertools
import math
from dataclasses import replace

import pytest
import torch

from sluice.catalog.errors import ConfigError, DataError
from sluice.learner.objectives.cql import CqlLoss, log_sum_items, sampling_log_weights
from sluice.learner.objectives.settings.logged import CqlObjective
from tests.unit.learner.learner_cases import FOUR_BEAMS, NAN, objective_input, one_group, random_batch
from tests.unit.learner.preference_cases import (
    assert_nothing_to_learn,
    double,
    means,
    per_branch,
    rich_batch,
    scores_of,
)

ITEMS = torch.tensor([[1, 0, -1, 4]])  # candidate 2 is a hit, candidate 3 no item
VALUES = double([[[0.5, 9, 9]] * 5])  # of the prompt, and of the states after it


def cql(**changes):
    return CqlLoss(CqlObjective(**({"alpha": 2.0, "scale": 0.5} | changes)))


def group(reward=1.0, **changes):
    return one_group(**({"candidate_items_BK": ITEMS, "logged_rewards_B": torch.tensor([reward])} | changes))


def of(objective, batch, now, values):
    return objective(
        objective_input(batch, scores_of(now, values), scores_of(now.detach(), values.detach()), None)
    )


def test_cql():
    # Q is .5 + l / 2: -.25 for GT, -1 and -2.5 for candidates 1 and 4, drawn with log-probs -1 and -4
    now = per_branch(-1.5, -3.0, -1.5, -2.0, -6.0)
    conservative = math.log(math.exp(-0.25) + math.exp(-1 + 1) / 4 + math.exp(-2.5 + 4) / 4) + 0.25
    terms = of(cql(), group(), now, VALUES)
    assert terms.loss.item() == pytest.approx(
        2 * conservative + 1.5625, abs=1e-7
    )  # sampling is recorded in float32
    assert of(cql(alpha=0.0), group(reward=-0.25), now, VALUES).loss.item() == pytest.approx(0, abs=1e-12)
    assert means(terms) == pytest.approx(
        {
            "loss": terms.loss.item(),
            "nll": 1.5,
            "conservative": conservative,
            "q_error": 1.5625,
            "q_logged": -0.25,
            "rewarded_share": 1,
            "entropy": 1,
            "invalid_share": 0.25,
        }
    )


def test_sampling_weights():
    found = sampling_log_weights(group())[0].tolist()
    assert found == pytest.approx([1 - math.log(4), -math.inf, -math.inf, 4 - math.log(4)], abs=1e-6)
    included = group(inclusion_log_probs_BK=torch.tensor([[-0.5, -1.0, -1.0, -2.0]]), decoding=FOUR_BEAMS)
    assert sampling_log_weights(included)[0].tolist() == [0.5, -math.inf, -math.inf, 2.0]
    with pytest.raises(ConfigError, match=r"beams are no sample: set rollout\.decode\.kind"):
        sampling_log_weights(group(decoding=FOUR_BEAMS))


# A policy over two levels of 3 and 2 tokens: six sequences, of which the last is no item.
LEVELS = double([0.5, 0.3, 0.2]), double([[0.4, 0.6], [0.9, 0.1], [0.7, 0.3]])
SEQUENCE = (LEVELS[0][:, None] * LEVELS[1]).flatten()
DRAWN = double([0.3, 0.1, 0.1, 0.2, 0.2, 0.1])  # another distribution that the candidates come from
LOGGED = 2


def drawn(chosen, value, scale, items, behaviour=DRAWN):
    """Q of the logged and the drawn sequences and the weights, for one group drawn from `behaviour`."""
    batch = one_group(
        candidates_BKL=torch.zeros(1, len(chosen), 2, dtype=torch.int64),
        candidate_items_BK=torch.tensor([[items[sequence] for sequence in chosen]]),
        behaviour_log_probs_BKL=behaviour[list(chosen)].log()[None, :, None]
        / 2
        * torch.ones(2, dtype=torch.float64),
        target_items_B=torch.tensor([items[LOGGED]]),
    )
    q = value + scale * SEQUENCE.log()
    return log_sum_items(q[None, LOGGED], q[None, list(chosen)], sampling_log_weights(batch))[0]


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("candidates", [1, 2, 3])
def test_the_sum_over_items_is_unbiased(scale, candidates):
    value, items = 0.7, [0, 1, 2, 3, 4, -1]
    exact = (value + scale * SEQUENCE[:5].log()).exp().sum()
    mean = sum(
        DRAWN[list(chosen)].prod() * drawn(chosen, value, scale, items).exp()
        for chosen in itertools.product(range(6), repeat=candidates)
    )
    assert mean.item() == pytest.approx(exact.item(), abs=1e-12)


def test_over_all_sequences_at_scale_1_the_logsumexp_is_the_value():
    value, items = 0.7, [0, 1, 2, 3, 4, 5]
    mean = sum(DRAWN[sequence] * drawn((sequence,), value, 1.0, items).exp() for sequence in range(6))
    assert mean.log().item() == pytest.approx(value, abs=1e-12)
    every = torch.tensor([[-math.inf if sequence == LOGGED else 0.0 for sequence in range(6)]])  # each once
    q = value + SEQUENCE.log()[None]
    assert log_sum_items(q[:, LOGGED], q, every).item() == pytest.approx(value, abs=1e-12)


def test_the_logarithm_is_too_low_by_what_falls_with_the_number_of_candidates():
    value, scale, items = 0.7, 0.5, [0, 1, 2, 3, 4, -1]
    exact = (value + scale * SEQUENCE[:5].log()).exp().sum().log().item()
    short = []
    for candidates in (1, 2, 3, 4):
        groups = itertools.product(range(6), repeat=candidates)
        mean = sum(DRAWN[list(chosen)].prod() * drawn(chosen, value, scale, items) for chosen in groups)
        short.append(exact - mean.item())
    assert short[0] > short[1] > short[2] > short[3] > 0
    # half the squared coefficient of variation of the sum, up to terms of higher order
    q = (value + scale * SEQUENCE.log()).exp()
    draws = torch.where(torch.arange(6) == LOGGED, 0.0, q / DRAWN)
    draws[5] = 0
    variance = (DRAWN * draws**2).sum() - (DRAWN * draws).sum() ** 2
    assert short[3] == pytest.approx((variance / 4 / 2 / math.exp(exact) ** 2).item(), rel=0.25)


def test_the_conservative_term_is_never_negative():
    torch.manual_seed(0)
    batch, now = rich_batch(), -5 * torch.rand(6, 5, 3, dtype=torch.float64)
    values = torch.randn_like(now)
    assert means(of(cql(), batch, now, values))["conservative"] > 0
    nothing = replace(batch, candidate_items_BK=torch.full((6, 4), -1))
    assert means(of(cql(), nothing, now, values))["conservative"] == 0


def test_the_logged_action_is_drawn_to_its_reward_and_the_others_down():
    now = per_branch(-1.5, -3.0, -1.5, -2.0, -6.0).requires_grad_()
    of(cql(), group(reward=5.0), now, VALUES).loss.backward()
    descent = -now.grad[0].sum(dim=-1)
    assert descent[0] > 0 and descent[1] < 0 and descent[4] < 0
    assert descent[2] == descent[3] == 0  # a hit is the logged action; no item is no action


def test_the_value_is_that_of_the_prompt():
    values = VALUES.clone().requires_grad_()
    of(cql(alpha=0.0), group(), per_branch(-1.5, -3.0, -1.5, -2.0, -6.0), values).loss.backward()
    assert values.grad[0, 0].tolist() == [-2.5, 0, 0] and values.grad[0, 1:].abs().max() == 0


def test_rows_without_a_reward_do_not_count():
    batch = rich_batch(prompts=3)  # the second has none
    torch.manual_seed(0)
    now, values = -torch.rand(3, 5, 3, dtype=torch.float64), torch.randn(3, 5, 3, dtype=torch.float64)
    kept = {name: value[[0, 2]] for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
    other = of(cql(), type(batch)(**(vars(batch) | kept)), now[[0, 2]], values[[0, 2]])
    terms = of(cql(), batch, now, values)
    assert cql().normaliser(batch).item() == 2 and terms.loss.item() == pytest.approx(
        other.loss.item(), abs=1e-12
    )
    assert terms.metrics["rewarded_share"].tolist() == [2, 3]


def test_no_reward_no_loss():
    scores = scores_of(per_branch(-1, -2, -3, -4, -5).requires_grad_(), VALUES.clone().requires_grad_())
    assert_nothing_to_learn(cql(), group(reward=NAN), scores, scores.detach())
    with pytest.raises(DataError, match="logged rewards"):
        cql().normaliser(random_batch())


@pytest.mark.parametrize("settings", [{}, {"scale": 2.0, "alpha": 0.3}])
def test_gradcheck(settings):
    torch.manual_seed(0)
    now = (-2 * torch.rand(3, 5, 3, dtype=torch.float64)).requires_grad_()
    values = torch.randn(3, 5, 3, dtype=torch.float64).requires_grad_()
    batch = rich_batch(prompts=3)
    assert torch.autograd.gradcheck(lambda *point: of(cql(**settings), batch, *point).loss, (now, values))


def test_needs():
    assert cql().needs_values and cql().needs_groups and not cql().needs_reference
