"""The audit's rules at their bounds, and the settings that they name."""

import re
from dataclasses import replace

import pytest

from sluice.learner.gate.settings import GateSettings
from sluice.services.audit.bound import Bound
from sluice.services.audit.estimate import Estimate
from sluice.services.audit.figures import Audit
from sluice.services.audit.page import page_context
from sluice.services.audit.rules import ADVICE, GATE, QUALITY, deciding_rules, verdict
from sluice.services.audit.suggest import GateCell, choose_gate, choose_weight
from sluice.services.audit.trusted import Known
from sluice.services.config_reference import describe_settings, groups_below


def estimate(value, low=None, high=None):
    return Estimate(
        value=value,
        low=value if low is None else low,
        high=value if high is None else high,
        prompts=100,
        users=50,
    )


def bound(low):
    gain = {"hr@10": estimate(0.018, low, 0.033), "ndcg@10": estimate(0.01, low, 0.02)}
    return Bound(
        start={"hr@10": 0.15, "ndcg@10": 0.08}, gain=gain, betas=(1.0, float("inf")), curve=((1.0, gain),)
    )


def known(share=0.4, above=(0.62, 0.59, 0.65), below=(0.48, 0.45, 0.5), by="trust"):
    return Known(by=by, above=0.65, share=share, above_area=estimate(*above), below_area=estimate(*below))


AUDIT = Audit(
    name="run-seed0",
    dataset="shop",
    ranker="r1",
    prompts=100,
    users=50,
    gate=GateSettings(),
    has_gate=True,
    candidates=16,
    bound=bound(0.004),
    known_bound=None,
    has_chance=True,
    trust_rate=0.44,
    rates={
        name: estimate(value)
        for name, value in (
            ("rate", 0.25),
            ("difficulty", 0.8),
            ("discriminability", 0.3),
            ("ranker_agrees", 0.4),
            ("distractors_below", 0.7),
        )
    },
    area=estimate(0.6, 0.55, 0.65),
    bands={"Exposure of the item": []},
    known=None,
    disagreement={
        name: estimate(0.5) for name in ("other_best", "rank_correlation", "policy_right", "ranker_right")
    },
    cells=[GateCell(tau=0.25, rho=0.25, rate=0.1, elsewhere=float("nan"))],
    repeated=0.2,
    hits=0.2,
    trust_counts=None,
    in_sample=False,
)
POOR = {"bound": bound(-0.001), "area": estimate(0.51, 0.49, 0.53)}


@pytest.mark.parametrize(
    ("changes", "quality", "advice"),
    [
        ({}, "good", "published gate"),
        ({"bound": bound(0.0)}, "unclear", "another ranker"),
        ({"area": estimate(0.55, 0.5, 0.6)}, "unclear", "another ranker"),
        (POOR, "useless", "another ranker"),
        ({"known": known()}, "wrong for some", "gate by user"),
        (POOR | {"known": known()}, "wrong for some", "gate by user"),
        ({"known": known(by="area on other prompts")}, "wrong for some", "measure trust"),
        ({"known": known(share=0.91)}, "good", "published gate"),  # too few are unknown
        ({"known": known(share=0.09)}, "good", "published gate"),
        ({"known": known(below=(0.53, 0.51, 0.55))}, "good", "published gate"),  # above chance
        ({"known": known(below=(0.55, 0.45, 0.6))}, "good", "published gate"),  # not clearly less
        (POOR | {"known": known(above=(0.51, 0.501, 0.52))}, "wrong for some", "gate by user"),
        (POOR | {"known": known(above=(0.51, 0.5, 0.52))}, "useless", "another ranker"),
    ],
)
def test_quality_and_advice_by_their_figures(changes, quality, advice):
    if changes.get("known") is not None and changes["known"].above_area.low < 0.51:
        changes = changes | {"known": replace(changes["known"], below_area=estimate(0.4, 0.3, 0.45))}
    rules = deciding_rules(replace(AUDIT, **changes))
    assert (rules[0].name, rules[2].name) == (quality, advice)


