"""Planted truths: an audit says of each ranker what it is worth, and leaves what it says."""

import json

import pyarrow.parquet as pq
import pytest

from sluice.catalog.errors import ConfigError
from sluice.learner.gate.settings import GateSettings
from sluice.services.audit import audit as module
from sluice.services.audit.audit import audited_gate, check_reward
from sluice.services.audit.page import terminal_lines
from sluice.services.audit.rules import deciding_rules, verdict
from sluice.services.config import RunConfig
from sluice.services.paths import RunPaths
from tests.unit.services.audit.conftest import HERE, USERS

WRONG = "sluice.learner.ranker.wrong_for_some:WrongForSome"


def rule_names(audit):
    return [rule.name for rule in deciding_rules(audit)]


def test_a_ranker_that_knows_the_next_item_is_good_enough(audited):
    _, audit = audited(f"{HERE}:Knows", trust=True)
    assert rule_names(audit)[0] == "good"
    assert audit.area.low > 0.9 and audit.bound.gain["hr@10"].low > 0.2
    assert audit.known.share > 0.9, "everybody is known"
    assert verdict(audit)[0].startswith(
        "The ranker is good enough to be a reward: ordering the start's lists"
    )
    assert verdict(audit)[2].startswith("Begin with objective.gate.tau ")


def test_a_ranker_that_guesses_is_not(audited):
    _, audit = audited(f"{HERE}:Guesses")
    assert rule_names(audit)[::2] == ["useless", "another ranker"]
    assert audit.area.low < 0.5 < audit.area.high
    assert audit.bound.gain["hr@10"].low <= 0
    assert verdict(audit)[0].startswith("The ranker is not good enough to be a reward: ")


def test_a_ranker_that_is_wrong_for_half_of_the_users_is_told_so(audited):
    _, audit = audited(WRONG, trust=True, options={"share": 0.5})
    assert rule_names(audit)[::2] == ["wrong for some", "gate by user"]
    assert audit.known.by == "trust" and 0.4 < audit.known.share < 0.6
    assert audit.known.above_area.low > 0.7
    assert audit.known.below_area.low < 0.5
    assert "gate by user (objective.gate.parts trust, objective.gate.trust.above 0.65)" in verdict(audit)[2]
    assert audit.known_bound.gain["hr@10"].value > audit.bound.gain["hr@10"].value - 0.02


def test_the_same_ranker_that_is_right_for_all_is_not(audited):
    _, audit = audited(WRONG, trust=True, options={"share": 0.0})
    assert rule_names(audit)[0] == "good"


def test_the_users_other_prompts_tell_where_trust_is_not_measured(audited):
    _, audit = audited(WRONG, options={"share": 0.5})
    assert rule_names(audit)[::2] == ["wrong for some", "measure trust"]
    assert audit.known.by == "area on other prompts"
    assert audit.trust_counts is None and "trusted" not in audit.rates


def test_what_an_audit_leaves(audited):
    config, audit = audited(WRONG, trust=True, options={"share": 0.5})
    directory = RunPaths.of(config).audit
    told = json.loads((directory / "audit.json").read_text())
    assert told["verdict"] == verdict(audit) and told["rules"][0]["name"] == "wrong for some"
    assert told["bound"]["gain"]["hr@10"]["value"] == audit.bound.gain["hr@10"].value
    assert told["bound"]["curve"][0][0] is None, "beta of the start's own order is not finite"
    page = (directory / "audit.html").read_text()
    assert verdict(audit)[0].replace("'", "&#39;") in page
    assert page.count("<svg") == 6 and "var(--ink)" in page
    rows = pq.read_table(directory / "trust.parquet").to_pydict()
    assert list(rows) == ["user_id", "position", "trust"] and len(rows["user_id"]) == USERS
    assert sum(audit.trust_counts.values()) == USERS
    assert terminal_lines(audit)[-3:] == verdict(audit)
    audited(WRONG, options={"share": 0.5})
    assert not (directory / "trust.parquet").exists(), "of an audit that measured no trust"


def test_prompts_are_of_validation_alone_and_bounded(audited, monkeypatch):
    asked = []

    def examples(self, split):
        asked.append(split)
        return original(self, split)

    original = module.Dataset.examples
    audited(f"{HERE}:Guesses")
    monkeypatch.setattr(module.Dataset, "examples", examples)
    _, audit = audited(f"{HERE}:Guesses", prompts=30)
    assert audit.prompts == 30 and set(asked) == {"valid"}


def test_a_ranker_that_cannot_leave_users_out_is_told_apart_in_sample(audited):
    _, audit = audited(f"{HERE}:Alike", trust=True)
    assert audit.in_sample and audit.area.value == 0.5
    assert audit.disagreement["rank_correlation"].value == 0


def test_an_objective_without_a_reward_is_refused():
    with pytest.raises(ConfigError, match=r"objective\.type nll takes no reward from the ranker"):
        check_reward(RunConfig.model_validate({"name": "t", "objective": {"type": "nll"}}))


def test_which_gate_is_audited():
    own = {"type": "adagrpo", "gate": {"tau": 0.5}}
    assert audited_gate(RunConfig.model_validate({"name": "t", "objective": own})) == (
        GateSettings(tau=0.5),
        True,
    )
    for objective in (
        {"type": "mixture"},
        {"type": "adagrpo", "gate": {"mode": "random", "random_rate": 0.2}},
    ):
        config = RunConfig.model_validate({"name": "t", "objective": objective})
        assert audited_gate(config) == (GateSettings(), False)
