"""A copy of the checkout's code, with its links as links, for tests that pack, build or run it elsewhere."""

import shutil
from pathlib import Path

ROOT = Path(__file__).parents[1]
PARTS = ("actors", "catalog", "cluster", "configs", "learner", "services", "sluice")
FILES = ("pyproject.toml", "README.md", "LICENSE")


def copy_checkout(target: Path) -> Path:
    """Copy what is needed to run and to build; returns `target`."""
    for name in PARTS:
        shutil.copytree(
            ROOT / name, target / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in FILES:
        shutil.copy(ROOT / name, target / name)
    return target
