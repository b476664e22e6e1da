"""`sluice ab` as a whole: two policies of a small world, the files it leaves, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest

from sluice.catalog.errors import ConfigError
from sluice.catalog.files import to_finite
from sluice.learner.policy.policy import build_policy, mark_catalogue, save_policy
from sluice.learner.settings import PolicySettings
from sluice.services.ab import command
from sluice.services.ab.command import describe_estimates, name_policies, world_of
from sluice.services.ab.estimates import Rounds
from sluice.services.cli.main import main
from sluice.services.config import RunConfig
from tests.unit.services.ab.test_estimates import BY_HAND

SMALL = ("--looks", "4", "--replays", "20", "--visits", "2", "--log-days", "3")


@pytest.fixture(scope="module")
def arguments(shop, tmp_path_factory):
    """What is typed but for policies and options."""
    path = tmp_path_factory.mktemp("config") / "run.yaml"
    path.write_text(json.dumps(shop.config.model_dump(mode="json")))
    return ["ab", str(path)]


@pytest.fixture(scope="module")
def finished(shop, arguments, tmp_path_factory):
    """The output of a test that is done."""
    output = tmp_path_factory.mktemp("ab")
    assert main([*arguments, *map(str, shop.policies), "--output", str(output), *SMALL]) == 0
    return output


def test_the_result_has_all_parts(shop, finished):
    result = json.loads((finished / "ab.json").read_text())
    assert [policy["name"] for policy in result["policies"]] == ["p1", "p2"]
    assert result["directories"]["p2"] == str(shop.policies[1]) and result["world"] == str(shop.world)
    assert sum(policy["users"] for policy in result["policies"]) == shop.dataset.users
    assert len(result["tests"][0]["clicks"]["difference"]) == 4
    assert set(result["off_policy"]["differences"]["p2"]["estimates"]) == {"IPS", "SNIPS", "DR"}
    log = result["off_policy"]["policies"]
    assert result["off_policy"]["differences"]["p2"]["truth"] == pytest.approx(
        log["p2"]["truth"] - log["p1"]["truth"]
    )
    assert 1 < log["p1"]["effective_sample"] < result["off_policy"]["impressions"]
    assert result["off_policy"]["of_test"] is True
    assert result["plan"]["visits"] == 2 and result["plan"]["alpha"] == 0.05
    assert 0 < result["policies"][0]["truth"] < result["policies"][0]["truth_liked"] < 1


def test_the_page_says_what_was_found(finished):
    page = (finished / "ab.html").read_text()
    for text in ("A/A: p1 against itself", "A/B: p2 is", "CUPED: clicks before", "Thompson sampling", "IPS"):
        assert text in page
    assert page.count("<svg") == 4 and "one look at the end" in page


def test_the_same_seed_gives_the_same_test(shop, arguments, finished, tmp_path, capsys):
    policies = list(map(str, shop.policies))
    assert main([*arguments, *policies, "--output", str(tmp_path / "a"), *SMALL]) == 0
    said = capsys.readouterr().out
    assert (tmp_path / "a" / "ab.json").read_text() == (finished / "ab.json").read_text()
    assert "A/B: p2 is" in said and "The truth is" in said
    more = ["--users", "300", "--seed", "1", "--cuped"]
    assert main([*arguments, *policies, "--output", str(tmp_path / "b"), *SMALL, *more]) == 0
    result = json.loads((tmp_path / "b" / "ab.json").read_text())
    assert sum(policy["users"] for policy in result["policies"]) == 300
    assert "they are taken away" in capsys.readouterr().out
    first = json.loads((finished / "ab.json").read_text())
    assert result["off_policy"]["users"] < first["off_policy"]["users"]


def test_mistakes_are_named(shop, arguments, tmp_path, capsys):
    policies = list(map(str, shop.policies))
    for given, code, said in (
        ([policies[0]], 2, "give at least two directories"),
        ([policies[0], policies[0]], 2, "given twice"),
        ([policies[0], str(tmp_path / "none")], 2, "is no directory"),
        ([*policies, "--world", str(tmp_path)], 2, "holds no world"),
        ([*policies, "--users", "-5"], 2, "0 users are too few"),
        ([*policies, "--seed", "-1"], 2, "--seed is -1"),
        ([*policies, "--effect", "nan"], 2, "--effect nan"),
        (
            [*policies, "--looks", "4", "--log-days", "9"],
            2,
            "--log-days is 9, and of the log's last days 8 are",
        ),
        ([*policies, "--looks", "4", "--log-days", "13"], 2, "kept of the last 12 days"),
    ):
        assert main([*arguments, *given, "--output", str(tmp_path / "out")]) == code
        assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_world_without_its_log_is_refused(shop, arguments, tmp_path, capsys):
    for path in shop.world.iterdir():
        if path.name != "interactions.parquet":
            (tmp_path / path.name).symlink_to(path)
    given = [*arguments, *map(str, shop.policies), "--world", str(tmp_path), *SMALL]
    assert main([*given, "--output", str(tmp_path / "out")]) == 2
    assert "the log of the world" in capsys.readouterr().err


def test_every_policy_is_looked_at_before_one_is_served(shop, arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "serve_users", lambda *_args, **_named: pytest.fail("served"))
    foreign = build_policy(
        PolicySettings(hidden_size=16, layers=1, heads=2), shop.dataset.level_sizes, 256, 0
    )
    mark_catalogue(foreign, "another")
    save_policy(foreign, tmp_path / "foreign")
    given = [*arguments, str(shop.policies[0]), str(tmp_path / "foreign"), *SMALL]
    assert main([*given, "--output", str(tmp_path / "out")]) != 0
    assert "another catalogue" in capsys.readouterr().err


def test_an_estimate_that_nothing_was_shown_for_is_not_known():
    """No logged action is among the second policy's."""
    target = np.tile([0.0, 0.0, 1.0], (4, 1))
    nothing = Rounds(**{**vars(BY_HAND), "target": target, "action": np.array([0, 1, 1, 0])})
    told = to_finite(describe_estimates(["a", "b"], [(BY_HAND, 0.5), (nothing, 0.4)], 0.05))
    assert told["policies"]["b"]["effective_sample"] == 0
    assert None not in told["policies"]["a"]["estimates"].values()
    for part in (told["policies"], told["differences"]):
        assert part["b"]["estimates"] == {"IPS": None, "SNIPS": None, "DR": None}
    json.dumps(told, allow_nan=False)


def test_policies_are_named_by_what_tells_them_apart(tmp_path):
    for name in ("arms/nll/last", "arms/user/last", "runs/best"):
        (tmp_path / name).mkdir(parents=True)
    arms = [tmp_path / "arms" / "nll" / "last", tmp_path / "arms" / "user" / "last"]
    assert name_policies(arms) == ["nll", "user"]
    assert name_policies([arms[0], tmp_path / "runs" / "best"]) == ["arms/nll/last", "runs/best"]
    (tmp_path / "arms" / "nll" / "last" / "last").mkdir()
    assert name_policies([arms[0], arms[0] / "last"]) == ["last", "last/last"]


def test_the_world_is_where_the_log_lies(shop):
    assert world_of(shop.config) == shop.world
    movielens = RunConfig.model_validate({"name": "m", "data": {"source": {"type": "movielens-100k"}}})
    with pytest.raises(ConfigError, match="simulated world has its log as files"):
        world_of(movielens)


def test_a_data_set_must_be_prepared(shop, arguments, tmp_path):
    given = [*map(str, shop.policies), "--set", f"output={tmp_path}"]
    assert main([*arguments, *given]) == 2
    assert not Path(tmp_path / "half-wrong-seed0" / "ab").exists()
