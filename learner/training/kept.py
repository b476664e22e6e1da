"""The checkpoints that Ray Train keeps of a training, by their names on the disk. Imports no torch.

The directory of a checkpoint is named after its time. Ray Train's own list of them may be torn.
"""

import json
from pathlib import Path

_NAMED = "checkpoint_*"  # a directory: the list is named so too
_LIST = "checkpoint_manager_snapshot.json"


def list_checkpoints(kept: Path, best: Path) -> list[Path]:
    """The checkpoints of a training, the one to try first in front.

    Args:
        kept: Ray Train's directory, which need not be there.
        best: the checkpoint with the best validation, which need not be there.
    """
    last = sorted((path for path in kept.glob(_NAMED) if path.is_dir()), reverse=True)
    return [*last, best] if best.exists() else last


def forget_lost(kept: Path) -> str | None:
    """Before Ray Train starts again: where its list of checkpoints is torn, or has one that is no longer
    there, the list goes, since Ray Train would refuse to start. Returns what was wrong with it.

    The checkpoints stay, and are found by their names.
    """
    place = kept / _LIST
    if not place.is_file():
        return None
    try:
        names = [
            entry["checkpoint_dir_name"] for entry in json.loads(place.read_text())["checkpoint_results"]
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        fault = f"cannot be read ({type(error).__name__})"
    else:
        lost = [name for name in names if not (kept / name).is_dir()]
        if not lost:
            return None
        fault = f"lists {lost[0]}, which is not there"
    place.unlink()
    return f"{place.name} {fault}"
