"""Every objective on a bandit whose optimum is known: `python docs/scripts/bandit.py` prints a table and
draws docs/pictures/bandit.svg.

Two contexts, nine items of two tokens, and a policy that is a table of logits over the code tree, with a
table of values. Expectations are exact: a batch holds every (context, logged item, group of K candidates),
and the gradient that the objective gives to each row's scores is multiplied with the row's probability before
it goes on to the tables. That is the expected gradient of a step with sampled rows, up to a positive factor.
The exit status is 1 when an objective misses the optimum that its theory gives, or when the gate does not
hold the policy where the ranker is wrong.

An objective more is a `Case` more.
"""

import itertools
import math
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
matplotlib.use("Agg")
import matplotlib.pyplot as plt

from sluice.catalog.decoding import Decoding
from sluice.catalog.settings import Settings
from sluice.learner.batches.batch import GroupBatch
from sluice.learner.gate.gate import compute_gate
from sluice.learner.gate.settings import GateSettings
from sluice.learner.objectives.settings.logged import (
    AdvantageSftObjective,
    CqlObjective,
    RewardWeightedBcObjective,
    ValueHeadBaseline,
)
from sluice.learner.objectives.settings.objective import (
    AdaGrpoObjective,
    EcpoObjective,
    EcpoSettings,
    GbpoObjective,
    GrpoObjective,
    GrpoSettings,
    GrpoSrObjective,
    GrpoSrSettings,
    MixtureObjective,
    NllObjective,
    RereObjective,
)
from sluice.learner.objectives.settings.preference import (
    DpoObjective,
    IntervalPairs,
    IpoObjective,
    PpoObjective,
    SelfPairs,
)
from sluice.learner.objectives.terms.base import ObjectiveInput
from sluice.learner.rewards.settings import RankerReward, RelevanceReward
from sluice.learner.scoring.shared_prefix import BranchScores
from sluice.learner.training.objective import build_objective

CONTEXTS, CODES, LEVELS = 2, 3, 2
ITEMS = CODES**LEVELS
STEPS, LR = 300, 0.1
REACHED = 0.03  # total variation distance to the optimum


@dataclass(frozen=True, kw_only=True)
class Bandit:
    """What is known of the world; X contexts, N items."""

    logged_XN: torch.Tensor  # probabilities of the logging policy
    reward_XN: torch.Tensor  # of the user, as the logs tell it
    ranker_XN: torch.Tensor  # what the ranker makes of it
    reference_XN: torch.Tensor  # probabilities of the starting policy


@dataclass(frozen=True)
class Case:
    """An objective and what its theory says of it."""

    name: str
    settings: Settings
    says: str = ""  # the optimum in words
    optimum: Callable[[Bandit], torch.Tensor] | None = (
        None  # probabilities [X, N]; None: an order of the items
    )
    candidates: int = 0  # K
    logged: bool = True  # it looks at the logged item
    fixed: bool = False  # candidates are drawn from the reference, not from the policy


