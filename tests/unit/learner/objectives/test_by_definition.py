"""Gate and loss of AdaGRPO against the formulas in plain Python, on random groups full of edges: ties, equal
candidates, hits, hallucinations, missing distractors.
"""

import math

import pytest
import torch

from sluice.catalog.decoding import Decoding
from sluice.learner.batches.batch import GroupBatch
from sluice.learner.gate.gate import compute_gate, whole_places
from sluice.learner.gate.settings import GateSettings
from sluice.learner.objectives.adagrpo import AdaGrpoLoss
from sluice.learner.objectives.settings.objective import GrpoSettings
from sluice.learner.objectives.terms.advantages import group_advantages
from sluice.learner.scoring.shared_prefix import BranchScores
from tests.audit import losses
from tests.unit.learner.learner_cases import objective_input

B, K, L, J = 24, 6, 3, 2
ITEMS = 6  # of the 8 sequences of three bits, the last two are none
FRACTIONS = [number / 20 for number in range(1, 20, 3)]


class Case:
    """Random groups, as tensors and as `losses.Prompt`."""

    def __init__(self, seed: int, kind: str = "sample") -> None:
        self.random = torch.Generator().manual_seed(seed)
        self.target = self.whole(ITEMS, B)
        self.drawn = self.whole(8, B, K)
        if kind == "beam":
            self.drawn = torch.stack([torch.randperm(8, generator=self.random)[:K] for _ in range(B)])
        by_sequence = self.grid(B, 8, L) - 3  # equal candidates have equal log-probs and scores
        scores = self.grid(B, 8)
        self.behaviour = by_sequence.gather(1, self.drawn[..., None].expand(-1, -1, L))
        self.items = torch.where(self.drawn < ITEMS, self.drawn, -1)
        self.scores = scores.gather(1, self.drawn).masked_fill(self.items < 0, torch.nan)
        self.target_scores = scores.gather(1, self.target[:, None])[:, 0]
        self.target_scores[0] = torch.nan
        self.distractors = self.grid(B, J)
        self.distractors[self.whole(3, B, J) == 0] = torch.nan
        self.distractors[1] = torch.nan
        noise = torch.rand(4, B, K + 1, L, generator=self.random, dtype=torch.float64)
        self.policy, self.start = -3 * noise[0], -3 * noise[1]
        self.reference, self.plain = -3 * noise[2], -3 * noise[3, :, 0]
        self.start_target = by_sequence.gather(1, self.target[:, None, None].expand(-1, -1, L))[:, 0]
        self.start[:, 0] = self.start_target
        self.kind = kind

    def whole(self, bound: int, *shape: int) -> torch.Tensor:
        return torch.randint(bound, shape, generator=self.random)

    def grid(self, *shape: int) -> torch.Tensor:
        """Few values, exact in binary: ties."""
        return self.whole(5, *shape).double() / 2

    def batch(self) -> GroupBatch:
        return GroupBatch(
            history_BT=torch.ones(B, 1, dtype=torch.int64),
            history_lengths_B=torch.ones(B, dtype=torch.int64),
            target_BL=_bits(self.target),
            target_items_B=self.target,
            candidates_BKL=_bits(self.drawn),
            candidate_items_BK=self.items,
            behaviour_log_probs_BKL=self.behaviour,
            candidate_scores_BK=self.scores,
            target_scores_B=self.target_scores,
            distractor_scores_BJ=self.distractors,
            allowed_BSLV=None,
            decoding=Decoding(kind=self.kind, candidates=K),
        )

    def prompts(self) -> list[losses.Prompt]:
        return [
            losses.Prompt(
                target=tuple(_bits(self.target)[b].tolist()),
                target_score=float(self.target_scores[b]),
                target_start=sum(self.start_target[b].tolist()),
                target_plain=self.plain[b].tolist(),
                distractors=self.distractors[b].tolist(),
                candidates=[
                    losses.Candidate(
                        tokens=tuple(_bits(self.drawn)[b, k].tolist()),
                        item=int(self.items[b, k]),
                        score=float(self.scores[b, k]),
                        behaviour=self.behaviour[b, k].tolist(),
                        policy=self.policy[b, k + 1].tolist(),
                        start=self.start[b, k + 1].tolist(),
                        reference=self.reference[b, k + 1].tolist(),
                    )
                    for k in range(K)
                ],
            )
            for b in range(B)
        ]


