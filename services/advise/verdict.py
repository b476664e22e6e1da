"""What a run came to, in sentences: whether it pays, whether its lists got narrower, what everything cost.

Numbers are of the test examples, with 95% intervals over users. What to do about it:
`services/advise/rules.py`.
"""

from collections.abc import Mapping
from typing import Any

from sluice.learner.evaluation.exposure import FEWEST_EFFECTIVE, WEIGHTED

_COSTS = {
    "start": "pretraining",
    "best": "post-training",
    "control": "control",
    "mixture": "mixture",
    "random_gate": "random gate",
    "sft_all": "SFT on all logs",
}
_BREADTH = {"hr@1": "HR@1", "hr@50": "HR@50", "coverage": "coverage"}


def pays_sentence(summary: Mapping[str, Any]) -> str | None:
    """Whether the best checkpoint beats the control's best and the start; None when neither was compared.

    It pays if both intervals lie above 0, and does not if one lies below.
    """
    compared = [
        (text, *change)
        for other, text in (("control", "the best of the control"), ("start", "the start"))
        if (change := hit_rate_change(summary, "best", other)) is not None
    ]
    if not compared:
        return None
    if len(compared) == 2 and all(low > 0 for _, _, low, _ in compared):
        verdict = "The run pays"
    elif any(high < 0 for *_, high in compared):
        verdict = "The run does not pay"
    else:
        verdict = "Nothing shows that the run pays"
    listed = " and ".join(
        f"{_signed(difference)} [{_signed(low)}, {_signed(high)}] against {text}"
        for text, difference, low, high in compared
    )
    title = title_of(judged_by(summary))
    return f"{verdict}: {title} of the best checkpoint is {listed}, on {count_examples(summary)}."


def hit_rate_change(summary: Mapping[str, Any], first: str, second: str) -> tuple[float, float, float] | None:
    """HR@10 (`judged_by`) of one row less that of another, with its interval.

    None when they were not compared.
    """
    metrics, metric = summary.get("metrics") or {}, judged_by(summary)
    interval = ((summary.get("intervals") or {}).get(metric) or {}).get(f"{first}-{second}")
    if interval is None or first not in metrics or second not in metrics:
        return None
    return metrics[first][metric] - metrics[second][metric], *interval


def judged_by(summary: Mapping[str, Any]) -> str:
    """The HR@10 of test that a run is judged by; summaries of the release before know the logged one."""
    metric: str = summary.get("judged_by", "hr@10")
    return metric


def chosen_by(summary: Mapping[str, Any]) -> tuple[str, str]:
    """The metrics of validation that chose the best checkpoint, the first before the second."""
    first, second = summary.get("chosen_by", ("hr@10", "ndcg@10"))
    return first, second


def title_of(metric: str) -> str:
    """A metric as sentences name it.

    >>> title_of("ips_hr@10"), title_of("hr@10")
    ('weighted HR@10', 'HR@10')
    """
    return "weighted " * metric.startswith(WEIGHTED) + metric.removeprefix(WEIGHTED).upper()


def count_examples(summary: Mapping[str, Any]) -> str:
    """How many test examples of how many users the figures are of."""
    counts: Mapping[str, float] = next(iter((summary.get("metrics") or {}).values()), {})
    if "users" not in counts:
        return "the test examples"
    # Summaries of the release before count examples under the name of users.
    if "examples" not in counts:
        return f"{counts['users']:,.0f} test examples"
    return f"{counts['examples']:,.0f} test examples of {counts['users']:,.0f} users"


def breadth_sentence(summary: Mapping[str, Any]) -> str | None:
    """Whether the lists got narrower from the start to the best checkpoint; None when nobody measured it."""
    breadth = summary.get("breadth")
    if not breadth:
        return None
    listed = ", ".join(
        f"{title} {_signed(difference)} [{_signed(low)}, {_signed(high)}]"
        for name, title in _BREADTH.items()
        if name in breadth["changes"]
        for difference, low, high in [breadth["changes"][name]]
    )
    verdict = "got narrower" if breadth["narrower"] else "did not get narrower"
    return (
        f"The lists {verdict} from the start to the best checkpoint: {listed} (narrower: coverage falls "
        "beyond its interval, or HR@50 does while HR@1 rises)."
    )


def exposure_sentence(summary: Mapping[str, Any]) -> str | None:
    """How examples were weighted by inverse propensity and whether that decides, or what it means that they
    could not be.

    None for a run that was not judged.
    """
    counts: Mapping[str, float] = next(iter((summary.get("metrics") or {}).values()), {})
    if not counts:
        return None
    weighting = summary.get("weighting")
    if not weighting:
        return (
            "Logged HR, NDCG and MRR are biased to what the logger liked to show: log with which chance each "
            "row's item was shown and at which place of the slate, and name these columns in "
            "data.source.columns.propensity and slate_position."
        )
    looked_at = {"inverse_sqrt": "1 / sqrt(slate position)", "none": "1"}[weighting["examination"]]
    return (
        "Weighted metrics count an example 1 / (propensity x examination), at most "
        f"{weighting['clip']:,g}, with examination {looked_at}: they know as much as "
        f"{counts['effective_examples']:,.0f} equally weighted examples, of {counts['ips_examples']:,.0f} "
        f"with a propensity. {_deciding(summary, counts['effective_examples'])}"
    )


def _deciding(summary: Mapping[str, Any], effective: float) -> str:
    judged, chosen = title_of(judged_by(summary)), title_of(chosen_by(summary)[0])
    few = ""
    if judged == "HR@10" and effective < FEWEST_EFFECTIVE:
        few = f", since weights that know less than {FEWEST_EFFECTIVE:,.0f} examples do are mostly chance"
    return f"The run is judged by {judged}{few}; {chosen} of validation chose the best checkpoint."


def cost_sentence(summary: Mapping[str, Any]) -> str | None:
    """How long each training took; None when nobody measured it."""
    costs = summary.get("cost_s")
    if not costs:
        return None
    listed = ", ".join(f"{title} {costs[name]:,.0f} s" for name, title in _COSTS.items() if name in costs)
    return f"Training took: {listed}."


def examples_of(cell: Mapping[str, Any]) -> int:
    """Test examples of a stratum; summaries of the release before count them under the name of users."""
    return int(cell["examples"] if "examples" in cell else cell["users"])


def _signed(value: float) -> str:
    return f"{value:+.4f}"
