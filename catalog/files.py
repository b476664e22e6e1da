"""Files as every part of Sluice reads and writes them."""

import hashlib
from pathlib import Path


def sha256_of(path: Path) -> str:
    """sha256 of a file's content, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
