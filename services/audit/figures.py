"""Everything that an audit measures, and what it says of it in JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sluice.catalog.files import to_finite
from sluice.learner.gate.settings import GateSettings
from sluice.services.audit.bound import Bound
from sluice.services.audit.estimate import Estimate
from sluice.services.audit.order import Band
from sluice.services.audit.suggest import GateCell
from sluice.services.audit.trusted import Known


@dataclass(frozen=True, kw_only=True)
class Audit:
    """The figures of one audit, all of held-out validation prompts."""

    name: str  # of the run
    dataset: str
    ranker: str  # its version
    prompts: int
    users: int
    gate: GateSettings  # that was audited
    has_gate: bool  # the config's objective has it; otherwise it is the default one
    candidates: int  # K
    bound: Bound
    known_bound: Bound | None  # re-ranked where trust is above its cut alone
    rates: Mapping[str, Estimate]  # the gate's rate, its halves and its conditions, by name
    area: Estimate  # of all prompts
    has_chance: bool  # 1/2 is the area of a ranker that knows no more than the policy
    bands: Mapping[str, Sequence[Band]]  # by title
    known: Known | None  # None: no user has enough logged items or prompts
    disagreement: Mapping[str, Estimate]
    cells: Sequence[GateCell]
    repeated: float  # share of candidates that repeat one of their group
    hits: float  # share of prompts with a candidate that hits
    trust_rate: float | None  # share of prompts that a gate by trust alone admits; None: not measured
    trust_counts: Mapping[str, int] | None  # users by band of trust; None: trust was not measured
    in_sample: bool  # trust was measured with a ranker that may have been fitted on the users

    def as_json(self) -> dict[str, Any]:
        """All of it; a number that is not finite is null."""
        values = asdict(self) | {"gate": self.gate.model_dump(mode="json")}
        cleaned: dict[str, Any] = to_finite(values)
        return cleaned