class TreePolicy(nn.Module):
    """Logits of the first code, of the second behind each first, and the values of both states."""

    def __init__(self, start_XN: torch.Tensor) -> None:
        """Start at these probabilities, with values of 0."""
        super().__init__()
        tree_XCC = start_XN.view(-1, CODES, CODES)
        self.first_XC = nn.Parameter(tree_XCC.sum(dim=-1).log())
        self.second_XCC = nn.Parameter(tree_XCC.log())
        self.value_X = nn.Parameter(torch.zeros_like(start_XN[:, 0]))
        self.value_XC = nn.Parameter(torch.zeros_like(self.first_XC))

    def forward(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probs and values, `[X, N, 2]`: of each token and of the state before it."""
        first_XN = self.first_XC.log_softmax(dim=-1).repeat_interleave(CODES, dim=-1)
        second_XN = self.second_XCC.log_softmax(dim=-1).flatten(1)
        before_XN = self.value_X[:, None].expand(-1, ITEMS)
        return (
            torch.stack([first_XN, second_XN], dim=-1),
            torch.stack([before_XN, self.value_XC.repeat_interleave(CODES, dim=-1)], dim=-1),
        )


def random_bandit(seed: int = 0) -> Bandit:
    """A ranker that is right, and a starting policy that differs from the logging policy."""
    generator = torch.Generator().manual_seed(seed)
    logged_XN, reference_XN = (
        torch.randn(CONTEXTS, ITEMS, generator=generator, dtype=torch.float64).softmax(dim=-1)
        for _ in range(2)
    )
    # Evenly spaced: between two items that are nearly as good, policy gradients without a deviation are slow
    # to choose.
    places_XN = torch.stack([torch.randperm(ITEMS, generator=generator) for _ in range(CONTEXTS)])
    reward_XN = 2 * places_XN.double() / (ITEMS - 1)
    return Bandit(logged_XN=logged_XN, reward_XN=reward_XN, ranker_XN=reward_XN, reference_XN=reference_XN)


def half_corrupted(seed: int = 0) -> Bandit:
    """Users take what rewards them among what they are shown; the start is the supervised solution.

    The ranker knows the reward in context 0 and has it upside down in context 1.
    """
    generator = torch.Generator().manual_seed(seed)
    reward_XN = 2 * torch.rand(CONTEXTS, ITEMS, generator=generator, dtype=torch.float64)
    exposure_XN = torch.randn(CONTEXTS, ITEMS, generator=generator, dtype=torch.float64)
    logged_XN = (2.5 * reward_XN + exposure_XN).softmax(dim=-1)
    ranker_XN = torch.stack([reward_XN[0], -reward_XN[1]])
    return Bandit(logged_XN=logged_XN, reward_XN=reward_XN, ranker_XN=ranker_XN, reference_XN=logged_XN)


class Rows:
    """Every (context, logged item, group) as a row of one batch, and how probable each is."""

    def __init__(self, bandit: Bandit, case: Case) -> None:
        """Enumerate them; a group is a multiset, since its order means nothing."""
        groups = list(itertools.combinations_with_replacement(range(ITEMS), case.candidates))
        logged = range(ITEMS) if case.logged else range(1)
        rows = list(itertools.product(range(CONTEXTS), logged, range(len(groups))))
        self.context_B, target_B, group_B = torch.tensor(rows).unbind(dim=-1)
        self.group_BK = torch.tensor(groups, dtype=torch.int64).view(len(groups), case.candidates)[group_B]
        self.branch_BS = torch.cat([target_B[:, None], self.group_BK], dim=1)
        orders = [
            math.factorial(case.candidates) / math.prod(map(math.factorial, Counter(g).values()))
            for g in groups
        ]
        weight_B = torch.tensor(orders, dtype=torch.float64)[group_B]
        if case.logged:
            weight_B = weight_B * bandit.logged_XN[self.context_B, target_B]
        self._weight_B = weight_B
        context_B1 = self.context_B[:, None]
        tokens_NL = torch.tensor(list(itertools.product(range(CODES), repeat=LEVELS)))
        scores_BK = bandit.ranker_XN[context_B1, self.group_BK]
        self._batch = GroupBatch(
            history_BT=context_B1,
            history_lengths_B=torch.ones_like(self.context_B),
            target_BL=tokens_NL[target_B],
            logged_rewards_B=bandit.reward_XN[self.context_B, target_B],
            candidates_BKL=tokens_NL[self.group_BK],
            behaviour_log_probs_BKL=torch.zeros(*self.group_BK.shape, LEVELS, dtype=torch.float64),
            candidate_items_BK=self.group_BK,
            target_items_B=target_B,
            candidate_scores_BK=scores_BK,
            target_scores_B=bandit.ranker_XN[self.context_B, target_B],
            distractor_scores_BJ=torch.full(
                (len(rows), 1), torch.nan
            ),  # none: their half of the gate is vacuous
            candidate_spread_BK=torch.zeros_like(scores_BK),
            target_spread_B=torch.zeros_like(weight_B),
            candidate_values_BK=scores_BK,
            allowed_BSLV=None,
            decoding=Decoding(candidates=case.candidates),
        )

    def drawn_from(self, log_probs_XNL: torch.Tensor) -> tuple[GroupBatch, torch.Tensor]:
        """The batch with these behaviour log-probs, and the probability of each row."""
        behaviour_BKL = log_probs_XNL[self.context_B[:, None], self.group_BK]
        weight_B = self._weight_B * behaviour_BKL.sum(dim=(1, 2)).exp()
        return replace(self._batch, behaviour_log_probs_BKL=behaviour_BKL), weight_B

    def branches(self, values_XNL: torch.Tensor) -> torch.Tensor:
        """What belongs to each row's branches `[B, S, L]`."""
        return values_XNL[self.context_B[:, None], self.branch_BS]


def train(case: Case, bandit: Bandit) -> list[torch.Tensor]:
    """The policy's probabilities `[X, N]` before each step and after the last."""
    policy, rows, objective = (
        TreePolicy(bandit.reference_XN),
        Rows(bandit, case),
        build_objective(case.settings),
    )
    with torch.no_grad():
        reference_XNL, _ = policy()
    optimizer = torch.optim.Adam(policy.parameters(), lr=LR)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    history = []
    for _ in range(STEPS):
        log_probs_XNL, values_XNL = policy()
        history.append(log_probs_XNL.detach().sum(dim=-1).exp())
        batch, weight_B = rows.drawn_from(reference_XNL if case.fixed else log_probs_XNL.detach())
        outputs = rows.branches(log_probs_XNL), rows.branches(values_XNL)
        leaves = [output.detach().requires_grad_() for output in outputs]
        scores = BranchScores(leaves[0], leaves[0][:, 0], torch.zeros_like(leaves[0]), leaves[1])
        inputs = ObjectiveInput(
            batch=batch,
            scores=scores,
            start=scores.detach(),
            reference_BSL=rows.branches(reference_XNL),
        )
        loss = objective(inputs).loss
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
        optimizer.zero_grad()
        scale_B11 = (len(weight_B) * weight_B)[:, None, None]
        torch.autograd.backward(outputs, [scale_B11 * gradient for gradient in gradients])
        optimizer.step()
        schedule.step()
    history.append(policy()[0].detach().sum(dim=-1).exp())
    return history


def misordered(bandit: Bandit, policy_XN: torch.Tensor) -> torch.Tensor:
    """Share `[X]` of the pairs of the reference's samples whose better item did not gain more than the
    other.
    """
    gain_XN = (policy_XN / bandit.reference_XN).log()
    pair_XNN = bandit.reference_XN[:, :, None] * bandit.reference_XN[:, None]
    better_XNN = pair_XNN * (bandit.ranker_XN[:, :, None] > bandit.ranker_XN[:, None])
    wrong_XNN = better_XNN * (gain_XN[:, :, None] <= gain_XN[:, None])
    return wrong_XNN.sum(dim=(1, 2)) / better_XNN.sum(dim=(1, 2))


def distance(first_XN: torch.Tensor, second_XN: torch.Tensor) -> torch.Tensor:
    """Total variation distance `[X]`."""
    return (first_XN - second_XN).abs().sum(dim=-1) / 2


def normalised(weights_XN: torch.Tensor) -> torch.Tensor:
    """Probabilities in proportion to the weights."""
    return weights_XN / weights_XN.sum(dim=-1, keepdim=True)


def ipo_optimum(bandit: Bandit, tau: float = 0.5) -> torch.Tensor:
    """pi_ref exp(P(y preferred to a sample of pi_ref) / tau), an item being preferred to itself half of the
    time.
    """
    r_XN = bandit.ranker_XN
    preferred_XNN = (r_XN[:, :, None] > r_XN[:, None, :]).double() + 0.5 * torch.eye(
        ITEMS, dtype=torch.float64
    )
    return normalised(
        bandit.reference_XN * ((preferred_XNN * bandit.reference_XN[:, None]).sum(dim=-1) / tau).exp()
    )


def cql_optimum(bandit: Bandit, alpha: float = 0.5) -> torch.Tensor:
    """softmax(Q) at scale 1, Q minimising alpha (logsumexp Q - E_p Q) + E_p (Q - r)^2, by Newton's method."""
    p_XN, q_XN = bandit.logged_XN, bandit.reward_XN.clone()
    for _ in range(100):
        soft_XN = q_XN.softmax(dim=-1)
        slope_XN = alpha * (soft_XN - p_XN) + 2 * p_XN * (q_XN - bandit.reward_XN)
        curve_XNN = (
            torch.diag_embed(alpha * soft_XN + 2 * p_XN) - alpha * soft_XN[:, :, None] * soft_XN[:, None, :]
        )
        q_XN = q_XN - torch.linalg.solve(curve_XNN, slope_XN)
    return q_XN.softmax(dim=-1)


def best(bandit: Bandit) -> torch.Tensor:
    """All on the item of highest ranker score."""
    return nn.functional.one_hot(bandit.ranker_XN.argmax(dim=-1), ITEMS).double()


def often_taken(bandit: Bandit) -> torch.Tensor:
    """All on the item that the logs hold most often: the largest chance of a hit."""
    return nn.functional.one_hot(bandit.logged_XN.argmax(dim=-1), ITEMS).double()


def relevant(bandit: Bandit) -> torch.Tensor:
    """All on the item of the largest preference times relevance, the chance that the logged item shares its
    first code.
    """
    family_XN = bandit.logged_XN.view(-1, CODES, CODES).sum(dim=-1).repeat_interleave(CODES, dim=-1)
    return nn.functional.one_hot((bandit.ranker_XN.sigmoid() * family_XN).argmax(dim=-1), ITEMS).double()


def exponential(bandit: Bandit) -> torch.Tensor:
    """The optimum of A-SFT at beta = 1/2."""
    return normalised(bandit.logged_XN * (2 * bandit.reward_XN).exp())


def regularised(bandit: Bandit) -> torch.Tensor:
    """The optimum of PPO at kl_coef = 1/2."""
    return normalised(bandit.reference_XN * (2 * bandit.ranker_XN).exp())


def semi_generative(bandit: Bandit) -> torch.Tensor:
    """The optimum of DPO at beta = 2 on the logged item over a sample of the reference."""
    return normalised(bandit.reference_XN * (bandit.logged_XN / bandit.reference_XN).sqrt())


def grpo(**settings: object) -> GrpoObjective:
    """GRPO without KL, with these settings."""
    return GrpoObjective(grpo=GrpoSettings(kl_beta=0, **settings))


NO_KL, CERTAIN = GrpoSettings(kl_beta=0), IntervalPairs(ground_truth=False)
A_SFT = {"beta": 0.5, "max_weight": 1e6}
BEST = "the best item"
RELEVANT = GrpoSrObjective(
    alpha=0,
    grpo=GrpoSrSettings(
        advantage="dr_grpo",
        ground_truth="none",
        rewards=(RankerReward(transform="sigmoid"), RelevanceReward()),
    ),
)
IN_ORDER, IPO = "every pair in order (share wrong)", "pi_ref exp(P(y > pi_ref) / tau)"
CASES = (
    Case("nll", NllObjective(), "p", lambda w: w.logged_XN),
    Case("reward_weighted_bc", RewardWeightedBcObjective(), "p r",
         lambda w: normalised(w.logged_XN * w.reward_XN)),
    Case("a_sft, candidates", AdvantageSftObjective(**A_SFT), "p exp(r / beta)", exponential, 2),
    Case("a_sft, value head", AdvantageSftObjective(**A_SFT, baseline=ValueHeadBaseline()), "the same",
         exponential),
    Case("grpo", GrpoObjective(grpo=NO_KL), BEST, best, 2, False),
    Case("grpo, Dr.GRPO", grpo(advantage="dr_grpo"), BEST, best, 2, False),
    Case("grpo, RLOO", grpo(advantage="rloo"), BEST, best, 2, False),
    Case("grpo, DAPO", grpo(clip_high=0.28, drop_equal_groups=True), BEST, best, 2, False),
    Case("grpo, GSPO", grpo(ratio="gspo"), BEST, best, 2, False),
    Case("ecpo", EcpoObjective(grpo=EcpoSettings()), BEST, best, 2, False),
    Case("gbpo", GbpoObjective(), BEST, best, 2, False),
    Case("grpo_sr, alpha = 0", RELEVANT, "the best s times relevance", relevant, 2),
    Case("rere", RereObjective(grpo={"kl_beta": 0}), "the item taken most", often_taken, 2),
    Case("ppo", PpoObjective(kl_coef=0.5), "pi_ref exp(s / kl_coef)", regularised, 1, False),
    Case("dpo, ranker_intervals", DpoObjective(beta=3.0, pairs=CERTAIN), IN_ORDER, None, 2, False, True),
    Case("dpo, self_generated", DpoObjective(beta=3.0, pairs=SelfPairs()), IN_ORDER, None, 2, False, True),
    Case("dpo, logged/generated", DpoObjective(beta=2.0), "sqrt(pi_ref p), beta = 2",
         semi_generative, 1, True, True),
    Case("ipo, ranker_intervals", IpoObjective(tau=0.5, pairs=CERTAIN), IPO, ipo_optimum, 2, False, True),
    Case("cql", CqlObjective(alpha=0.5), "softmax of the optimal Q", cql_optimum, 3),
)  # fmt: skip
WEIGHT = 4.0
GATE = GateSettings(tau=0.25, rho=0.25)  # the best one of four candidates
GATED = Case("gated", AdaGrpoObjective(weight=WEIGHT, grpo=NO_KL, gate=GATE), candidates=4)


def mixture(name: str, weight: float) -> Case:
    """NLL + weight * GRPO on every row."""
    return Case(name, MixtureObjective(weight=weight, grpo=NO_KL), candidates=4)


def admission_rate(bandit: Bandit) -> float:
    """The chance that the gate admits a prompt at the start."""
    rows = Rows(bandit, GATED)
    with torch.no_grad():
        log_probs_XNL, _ = TreePolicy(bandit.reference_XN)()
    batch, weight_B = rows.drawn_from(log_probs_XNL)
    admitted_B = compute_gate(batch, rows.branches(log_probs_XNL)[:, 0].sum(dim=-1), GATE).admitted_B
    return (weight_B[admitted_B].sum() / weight_B.sum()).item()


def study_optima(axes: plt.Axes) -> bool:
    """Every case against its optimum; True when all are reached."""
    bandit, reached = random_bandit(), True
    axes.set_prop_cycle(color=plt.colormaps["tab20"].colors)
    columns = f"{'at start':>9} {'at end':>9} {'reward':>8} {'its own':>8}"
    print(f"{'objective':28} {'optimum (in proportion to)':34} {columns}")
    for case in CASES:
        history, best_reward = train(case, bandit), math.nan
        if case.optimum is None:
            apart = [misordered(bandit, policy_XN).max().item() for policy_XN in history]
        else:
            optimum_XN = case.optimum(bandit)
            best_reward = (optimum_XN * bandit.reward_XN).sum(dim=-1).mean().item()
            apart = [distance(policy_XN, optimum_XN).max().item() for policy_XN in history]
        reward = (history[-1] * bandit.reward_XN).sum(dim=-1).mean().item()
        reached &= apart[-1] < REACHED
        verdict = "" if apart[-1] < REACHED else f"  MISSED (bound {REACHED})"
        figures = f"{apart[0]:9.4f} {apart[-1]:9.4f} {reward:8.4f} {best_reward:8.4f}"
        print(f"{case.name:28} {case.says:34} {figures}{verdict}", flush=True)
        axes.plot(apart, label=case.name, linewidth=1.2)
    axes.set(yscale="log", ylim=(1e-5, 1.5), xlabel="step", ylabel="total variation distance")
    axes.set_title("distance to the optimum of its theory")
    axes.legend(frameon=False, fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5))
    return reached


