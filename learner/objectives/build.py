"""From the settings of an objective to the objective."""

from learner.objective_settings import AdaGrpoObjective, GrpoObjective, MixtureObjective, NllObjective
from learner.objective_settings import Objective as ObjectiveSettings
from learner.objectives.adagrpo import AdaGrpoLoss
from learner.objectives.base import Objective
from learner.objectives.grpo import GrpoLoss
from learner.objectives.mixture import MixtureLoss
from learner.objectives.nll import NllLoss


def build_objective(settings: ObjectiveSettings) -> Objective:
    """The objective that `settings` describe; a new one needs a file here and a class in the settings."""
    match settings:
        case NllObjective():
            return NllLoss()
        case GrpoObjective():
            return GrpoLoss(settings.grpo)
        case MixtureObjective():
            return MixtureLoss(settings.weight, settings.grpo)
        case AdaGrpoObjective():
            return AdaGrpoLoss(settings.weight, settings.grpo, settings.gate)
    raise TypeError(f"no objective is built from {type(settings).__name__}")
