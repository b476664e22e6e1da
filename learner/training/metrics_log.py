"""The metrics of a run: JSON lines, and the same numbers for TensorBoard.

A resumed run cuts the file back to where its checkpoint was taken, and tells TensorBoard to drop what came
after that step. So no step appears twice.
"""

import json
import math
import shutil
import time
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from sluice.catalog.files import cut_back

_CURVES = ("step", "eval")  # once per step; a start and an end are once per process


def board_of(path: Path) -> Path:
    """Where the numbers of a metrics file are for TensorBoard."""
    return path.parent / "tensorboard" / path.stem


class MetricsLog:
    """Appends to a `.jsonl` file, and to `tensorboard/<its name>` beside it."""

    def __init__(self, path: Path, keep_bytes: int, last_step: int = 0) -> None:
        """Go on, or begin anew.

        Args:
            path: of the file.
            keep_bytes: the length to go on from, at most what there is in whole lines; 0 starts a new file.
            last_step: the last step of which TensorBoard keeps what an earlier process wrote.
        """
        self._path = path
        cut_back(path, keep_bytes)
        self._file = self._path.open("a")
        board = board_of(path)
        if keep_bytes == 0:
            shutil.rmtree(board, ignore_errors=True)
        self._board = SummaryWriter(str(board), purge_step=last_step + 1)
        self._started = time.monotonic()

    @property
    def size(self) -> int:
        """Bytes written so far."""
        self._file.flush()
        return self._path.stat().st_size

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """One line; the numbers of steps and validations also go to TensorBoard as `<kind>/<name>`. A mean
        over nothing (NaN) is left out.
        """
        known = {
            name: value
            for name, value in values.items()
            if not isinstance(value, float) or math.isfinite(value)
        }
        line = {"kind": kind, "step": step, "time_s": round(time.monotonic() - self._started, 3), **known}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        if kind not in _CURVES:
            return
        for name, value in known.items():
            if isinstance(value, int | float):
                self._board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Flush both."""
        self._file.close()
        self._board.close()
