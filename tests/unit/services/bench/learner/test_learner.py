"""The sides of `sluice bench learner` compute the same step, and its FLOPs are counted right."""

import copy

import pytest
import torch

from sluice.learner.policy.policy import build_policy
from sluice.learner.settings import PolicySettings
from sluice.services.bench.learner import learner
from sluice.services.bench.learner.learner_sides import RowSide, left_padded, right_padded


@pytest.fixture
def model():
    settings = PolicySettings(hidden_size=16, layers=2, heads=2, feed_forward_size=24)
    return build_policy(settings, (256,) * 4, 64, 0).model


def test_all_sides_have_the_same_loss_and_take_the_same_step(model):
    batch = learner.make_batch(prompts=4, candidates=3, history=10, seed=1)
    assert sorted(batch.history_lengths_B.tolist()) == [
        6,
        8,
        11,
        13,
    ]  # middles of the quarters of 5..15, cut off
    sides = learner.timed_steps(model, batch)
    assert list(sides) == ["shared_prefix", "per_sequence", "trl"]
    losses = {name: [step(), step()] for name, step in sides.items()}
    for name in ("per_sequence", "trl"):
        assert losses[name] == pytest.approx(losses["shared_prefix"], rel=1e-5), name
    assert losses["trl"][1] < losses["trl"][0] - 1e-3


@pytest.mark.parametrize("score", [right_padded, left_padded])
def test_micro_batches_of_rows_do_not_change_the_step(model, score):
    batch = learner.make_batch(prompts=3, candidates=2, history=10, seed=1)
    after = []
    for tokens in (1, 40, 10_000):
        side = RowSide(copy.deepcopy(model), score, lr=1e-3, max_grad_norm=1.0, tokens=tokens)
        after.append([side.step(batch), side.step(batch)])
    assert after[1] == pytest.approx(after[0], rel=1e-6)
    assert after[2] == pytest.approx(after[0], rel=1e-6)


def test_sides_that_differ_are_not_reported():
    learner._check_equal({"per_sequence": 2.0, "trl": 2.0001})
    with pytest.raises(learner.RunError, match=r"loss 2\.1 of trl, 2\.0 of per_sequence"):
        learner._check_equal({"per_sequence": 2.0, "trl": 2.1})


def test_flops_by_hand():
    # D = 4, one head of 4, feed-forward 5: keys and values 32 weights, the rest 32 + 60; a pair costs 8; V =
    # 7
    config = build_policy(PolicySettings(hidden_size=8, layers=2, heads=1), (2, 2), 8, 0).model.config
    config.hidden_size, config.head_dim, config.intermediate_size, config.vocab_size = 4, 4, 5, 7
    # two histories of 3 and 1 token, two branches of 3 fed tokens: 16 tokens, 14 of which predict
    linear = 16 * (2 * 32 + 92) + 14 * 92
    pairs = 2 * (2 * (9 + 6) + 2 * (3 + 6)) + (6 + 1) + (3 + 1)
    assert learner.shared_prefix_flops(config, [3, 1], 2) == 6 * (linear + 8 * pairs + 14 * 4 * 7)
    assert learner.plain_flops(config, 3, 2) == 6 * 3 * (2 * (2 * 124 + 3 * 8) + 2 * 4 * 7)


def test_quick_rows_have_the_promised_fields(monkeypatch):
    monkeypatch.setattr(learner, "PROMPTS", {(2, 6): 4})
    monkeypatch.setattr(learner, "QUICK", ((2, 6),))
    monkeypatch.setattr(learner, "matmul_gflops", lambda: 50.0)
    torch.set_num_threads(1)
    (row,) = learner.run(learner.BenchOptions(quick=True, repeats=1))["rows"]
    assert (row["K"], row["T"], row["prompts"], row["repeats"]) == (2, 6, 2, 1)
    assert row["speedup"] == pytest.approx(
        row["shared_prefix_prompts_per_s"] / row["per_sequence_prompts_per_s"]
    )
    assert row["speedup_over_trl"] == pytest.approx(
        row["shared_prefix_prompts_per_s"] / row["trl_prompts_per_s"]
    )
    assert row["floor_share"] == pytest.approx(row["speedup"] / (3 * 10 / (6 + 12)))
    assert row["peak_share_ratio"] == pytest.approx(row["peak_share"] / row["plain_peak_share"])
