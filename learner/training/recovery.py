"""Which checkpoint a run goes on from: the last one that is whole.

    last -> the one before -> ... -> best

Every checkpoint is checked by the sums that its workers wrote (`checkpoint.find_fault`). One that is damaged
is named, and the one before is taken.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

from sluice.catalog.errors import RunError
from sluice.catalog.files import settle_directory
from sluice.learner.training.checkpoint import find_fault, read_state
from sluice.learner.training.kept import list_checkpoints

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a run goes on from."""

    directory: Path | None  # None: there is no checkpoint, the run begins
    damaged: tuple[str, ...] = ()  # what is wrong with each that is not whole, but for older ones
    best: tuple[float, float] = (
        -1.0,
        -1.0,
    )  # validation of the best checkpoint; it may be later than `directory`

    def lines(self) -> list[str]:
        """What to print of it; nothing when the last checkpoint and the best one are whole."""
        if not self.damaged:
            return []
        return [
            *(f"a checkpoint is damaged: {text}" for text in self.damaged),
            f"going on from {self.directory}",
        ]


NONE = Choice(directory=None)


def choose_checkpoint(kept: Path, best: Path) -> Choice:
    """The first whole one of `list_checkpoints`.

    Raises:
        RunError: there are checkpoints, and all are damaged.
    """
    settle_directory(best)
    damaged: list[str] = []

    def is_whole(checkpoint: Path) -> bool:
        if fault := find_fault(checkpoint):
            damaged.append(f"{checkpoint}: {fault}")
        return fault is None

    chosen = next(filter(is_whole, list_checkpoints(kept, best)), None)
    if chosen is not None:
        has_best = best == chosen or (best.exists() and is_whole(best))
        score = read_state(best).best if has_best else NONE.best
        return Choice(directory=chosen, damaged=tuple(damaged), best=score)
    if damaged:
        raise RunError(
            "no checkpoint of this run is whole:\n"
            + "".join(f"  {text}\n" for text in damaged)
            + "Put one back from a copy, or remove the run's checkpoints directory to train again from the "
            "same start."
        )
    return NONE


def tell_choice(kept: Path, best: Path) -> Choice:
    """As `choose_checkpoint`, and its lines stand in the log of the process."""
    choice = choose_checkpoint(kept, best)
    for line in choice.lines():
        logger.error("%s", line)
    return choice
