"""The verdict of an audit: three tables of rules with their thresholds. Of each the first that holds is said.

QUALITY   is the ranker good enough to be a reward
GATE      does the gate admit a useful share of the prompts
ADVICE    with which settings to begin
"""

from sluice.services.advise.rule import Rule, holding
from sluice.services.audit.figures import Audit
from sluice.services.audit.suggest import choose_candidates, choose_gate, choose_weight

CHANCE = 0.5  # the area of a ranker that knows no more than the policy
FEW_PROMPTS = 0.1  # a smaller group of prompts says nothing of the ranker
FEW_USERS = 50  # of fewer users no interval is to be believed
ALMOST_NONE, ALMOST_ALL = 0.05, 0.7  # of the prompts admitted


def is_wrong_for_some(audit: Audit) -> bool:
    """A group of users is clearly less known than the others, and at chance or below."""
    known = audit.known
    if known is None or not FEW_PROMPTS <= known.share <= 1 - FEW_PROMPTS:
        return False
    below, above = known.below_area, known.above_area
    return below.high < above.low and below.low <= CHANCE < above.low


def is_useful(audit: Audit) -> bool:
    """Both intervals lie above what a ranker without any knowledge has."""
    return audit.bound.gain["hr@10"].low > 0 and audit.area.low > CHANCE


def is_useless(audit: Audit) -> bool:
    """Neither does."""
    return audit.bound.gain["hr@10"].low <= 0 and audit.area.low <= CHANCE


def _bound(audit: Audit) -> str:
    gain = audit.bound.gain["hr@10"]
    return (
        f"ordering the start's lists by it adds {gain.signed()} to an HR@10 of "
        f"{audit.bound.start['hr@10']:.4f}"
    )


def _area(audit: Audit) -> str:
    return f"it puts the logged item above {audit.area.plain()} of the policy's candidates (chance: 0.5)"


def _groups(audit: Audit) -> str:
    known = audit.known
    assert known is not None, "the rule holds where there are groups"
    return (
        f"it puts the logged item above {known.above_area.plain()} of the policy's candidates for the "
        f"{known.share:.0%} of prompts whose {known.by} is above {known.above:g}, and above "
        f"{known.below_area.plain()} for the others (chance: 0.5)"
    )


QUALITY: tuple[Rule[Audit], ...] = (
    Rule(
        name="too few",
        holds=lambda audit: audit.users < FEW_USERS,
        says=lambda audit: (
            f"{audit.users} users are too few to say whether the ranker is good enough (bound: {FEW_USERS})"
        ),
        change="--prompts",
    ),
    Rule(
        name="no chance to compare with",
        holds=lambda audit: not audit.has_chance,
        says=lambda audit: (
            "What the ranker knows beyond the policy cannot be said of candidates that are no plain samples: "
            f"{_bound(audit)}"
        ),
        change="rollout.decode",
    ),
    Rule(
        name="wrong for some",
        holds=is_wrong_for_some,
        says=lambda audit: (
            f"The ranker is right for some users and wrong for others: {_groups(audit)}; for everybody "
            f"{_bound(audit)}"
        ),
        change="objective.gate.trust",
    ),
    Rule(
        name="good",
        holds=is_useful,
        says=lambda audit: f"The ranker is good enough to be a reward: {_bound(audit)}, and {_area(audit)}",
        change="objective",
    ),
    Rule(
        name="useless",
        holds=is_useless,
        says=lambda audit: (
            f"The ranker is not good enough to be a reward: {_bound(audit)}, and {_area(audit)}"
        ),
        change="ranker",
    ),
    Rule(
        name="unclear",
        holds=lambda _: True,
        says=lambda audit: (
            f"Nothing shows that the ranker is good enough to be a reward: {_bound(audit)}, and "
            f"{_area(audit)}"
        ),
        change="ranker",
    ),
)


def _halves(audit: Audit) -> str:
    rates = audit.rates
    trusted = f", {rates['trusted'].value:.0%} come from users it knows" if "trusted" in rates else ""
    return (
        f"{rates['rate'].percent()} of the prompts: {rates['difficulty'].value:.0%} are hard for the policy, "
        f"the ranker tells {rates['discriminability'].value:.0%} from distractors{trusted}"
    )


def _gate(audit: Audit) -> str:
    return "The gate" if audit.has_gate else "A gate (this objective has none)"