@pytest.mark.parametrize(
    ("rate", "name"),
    [
        (0.049, "admits almost none"),
        (0.05, "admits a share"),
        (0.7, "admits a share"),
        (0.71, "admits almost all"),
    ],
)
def test_the_gate_by_its_rate(rate, name):
    audit = replace(AUDIT, rates={**AUDIT.rates, "rate": estimate(rate)})
    assert deciding_rules(audit)[1].name == name


def test_few_users_and_candidates_that_are_no_samples_give_no_verdict_on_the_ranker():
    few = verdict(replace(AUDIT, users=49))
    assert few[0].startswith("49 users are too few") and few[2].startswith("Ask again with more prompts")
    assert not verdict(replace(AUDIT, users=50))[0].startswith("50 users")
    beams = verdict(replace(AUDIT, has_chance=False))[0]
    assert beams.startswith("What the ranker knows beyond the policy cannot be said")


def test_the_sentences_have_their_figures():
    quality, gate, advice = verdict(AUDIT)
    assert quality == (
        "The ranker is good enough to be a reward: ordering the start's lists by it adds +0.0180 [+0.0040, "
        "+0.0330] to an HR@10 of 0.1500, and it puts the logged item above 0.600 [0.550, 0.650] of the "
        "policy's candidates (chance: 0.5)."
    )
    assert gate == (
        "The gate admits 25.0% [25.0%, 25.0%] of the prompts: 80% are hard for the policy, the ranker tells "
        "30% from distractors."
    )
    assert advice.startswith(
        "Begin with objective.gate.tau 0.25 and objective.gate.rho 0.25, which admit 10%, objective.weight "
        "32, rollout.decode.candidates 16 (20% of the candidates repeat another, 20% of the groups have the "
    )
    assert verdict(replace(AUDIT, has_gate=False))[1].startswith("A gate (this objective has none) admits")
    by_user = verdict(replace(AUDIT, known=known()))[2]
    assert "objective.gate.trust.above 0.65), which admits 44%, objective.weight 8, " in by_user


def cell(tau, rate, elsewhere=float("nan")):
    return GateCell(tau=tau, rho=0.25, rate=rate, elsewhere=elsewhere)


def test_the_gate_that_is_suggested():
    inside = [cell(0.125, 0.06, 0.7), cell(0.25, 0.24, 0.6), cell(0.5, 0.41, 0.9)]
    assert choose_gate(inside).tau == 0.125, "whose users the ranker knows best, of those that admit 5 to 40%"
    alike = [cell(0.125, 0.06, 0.6), cell(0.25, 0.24, 0.59), cell(0.5, 0.25, 0.57)]
    assert choose_gate(alike).tau == 0.25, "of those that are alike, the one next to a quarter"
    assert choose_gate([cell(0.125, 0.06), cell(0.25, 0.24, 0.6)]).tau == 0.25, "next to a quarter"
    assert choose_gate([cell(0.125, 0.01), cell(0.5, 0.5)]).tau == 0.125
    assert choose_gate([]) is None
    assert choose_weight(0.0) is None


def test_every_setting_that_a_rule_names_exists():
    entries = {
        entry.path.replace("[]", "") for group in groups_below(describe_settings()) for entry in group.entries
    }
    said = " ".join(
        rule.change + rule.says(replace(AUDIT, known=known()))
        for table in (QUALITY, GATE, ADVICE)
        for rule in table
    )
    named = set(re.findall(r"(?:objective|rollout|ranker)\.[a-z_.]*[a-z_]", said))
    assert len(named) > 6 and named <= entries, named - entries


def test_a_page_of_an_audit_without_trust_or_groups():
    context = page_context(AUDIT)
    assert context["known"] == [] and context["trust"] is None
    assert context["bounds"][0]["beta"] == "1 and none"
    assert page_context(replace(AUDIT, cells=[]))["gate_chart"] is None
    assert AUDIT.as_json()["cells"][0]["elsewhere"] is None
