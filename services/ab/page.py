"""What a test says: sentences, and `ab.html` with the interval over time, the truth, the log, the bandit."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sluice.catalog.files import write_atomically
from sluice.services.ab.experiment import BETTER, LEVEL, WORSE
from sluice.services.report.charts import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, TEAL, Band, band_chart
from sluice.services.report.report import render

PAGE = "ab.html"
_SAYS = {BETTER: "is better than", WORSE: "is worse than", LEVEL: "is not told apart from"}
_UNKNOWN = "not known"
_COLORS = (BLUE, ORANGE, GREEN, PURPLE, RED, TEAL, GREY)
Told = Mapping[str, Any]


def write_page(result: Told, output: Path) -> Path:
    """Write the page of a result, as in `ab.json`, into `output`."""
    first = result["policies"][0]["name"]
    charts = [(f"A/A: {first} less itself", result["aa"], 0.0)]
    charts += [(f"{test['second']} less {first}", test["clicks"], test["truth"]) for test in result["tests"]]
    context = {
        "title": " against ".join(result["directories"]),
        "sentences": list(sentences_of(result)),
        "plan": result["plan"],
        "policies": [_policy_row(policy) for policy in result["policies"]],
        "tests": [row for test in result["tests"] for row in _test_rows(test)],
        "charts": [{"title": title, "svg": _chart(told, truth, title)} for title, told, truth in charts],
        "log": list(_log_rows(result)),
        "bandit": _bandit_charts(result["bandit"]),
    }
    page = output / PAGE
    write_atomically(page, render("sluice.services.ab", "ab.html.j2", context))
    return page


def sentences_of(result: Told) -> Iterator[str]:
    """What the result says, a fact a sentence."""
    yield _itself(result)
    yield _size(result)
    for test in result["tests"]:
        yield from _test_sentences(test, result["plan"]["cuped"])
    yield from _log_sentences(result)
    yield _bandit(result["bandit"])


def _itself(result: Told) -> str:
    aa, name = result["aa"], result["policies"][0]["name"]
    end = f"{aa['difference'][-1]:+.4f} [{aa['low'][-1]:+.4f}, {aa['high'][-1]:+.4f}]"
    outcome = (
        "nothing is found, as it must be"
        if aa["verdict"] == LEVEL
        else "something is found where there is nothing, which this test does with chance alpha"
    )
    return (
        f"A/A: {name} against itself on the split of the test: {end}, {outcome}. Of {aa['splits']:,} random "
        f"splits {aa['false_alarms']:.1%} gave a false alarm at some look, and "
        f"{aa['false_alarms_of_fixed_intervals']:.1%} would have by fixed intervals."
    )


def _size(result: Told) -> str:
    size, plan = result["size"], result["plan"]
    if size["needed"] is None:
        return (
            f"Size: {_UNKNOWN}: no clicks of {result['policies'][0]['name']}, to which a change is relative."
        )
    return (
        f"Size: to notice a change of clicks by {plan['effect']:.1%} with power {plan['power']:.0%} takes "
        f"{size['needed']:,.0f} users in each arm with one look at the end, {size['needed_peeking']:,.0f} "
        f"with peeking. Here are {size['users_of_arm']:,.0f}, which notice {size['detectable']:.1%} with one "
        "look."
    )


def _test_sentences(test: Told, cuped: bool) -> Iterator[str]:
    clicks, dwell = test["clicks"], test["dwell"]
    pair = f"{test['second']} {{}} {test['first']}"
    yield (
        f"A/B: {pair.format(_SAYS[clicks['verdict']])}: {_difference(clicks, 'clicks per impression')}. The "
        f"truth is {test['truth']:+.4f}."
    )
    yield f"Dwell: {pair.format(_SAYS[dwell['verdict']])}: {_difference(dwell, 'seconds per impression')}."
    yield (
        f"CUPED: clicks before the test explain {clicks['removed_by_cuped']:.1%} of the variance of that "
        f"difference; they are {'taken away' if cuped else 'not taken away (--cuped)'}."
    )


def _difference(told: Told, unit: str) -> str:
    return (
        f"{told['difference'][-1]:+.4f} [{told['low'][-1]:+.4f}, {told['high'][-1]:+.4f}] {unit}, "
        f"{_relative(told['relative'])}{_when(told)}"
    )


def _relative(change: float | None) -> str:
    return f"in relation {_UNKNOWN}" if change is None else f"{change:+.1%}"


def _when(told: Told) -> str:
    """After how many users the verdict fell; intervals of later looks do not take it back."""
    after = told["decided_after"]
    return "" if after is None else f", told after {after:,} of {told['users'][-1]:,} users"


def _log_sentences(result: Told) -> Iterator[str]:
    log, first = result["off_policy"], result["policies"][0]["name"]
    if not log["of_test"]:
        yield (
            "The data are not split at a moment, so the policies may have learned from the days of the log "
            "that the estimates are of."
        )
    for name, of in log["differences"].items():
        estimates = ", ".join(f"{kind} {_estimate(told, '+')}" for kind, told in of["estimates"].items())
        samples = [log["policies"][policy]["effective_sample"] for policy in (first, name)]
        yield (
            f"From the log alone ({log['users']:,} users, {log['impressions']:,} impressions): {name} less "
            f"{first}: {estimates}; the truth of these is {of['truth']:+.4f}. Effective sample: "
            f"{samples[0]:,.0f} and {samples[1]:,.0f} impressions."
        )


def _bandit(bandit: Told) -> str:
    best = bandit["best"]
    share, regret = bandit["shares"][best], bandit["regret_clicks"]
    return (
        f"Thompson sampling: {best}, which is truly best, served {share['mean'][-1]:.0%} "
        f"[{share['low'][-1]:.0%}, {share['high'][-1]:.0%}] of the users in {bandit['replays']} replays. "
        f"Its regret is {regret['mean'][-1]:,.0f} clicks [{regret['low'][-1]:,.0f}, "
        f"{regret['high'][-1]:,.0f}], that of equal shares {bandit['regret_of_equal_shares']:,.0f}."
    )


def _policy_row(policy: Told) -> list[str]:
    numbers = (policy[name] for name in ("clicks", "truth", "truth_liked", "dwell"))
    return [policy["name"], f"{policy['users']:,}", *(f"{number:.4f}" for number in numbers)]


def _test_rows(test: Told) -> Iterator[dict[str, Any]]:
    for metric, truth in (("clicks", f"{test['truth']:+.4f}"), ("dwell", "")):
        told = test[metric]
        cells = [
            f"{test['second']} - {test['first']}, {metric}",
            f"{told['difference'][-1]:+.4f}",
            f"{told['low'][-1]:+.4f} to {told['high'][-1]:+.4f}",
            f"{told['fixed'][0]:+.4f} to {told['fixed'][1]:+.4f}",
            truth,
            f"{told['removed_by_cuped']:.1%}",
        ]
        yield {"cells": cells, "verdict": told["verdict"], "when": _when(told)}


def _log_rows(result: Told) -> Iterator[list[str]]:
    log, first = result["off_policy"], result["policies"][0]["name"]
    for name, of in log["policies"].items():
        yield [*_log_cells(name, of, ""), f"{of['effective_sample']:,.0f}"]
    for name, of in log["differences"].items():
        yield [*_log_cells(f"{name} - {first}", of, "+"), ""]


def _log_cells(name: str, of: Told, sign: str) -> Iterator[str]:
    yield name
    yield f"{of['truth']:{sign}.4f}"
    for told in of["estimates"].values():
        yield _estimate(told, sign)


def _estimate(told: Sequence[float] | None, sign: str) -> str:
    if told is None:
        return _UNKNOWN
    value, low, high = told
    return f"{value:{sign}.4f} [{low:{sign}.4f}, {high:{sign}.4f}]"


def _chart(told: Told, truth: float, salt: str) -> str:
    band = Band(
        label="confidence sequence",
        color=BLUE,
        x=told["users"],
        middle=told["difference"],
        low=told["low"],
        high=told["high"],
    )
    return band_chart(
        [band],
        labels=("users in the test", "clicks per impression, difference"),
        levels={"truth": truth},
        marks={"one look at the end": (told["users"][-1], *told["fixed"])},
        salt=salt,
    )


def _bandit_charts(bandit: Told) -> list[dict[str, str]]:
    shares = [
        Band(
            label=name,
            color=_COLORS[place % len(_COLORS)],
            x=bandit["users"],
            middle=of["mean"],
            low=of["low"],
            high=of["high"],
        )
        for place, (name, of) in enumerate(bandit["shares"].items())
    ]
    regret = Band(
        label="regret",
        color=RED,
        x=bandit["users"],
        middle=bandit["regret_clicks"]["mean"],
        low=bandit["regret_clicks"]["low"],
        high=bandit["regret_clicks"]["high"],
    )
    return [
        {
            "title": "Share of the users that each policy served",
            "svg": band_chart(shares, labels=("users served", "share so far"), salt="shares"),
        },
        {
            "title": "Regret: clicks lost to the best policy",
            "svg": band_chart(
                [regret],
                labels=("users served", "clicks"),
                levels={"equal shares, at the end": bandit["regret_of_equal_shares"]},
                salt="regret",
            ),
        },
    ]