GATE: tuple[Rule[Audit], ...] = (
    Rule(
        name="admits almost none",
        holds=lambda audit: audit.rates["rate"].value < ALMOST_NONE,
        says=lambda audit: f"{_gate(audit)} admits too few, below {ALMOST_NONE:.0%}: {_halves(audit)}",
        change="objective.gate.tau up, objective.gate.rho or rollout.distractors down; with a gate by trust "
        "objective.gate.trust.above down",
    ),
    Rule(
        name="admits almost all",
        holds=lambda audit: audit.rates["rate"].value > ALMOST_ALL,
        says=lambda audit: (
            f"{_gate(audit)} refuses hardly anything, above {ALMOST_ALL:.0%}: {_halves(audit)}"
        ),
        change="objective.gate.tau down, objective.gate.rho or rollout.distractors up; with a gate by trust "
        "objective.gate.trust.above up",
    ),
    Rule(
        name="admits a share",
        holds=lambda _: True,
        says=lambda audit: f"{_gate(audit)} admits {_halves(audit)}",
        change="",
    ),
)


def _weight(rate: float) -> str:
    weight = choose_weight(rate)
    return "no weight, since nothing is admitted" if weight is None else f"objective.weight {weight:g}"


def _candidates(audit: Audit) -> str:
    count = choose_candidates(audit.candidates, audit.repeated, audit.hits)
    return (
        f"rollout.decode.candidates {count} ({audit.repeated:.0%} of the candidates repeat another, "
        f"{audit.hits:.0%} of the groups have the logged item)"
    )


def _published(audit: Audit) -> str:
    cell = choose_gate(audit.cells)
    if cell is None:
        return "raise rollout.decode.candidates, which leaves the gate no whole place"
    return (
        f"objective.gate.tau {cell.tau:g} and objective.gate.rho {cell.rho:g}, which admit {cell.rate:.0%}, "
        f"{_weight(cell.rate)}, {_candidates(audit)}"
    )


def _quality(audit: Audit) -> str:
    return holding(QUALITY, audit)[0].name


ADVICE: tuple[Rule[Audit], ...] = (
    Rule(
        name="more prompts",
        holds=lambda audit: _quality(audit) == "too few",
        says=lambda _: "Ask again with more prompts (--prompts) or a log with more validation users",
        change="--prompts",
    ),
    Rule(
        name="another ranker",
        holds=lambda audit: _quality(audit) in ("useless", "unclear"),
        says=lambda _: (
            "Before training on it, fit the ranker on more or newer logs, give it impressions and outcomes, "
            "or stack item models (ranker.ease, ranker.itemknn), and audit it again; with more prompts the "
            "intervals get narrower"
        ),
        change="ranker",
    ),
    Rule(
        name="gate by user",
        holds=lambda audit: (
            audit.known is not None and audit.known.by == "trust" and _quality(audit) == "wrong for some"
        ),
        says=lambda audit: (
            "Begin with a gate by user (objective.gate.parts trust, objective.gate.trust.above "
            f"{audit.known.above:g}), which admits {audit.trust_rate:.0%}, "  # type: ignore[union-attr]
            f"{_weight(audit.trust_rate or 0.0)}, {_candidates(audit)}"
        ),
        change="objective.gate.parts, objective.gate.trust",
    ),
    Rule(
        name="measure trust",
        holds=lambda audit: _quality(audit) == "wrong for some",
        says=lambda audit: (
            "Measure trust with --trust, since a gate by user is what such a ranker needs, or begin with "
            f"{_published(audit)}"
        ),
        change="objective.gate.trust",
    ),
    Rule(
        name="published gate",
        holds=lambda _: True,
        says=lambda audit: f"Begin with {_published(audit)}; a mixture without a gate is worth comparing",
        change="objective.gate.tau, objective.gate.rho, objective.weight",
    ),
)


def deciding_rules(audit: Audit) -> list[Rule[Audit]]:
    """The rule of each table that decides: quality, gate, advice."""
    return [holding(table, audit)[0] for table in (QUALITY, GATE, ADVICE)]


def verdict(audit: Audit) -> list[str]:
    """Three sentences: is the ranker good enough, what does the gate admit, with what to begin."""
    return [f"{rule.says(audit)}." for rule in deciding_rules(audit)]
