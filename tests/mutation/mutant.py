"""One deliberate mistake in the sources, for `tests.mutation`."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """Replace `old`, which stands exactly once in `file`, by `new`; one of `tests` (in tests/unit) must fail.

    Where `old` does not stand there as it is written, white space and commas before a closing bracket are
    ignored, so that a formatter that breaks a line in two leaves the mutant alone.
    """

    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def spans(self, source: str) -> list[tuple[int, int]]:
        """Where `old` stands in the source."""
        exact = [match.span() for match in re.finditer(re.escape(self.old), source)]
        if exact:
            return exact
        tokens = [re.escape(token) for token in re.findall(r"\w+|\S", self.old)]
        loose = r"\s*".join(rf",?\s*{token}" if token in (r"\)", r"\]") else token for token in tokens)
        return [match.span() for match in re.finditer(loose, source)]

    def applied(self, source: str) -> str:
        """The source with the mistake."""
        ((start, end),) = self.spans(source)
        return source[:start] + self.new + source[end:]
