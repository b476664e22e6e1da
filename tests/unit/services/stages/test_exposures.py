"""How interactions came to be shown: propensities and places in the slate, from the log to the data set."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sluice.catalog.data.dataset import Dataset
from sluice.catalog.data.schema import EXPOSED_INTERACTIONS, INTERACTIONS
from sluice.catalog.data.settings import DataSettings, InteractionColumns, SemanticIdSettings
from sluice.catalog.errors import DataError
from sluice.services.stages.prepare import prepare_data

USERS, STEPS = 8, 4


def rows():
    """Every user takes an item a step, after being shown another one above it; some do not say how."""
    for user in range(USERS):
        for step in range(STEPS):
            for place, click in ((1, False), (2, True)):
                item, row = (user + 3 * step + place) % 13, user * STEPS + step
                yield f"u{user}", f"i{item}", 10 * step + place, click, 1 / (row + 1), float(place + step)


def write(folder, columns=("propensity", "position"), changed=None, **options):
    """Settings of a log; `changed` are values of one column by row."""
    folder.mkdir(exist_ok=True)
    names = ("user_id", "item_id", "timestamp", "click", "propensity", "position")
    table = {name: list(values) for name, values in zip(names, zip(*rows(), strict=True), strict=True)}
    for name, values in (changed or {}).items():
        for row, value in values.items():
            table[name][row] = value
    pq.write_table(pa.table(table), folder / "log.parquet")
    mapped = dict(zip(("propensity", "slate_position"), columns, strict=False))
    source = {
        "type": "table",
        "interactions": [str(folder / "log.parquet")],
        "timestamp_unit": "none",
        "columns": InteractionColumns(click="click", **mapped),
    }
    ids = SemanticIdSettings(level_sizes=(4, 4), vector_dims=4)
    return DataSettings(**({"name": "shown", "source": source, "semantic_ids": ids} | options))


def test_an_interaction_keeps_how_it_was_shown(tmp_path):
    result = prepare_data(write(tmp_path / "raw", changed={"position": {3: None}}), tmp_path / "out")
    dataset = Dataset.open(tmp_path / "out")
    assert pq.read_schema(tmp_path / "out" / "interactions.parquet").equals(EXPOSED_INTERACTIONS)
    assert result.manifest["counts"]["interactions_with"] == {
        "rating": 0,
        "click": USERS * STEPS,
        "dwell_seconds": 0,
        "propensity": USERS * STEPS,
        "slate_position": USERS * STEPS - 1,
    }
    assert dataset.propensities.dtype == dataset.slate_positions.dtype == np.float32
    for user, name in enumerate(dataset.user_ids):
        at = slice(*dataset.offsets[user : user + 2])
        first = int(name[1:]) * STEPS
        assert dataset.propensities[at] == pytest.approx([1 / (first + step + 1) for step in range(STEPS)])
        places = [2.0, 3.0, 4.0, 5.0]
        if name == "u0":  # row 3 is the click of its second step
            places[1] = np.nan
        np.testing.assert_array_equal(dataset.slate_positions[at], places)


def test_one_of_them_is_enough(tmp_path):
    prepare_data(write(tmp_path / "raw", columns=("propensity",)), tmp_path / "out")
    dataset = Dataset.open(tmp_path / "out")
    assert dataset.propensities is not None and dataset.slate_positions is None


def test_a_log_that_does_not_say_is_prepared_as_ever(tmp_path):
    result = prepare_data(write(tmp_path / "raw", columns=()), tmp_path / "out")
    assert pq.read_schema(tmp_path / "out" / "interactions.parquet").equals(INTERACTIONS)
    assert list(result.manifest["counts"]["interactions_with"]) == ["rating", "click", "dwell_seconds"]
    named = json.dumps(result.manifest["settings"])
    assert "propensity" not in named and "slate_position" not in named
    dataset = Dataset.open(tmp_path / "out")
    assert dataset.propensities is None and dataset.slate_positions is None
    settings = write(tmp_path / "raw")
    assert settings.source.columns.model_dump()["propensity"] == "propensity"
    assert not prepare_data(settings, tmp_path / "out").reused


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("propensity", 0.0, "propensity='0.0': is not above 0 (a propensity is a chance; leave it empty"),
        ("propensity", -0.5, "propensity='-0.5': is not above 0"),
        ("propensity", 1.5, "propensity='1.5': is above 1"),
        ("propensity", float("inf"), "propensity='inf': is no number"),
        ("position", 0.0, "slate_position='0.0': is below 1 (the first place of a slate is 1)"),
        ("position", 2.5, "slate_position='2.5': is no whole number"),
        ("position", 1e9, "slate_position='1000000000.0': is above 10000"),
        ("position", float("-inf"), "slate_position='-inf': is no number"),
    ],
)
@pytest.mark.parametrize("row", [6, 7])  # an impression and a click
def test_what_is_no_chance_or_no_place_is_refused_with_its_row(tmp_path, column, value, reason, row):
    settings = write(tmp_path / "raw", changed={column: {row: value}})
    with pytest.raises(DataError) as error:
        prepare_data(settings, tmp_path / "out")
    assert f"log.parquet, row {row + 1}, {reason}" in str(error.value)
    assert not (tmp_path / "out").exists()


def test_certainty_and_the_last_place_are_allowed(tmp_path):
    changed = {"propensity": {1: 1.0, 3: None}, "position": {1: 10_000.0}}
    prepare_data(write(tmp_path / "raw", changed=changed), tmp_path / "out")
    dataset = Dataset.open(tmp_path / "out")
    first = dataset.offsets[dataset.user_ids.index("u0")]
    assert dataset.propensities[first] == 1 and np.isnan(dataset.propensities[first + 1])
    assert dataset.slate_positions[first] == 10_000


def test_an_event_that_a_history_alone_tells_of_has_no_propensity(tmp_path):
    log = {
        "user_id": ["a"] * 3 + ["b"] * 4,
        "item_id": list("yzw") + list("xyzw"),
        "timestamp": [2, 3, 4, 1, 2, 3, 4],
        "history": [["x"], ["x", "y"], list("xyz"), [], ["x"], ["x", "y"], list("xyz")],
        "propensity": [0.2, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7],
    }
    pq.write_table(pa.table(log), tmp_path / "log.parquet")
    source = {
        "type": "table",
        "interactions": [str(tmp_path / "log.parquet")],
        "timestamp_unit": "none",
        "columns": InteractionColumns(history="history", propensity="propensity"),
    }
    ids = SemanticIdSettings(level_sizes=(2, 2), vector_dims=2)
    prepare_data(DataSettings(name="told", source=source, semantic_ids=ids), tmp_path / "out")
    dataset = Dataset.open(tmp_path / "out")
    by_user = {
        name: dataset.propensities[slice(*dataset.offsets[user : user + 2])]
        for user, name in enumerate(dataset.user_ids)
    }
    np.testing.assert_allclose(by_user["a"], [np.nan, 0.2, 0.3, 0.35], rtol=1e-6)
    np.testing.assert_allclose(by_user["b"], [0.4, 0.5, 0.6, 0.7], rtol=1e-6)


@pytest.mark.parametrize("column", ["propensity", "position"])
def test_a_named_column_without_any_value_is_refused(tmp_path, column):
    empty = {row: None for row in range(2 * USERS * STEPS) if row % 2}  # all clicks
    name = {"propensity": "propensity", "position": "slate_position"}[column]
    with pytest.raises(
        DataError, match=f"data.source.columns.{name} is '{column}', and no usable interaction"
    ):
        prepare_data(write(tmp_path / "raw", changed={column: empty}), tmp_path / "out")


def test_a_column_that_is_partly_empty_is_told_with_the_share(tmp_path):
    changed = {"propensity": {1: None, 3: None, 4: None}, "position": {5: None}}
    warnings = prepare_data(write(tmp_path / "raw", changed=changed), tmp_path / "out").warnings
    assert [warning for warning in warnings if "weigh nothing" in warning] == [
        "2 of 32 interactions (6.2%) have no propensity: they weigh nothing in weighted metrics",
        "1 of 32 interactions (3.1%) have no slate_position: they weigh nothing in weighted metrics",
    ]
    assert not any(
        "weigh nothing" in text for text in prepare_data(write(tmp_path / "r"), tmp_path / "o").warnings
    )