def study_gate(axes: plt.Axes) -> bool:
    """How far each moves from the supervised solution where the ranker is right and where it is wrong.

    True when the gate keeps three quarters of the harm away, and some of the good.
    """
    bandit = half_corrupted()
    rate = admission_rate(bandit)
    cases = (
        mixture("supervised", 0.0),
        mixture("ungated", WEIGHT),
        GATED,
        mixture("random gate", WEIGHT * rate),
    )
    print(f"\nthe gate admits {rate:.3f} of the prompts at the start, and the random gate as many")
    print(f"{'':12} {'moved, ranker right':>20} {'wrong':>8} {'reward, right':>16} {'wrong':>8}")
    moved, gained = {}, {}
    for place, case in enumerate(cases):
        last_XN = train(case, bandit)[-1]
        right, wrong = moved[case.name] = distance(last_XN, bandit.logged_XN).tolist()
        gained[case.name] = ((last_XN - bandit.logged_XN) * bandit.reward_XN).sum(dim=-1).tolist()
        print(
            "{:12} {:20.4f} {:8.4f} {:+16.4f} {:+8.4f}".format(case.name, right, wrong, *gained[case.name]),
            flush=True,
        )
        axes.bar(place - 0.2, right, width=0.4, color="#2e8b57", label=None if place else "right")
        axes.bar(place + 0.2, wrong, width=0.4, color="#d9822b", label=None if place else "wrong")
    axes.set(
        xticks=range(len(cases)), xticklabels=[case.name for case in cases], ylabel="total variation distance"
    )
    axes.set_title("moved away from the supervised solution")
    axes.legend(title="where the ranker is", frameon=False)
    return moved["gated"][1] < 0.25 * moved["ungated"][1] and gained["gated"][0] > 0


def main() -> int:
    """Both studies and the picture."""
    torch.set_num_threads(1)
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    done = [study_optima(axes[0]), study_gate(axes[1])]
    for part in axes:
        part.spines[["top", "right"]].set_visible(False)
    figure.savefig(Path(__file__).parents[1] / "pictures" / "bandit.svg")
    return 0 if all(done) else 1


if __name__ == "__main__":
    sys.exit(main())
