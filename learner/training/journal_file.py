"""The journal of a run: what happened to every prompt, as the rollout queue tells it at each checkpoint.

One JSON object a line; `sluice.actors.queue.journal` says which there are. A resumed run cuts the file back
to where its checkpoint was taken, so it says what the weights have seen and nothing else.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sluice.catalog.files import cut_back


class JournalFile:
    """Appends to the file."""

    def __init__(self, path: Path, keep_bytes: int) -> None:
        """`keep_bytes` is the length to go on from, at most what there is in whole lines; 0: a new file."""
        self._path = path
        cut_back(path, keep_bytes)

    def append(self, events: Iterable[Mapping[str, Any]]) -> int:
        """Write the events to the disk; returns the bytes of the file."""
        with self._path.open("a", encoding="utf-8") as file:
            for event in events:
                file.write(json.dumps(event, separators=(",", ":")) + "\n")
            file.flush()
            os.fsync(file.fileno())
            return file.tell()
