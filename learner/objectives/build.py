"""From the settings of an objective to the objective."""

from collections.abc import Callable
from typing import Any

from learner.objective_settings import (
    AdaGrpoObjective,
    EcpoObjective,
    GbpoObjective,
    GrpoObjective,
    GrpoSrObjective,
    MixtureObjective,
    NllObjective,
    RereObjective,
)
from learner.objective_settings import Objective as ObjectiveSettings
from learner.objectives.a_sft import AdvantageSftLoss
from learner.objectives.adagrpo import AdaGrpoLoss
from learner.objectives.base import Objective
from learner.objectives.cql import CqlLoss
from learner.objectives.dpo import DpoLoss
from learner.objectives.ecpo import EcpoLoss
from learner.objectives.gbpo import GbpoLoss
from learner.objectives.grpo import GrpoLoss
from learner.objectives.grpo_sr import GrpoSrLoss
from learner.objectives.ipo import IpoLoss
from learner.objectives.mixture import MixtureLoss
from learner.objectives.nll import NllLoss
from learner.objectives.ppo import PpoLoss
from learner.objectives.rere import RereLoss
from learner.objectives.reward_weighted_bc import RewardWeightedBcLoss
from learner.preference_settings import (
    AdvantageSftObjective,
    CqlObjective,
    DpoObjective,
    IpoObjective,
    PpoObjective,
    RewardWeightedBcObjective,
)

_BUILDERS: dict[type, Callable[[Any], Objective]] = {
    NllObjective: lambda settings: NllLoss(),
    GrpoObjective: lambda settings: GrpoLoss(settings.grpo),
    MixtureObjective: lambda settings: MixtureLoss(settings.weight, settings.grpo),
    AdaGrpoObjective: lambda settings: AdaGrpoLoss(settings.weight, settings.grpo, settings.gate),
    GrpoSrObjective: lambda settings: GrpoSrLoss(settings.alpha, settings.grpo),
    EcpoObjective: lambda settings: EcpoLoss(settings.grpo),
    GbpoObjective: lambda settings: GbpoLoss(settings.grpo),
    RereObjective: lambda settings: RereLoss(settings.grpo),
    RewardWeightedBcObjective: lambda settings: RewardWeightedBcLoss(settings.missing_weight),
    AdvantageSftObjective: AdvantageSftLoss,
    DpoObjective: DpoLoss,
    IpoObjective: IpoLoss,
    PpoObjective: PpoLoss,
    CqlObjective: CqlLoss,
}


def build_objective(settings: ObjectiveSettings) -> Objective:
    """The objective that `settings` describe; a new one needs a file here, a class in the settings and a line above."""
    if type(settings) not in _BUILDERS:
        raise TypeError(f"no objective is built from {type(settings).__name__}")
    return _BUILDERS[type(settings)](settings)
