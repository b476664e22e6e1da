"""Numbers of a config against the number of items."""

import pytest

from sluice.services.config import RunConfig
from sluice.services.preflight.sizes import check_sizes


def told(items, fits_codes=True, **parts):
    config = RunConfig.model_validate({"name": "t", **parts})
    return [
        (finding.kind, finding.field, finding.value, finding.bound)
        for finding in check_sizes(config, items, fits_codes)
    ]


def decode(**settings):
    return {"rollout": {"decode": settings}}


def test_the_defaults_fit_a_thousand_items():
    assert told(1000) == []


@pytest.mark.parametrize("kind", ["beam", "stochastic_beam"])
def test_more_distinct_items_than_there_are_cannot_be_drawn(kind):
    settings = decode(kind=kind, candidates=64, constrained=True)
    assert told(64, **settings) == []
    ((level, field, value, bound),) = told(63, **settings)
    assert (level, field) == ("error", "rollout.decode.candidates")
    assert value == f"K = 64 candidates of kind {kind}" and bound == "63 items, each at most once"


@pytest.mark.parametrize(
    "settings",
    [{"kind": "sample", "constrained": True}, {"kind": "sample"}, {"kind": "beam", "constrained": False}],
    ids=["constrained", "sample", "free beam"],
)
def test_candidates_that_must_repeat_are_a_warning(settings):
    ((level, _, _, bound),) = told(63, **decode(candidates=64, **settings))
    assert (level, bound) == ("warning", "63 items, so that candidates repeat")


def test_codes_that_are_too_few_for_the_items_are_counted():
    few = {"data": {"semantic_ids": {"level_sizes": [10, 10]}}}
    assert told(100, **few) == []
    ((level, field, value, bound),) = told(101, **few)
    assert (level, field, bound) == ("warning", "data.semantic_ids.level_sizes", "101 items")
    assert value == "10 x 10 = 100 codes, so that at least 1 items share theirs"
    assert told(101, fits_codes=False, **few) == []


def test_a_level_with_more_codes_than_items_is_a_warning():
    wide = {"data": {"semantic_ids": {"level_sizes": [8, 41]}}}
    wide["evaluation"] = {"beam_width": 10}
    assert told(41, **wide) == []
    assert [value for _, _, value, _ in told(40, **wide)] == [
        "a level of 41 codes, most of which stay unused"
    ]


def test_beams_and_cut_offs_against_the_catalogue():
    assert told(40, evaluation={"beam_width": 40}) == []
    assert told(39, evaluation={"beam_width": 40}) == [
        ("warning", "evaluation.beam_width", "40 beams", "39 items")
    ]
    small = {"data": {"semantic_ids": {"level_sizes": [4, 4]}}, "evaluation": {"beam_width": 10}}
    small |= decode(candidates=4)
    assert told(11, **small) == []
    ((_, field, value, _),) = told(10, **small)
    assert (field, value) == ("data.source", "10 items, so that HR@10 is 1 for every policy")
