"""What a check before a run has to say."""

from collections.abc import Iterable
from dataclasses import dataclass

from sluice.catalog.errors import ClusterError, ConfigError, SluiceError

MISTAKE, CLUSTER = ConfigError.exit_code, ClusterError.exit_code


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong with a run, or that its user should know before it starts."""

    field: str  # the setting, dotted
    value: str  # what it is, or what it leads to
    bound: str  # what it must be
    remedy: str
    exit_code: int = MISTAKE  # 0: a warning, the run may start

    @classmethod
    def of_error(cls, field: str, error: SluiceError, bound: str = "", remedy: str = "") -> "Finding":
        """A finding from an error; its message may have bound and remedy already."""
        text = "; ".join(line.strip() for line in str(error).splitlines() if line.strip())
        value = text.removeprefix(f"{field}: ").removeprefix("data.source: ")
        return cls(field=field, value=value, bound=bound, remedy=remedy, exit_code=error.exit_code)

    @property
    def kind(self) -> str:
        """ "error" or "warning"."""
        return "error" if self.exit_code else "warning"

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """Field, value, bound and remedy, each without line ends."""
        field, value, bound, remedy = (
            " ".join(part.split()) for part in (self.field, self.value, self.bound, self.remedy)
        )
        return field, value, bound, remedy

    @property
    def line(self) -> str:
        """All of it in one line."""
        field, value, bound, remedy = self.cells
        must = f"; must be: {bound}" if bound else ""
        return f"{self.kind}: {field}: {value}{must}{f'; remedy: {remedy}' if remedy else ''}"


def exit_code(findings: Iterable[Finding]) -> int:
    """Of a command that stops because of them: 0 when all are warnings, the cluster's when nothing else is
    wrong.
    """
    codes = {finding.exit_code for finding in findings} - {0}
    return MISTAKE if MISTAKE in codes else max(codes, default=0)
