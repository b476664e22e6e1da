"""One deliberate mistake in the sources, for `tests.mutation`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """Replace `old`, which stands exactly once in `file`, by `new`; one of `tests` (in tests/unit) must then fail."""

    file: str
    old: str
    new: str
    tests: tuple[str, ...]