def _bits(sequences: torch.Tensor) -> torch.Tensor:
    return torch.stack([3 + 2 * level + (sequences >> level) % 2 for level in range(L)], dim=-1)


def test_places_are_rounded_down_in_exact_arithmetic():
    for hundredths in range(1, 100):
        for candidates in range(2, 129):
            fraction = hundredths / 100
            assert whole_places(fraction, candidates) == losses.places(fraction, candidates)


@pytest.mark.parametrize("kind", ["sample", "beam"])
@pytest.mark.parametrize("rule", ["below_head", "within_bottom"])
def test_the_gate_is_that_of_the_definition(kind: str, rule: str):
    opened = closed = 0
    for seed in range(3):
        case = Case(seed, kind)
        batch, prompts = case.batch(), case.prompts()
        assert len({prompt.target_score for prompt in prompts}) > 2
        for tau in FRACTIONS:
            for rho in FRACTIONS:
                settings = GateSettings(tau=tau, rho=rho, distractor_rule=rule)
                gates = compute_gate(batch, case.start_target.sum(dim=-1), settings).gate_B.tolist()
                expected = [
                    losses.gate(prompt, tau, rho, rule=rule, exact_beams=kind == "beam") for prompt in prompts
                ]
                assert gates == expected, (seed, tau, rho)
                opened += sum(expected)
                closed += len(expected) - sum(expected)
    assert opened > 100 and closed > 100


@pytest.mark.parametrize("kind", ["grpo", "dr_grpo", "rloo"])
def test_advantages_are_those_of_the_definition(kind: str):
    rewards = Case(0).grid(200, 3)
    expected = [losses.advantages(row, kind) for row in rewards.tolist()]
    assert any(not any(row) for row in expected), "a group without a difference"
    torch.testing.assert_close(group_advantages(rewards, kind), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("old_policy", ["behaviour", "batch_start"])
@pytest.mark.parametrize("kind", ["grpo", "dr_grpo", "rloo"])
@pytest.mark.parametrize("kl_beta", [0.0, 0.5])
def test_the_loss_and_its_gradient_are_those_of_the_definition(old_policy: str, kind: str, kl_beta: float):
    case, gate = Case(7), GateSettings(tau=0.5, rho=0.25)
    admitted = [losses.gate(prompt, gate.tau, gate.rho) for prompt in case.prompts()]
    assert sum(admitted) >= 3 and not all(admitted)
    settings = GrpoSettings(advantage=kind, kl_beta=kl_beta, old_policy=old_policy)

    def by_definition() -> float:
        group = {"kind": kind, "kl_beta": kl_beta, "clips": (0.2, 0.2), "old_policy": old_policy}
        return losses.loss(case.prompts(), 150.0, admitted, **group)

    leaf = case.policy.clone().requires_grad_()
    entropy = torch.ones_like(case.policy)
    value = AdaGrpoLoss(150.0, settings, gate)(
        objective_input(
            case.batch(),
            BranchScores(leaf, case.plain, entropy),
            BranchScores(case.start, case.start_target, entropy),
            case.reference if kl_beta else None,
        )
    ).loss
    assert value.item() == pytest.approx(by_definition(), rel=1e-6)
    value.backward()
    slopes = []
    for b in (*[b for b in range(B) if admitted[b]][:4], admitted.index(0)):
        for k, t in ((1, 0), (2, 1), (4, 2)):
            ends = []
            for step in (1e-5, -2e-5):
                case.policy[b, k, t] += step
                ends.append(by_definition())
            case.policy[b, k, t] += 1e-5
            slopes.append((ends[0] - ends[1]) / 2e-5)
            assert leaf.grad[b, k, t].item() == pytest.approx(slopes[-1], rel=1e-4, abs=1e-6), (b, k, t)
    assert any(slopes) and not all(slopes)
    assert all(map(math.isfinite, slopes))
