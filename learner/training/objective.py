"""From the settings of an objective to the objective."""

from collections.abc import Callable
from typing import Any

from sluice.learner.objectives.a_sft import AdvantageSftLoss
from sluice.learner.objectives.adagrpo import AdaGrpoLoss
from sluice.learner.objectives.cql import CqlLoss
from sluice.learner.objectives.dpo import DpoLoss
from sluice.learner.objectives.ecpo import EcpoLoss
from sluice.learner.objectives.gbpo import GbpoLoss
from sluice.learner.objectives.grpo import GrpoLoss
from sluice.learner.objectives.grpo_sr import GrpoSrLoss
from sluice.learner.objectives.ipo import IpoLoss
from sluice.learner.objectives.mixture import MixtureLoss
from sluice.learner.objectives.nll import NllLoss
from sluice.learner.objectives.ppo import PpoLoss
from sluice.learner.objectives.rere import RereLoss
from sluice.learner.objectives.reward_weighted_bc import RewardWeightedBcLoss
from sluice.learner.objectives.settings.logged import (
    AdvantageSftObjective,
    CqlObjective,
    RewardWeightedBcObjective,
)
from sluice.learner.objectives.settings.objective import (
    AdaGrpoObjective,
    EcpoObjective,
    GbpoObjective,
    GrpoObjective,
    GrpoSrObjective,
    MixtureObjective,
    NllObjective,
    RereObjective,
)
from sluice.learner.objectives.settings.objective import Objective as ObjectiveSettings
from sluice.learner.objectives.settings.preference import DpoObjective, IpoObjective, PpoObjective
from sluice.learner.objectives.terms.base import Objective

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
    """The objective that `settings` describe; a new one needs a file here, a class in the settings and a line
    above.
    """
    if type(settings) not in _BUILDERS:
        raise TypeError(f"no objective is built from {type(settings).__name__}")
    return _BUILDERS[type(settings)](settings)
