"""Nothing later reaches anything earlier: every part of the log has items of its own, and each learner is
asked which items it has seen.
"""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from sluice.catalog.data.cooccurrence import CoOccurrence
from sluice.catalog.data.dataset import Dataset
from sluice.catalog.data.settings import DataSettings, SemanticIdSettings
from sluice.learner.batches import windows
from sluice.learner.batches.sources import prompts_of
from sluice.learner.evaluation.baselines import fit_baselines
from sluice.learner.policy.policy import build_policy
from sluice.learner.ranker import fit
from sluice.learner.ranker.settings import EaseSettings, ItemKnnSettings, RankerSettings
from sluice.learner.ranker.stack import StackedRanker
from sluice.learner.settings import EvaluationSettings, PolicySettings, PretrainSettings
from sluice.learner.training import pretrain
from sluice.services.stages import prepare
from sluice.services.stages.prepare import prepare_data

USERS = 12
PARTS = {"pretrain": 6, "fresh": 2, "valid": 1, "test": 1}  # interactions of each user, in this order


# How the parts of the log are told to `prepare`: by shares, by moments, by a column, by files of their own.
SPLITS = {
    "user": {"split": {"type": "fresh"}},
    "time": {"split": {"type": "fresh", "by": "time"}},
    "moments": {
        "split": {
            "type": "fresh",
            "by": "time",
            "fresh_from": "2024-01-07",
            "valid_from": "2024-01-09",
            "test_from": "2024-01-10",
        }
    },
    "column": {"split": {"type": "column"}, "columns": {"part": "part"}},
    "files": {"split": {"type": "files"}},
}
JANUARY, DAY = 1_704_067_200, 86_400  # 2024-01-01 and a day, in seconds


def write_log(directory: Path) -> None:
    """Users have ten interactions each, one a day; those of a part are with items that are named after it.

    So are the two items that are shown and not taken with each interaction and a second later.
    """
    names = [part for part, count in PARTS.items() for _ in range(count)]
    rows = [
        (f"u{user:02d}", f"{part}-{name}", JANUARY + DAY * step + user + later, part, clicked)
        for user in range(USERS)
        for step, part in enumerate(names)
        for name, later, clicked in (((user + step) % 4, 0, 1), ("shown", 0, 0), ("shown-later", 1, 0))
    ]
    columns = zip(*rows, strict=True)
    log = pa.table(dict(zip(("user_id", "item_id", "timestamp", "part", "click"), columns, strict=True)))
    pq.write_table(log, directory / "log.parquet")
    for part in PARTS:
        pq.write_table(log.filter(pc.equal(log.column("part"), part)), directory / f"{part}.parquet")


@pytest.fixture(scope="module", params=SPLITS)
def dataset(request, tmp_path_factory) -> Dataset:
    """The log of `write_log`, prepared with one of the splits that divide it into its parts."""
    directory = tmp_path_factory.mktemp("parts")
    write_log(directory)
    given = SPLITS[request.param]
    source = {"type": "table", "columns": {"click": "click", **given.get("columns", {})}}
    if request.param == "files":
        source |= {part: [str(directory / f"{part}.parquet")] for part in ("fresh", "valid", "test")}
        source |= {"interactions": [str(directory / "pretrain.parquet")]}
    else:
        source |= {"interactions": [str(directory / "log.parquet")]}
    settings = DataSettings(
        name="parts",
        source=source,
        split=given["split"],
        semantic_ids=SemanticIdSettings(level_sizes=(4, 4), vector_dims=4, window=2),
        exclude_seen=False,
        max_history=10,
    )
    counted: list[set[int]] = []
    vectors: list[np.ndarray] = []
    with pytest.MonkeyPatch.context() as patch:
        make = prepare.item_vectors
        patch.setattr(prepare, "item_vectors", lambda *given: (vectors.append(make(*given)), vectors[-1])[1])
        count = CoOccurrence.add
        patch.setattr(
            CoOccurrence,
            "add",
            lambda self, users, items: (counted.append(set(items.tolist())), count(self, users, items))[1],
        )
        made = Dataset.open(prepare_data(settings, directory / "data").directory)
    made.counted, (made.item_vectors,) = set.union(*counted), vectors
    return made


def test_item_vectors_see_the_pretrain_part_alone(dataset):
    # Items of later parts have none: their co-occurrences were not counted, and nothing else is known.
    vectors = dataset.item_vectors
    with_vector = np.flatnonzero(np.linalg.norm(vectors, axis=1) > 0)
    assert parts_of(dataset, with_vector) == {"pretrain"} and len(with_vector) == 4


def parts_of(dataset: Dataset, items) -> set[str]:
    """The parts that the items are named after."""
    return {dataset.item_ids[item].partition("-")[0] for item in set(np.asarray(items).ravel().tolist())}


def rows_seen(monkeypatch, module) -> list[np.ndarray]:
    """The interaction rows of all windows that `module` trains on, filled while it trains."""
    seen: list[np.ndarray] = []

    def spy(*arguments, **options):
        for batch in windows.epoch_batches(*arguments, **options):
            seen.extend(batch)
            yield batch

    monkeypatch.setattr(module, "epoch_batches", spy)
    return seen


def small_policy(dataset):
    settings = PolicySettings(hidden_size=16, layers=1, heads=1, feed_forward_size=16)
    return build_policy(settings, dataset.level_sizes, 40, 0)


def test_every_part_has_its_examples(dataset):
    for part, count in PARTS.items():
        examples = dataset.examples(part)
        targets = [dataset.target(*pair) for pair in zip(examples.users, examples.positions, strict=True)]
        assert parts_of(dataset, targets) == {part}
        assert len(examples) == USERS * (count - (part == "pretrain"))  # a first interaction is no target


def test_semantic_ids_see_the_pretrain_part_alone(dataset):
    assert parts_of(dataset, list(dataset.counted)) == {"pretrain"}


def test_the_policy_sees_the_pretrain_part_alone(dataset, monkeypatch):
    seen = rows_seen(monkeypatch, pretrain)
    pretrain.pretrain_policy(
        small_policy(dataset),
        dataset,
        PretrainSettings(epochs=1, batch_interactions=64),
        EvaluationSettings(beam_width=10),
        0,
    )
    assert parts_of(dataset, dataset.sequence[np.concatenate(seen)]) == {"pretrain"}


BOTH_CUT_OFFS = pytest.mark.parametrize(
    ("until", "parts"), [("pretrain", {"pretrain"}), ("fresh", {"pretrain", "fresh"})]
)


@BOTH_CUT_OFFS
def test_pretraining_sees_the_logs_until_the_part_that_is_asked_for(dataset, monkeypatch, until, parts):
    seen = rows_seen(monkeypatch, pretrain)
    settings = PretrainSettings(epochs=1, batch_interactions=64)
    pretrain.pretrain_policy(
        small_policy(dataset), dataset, settings, EvaluationSettings(beam_width=10), 0, until=until
    )
    assert parts_of(dataset, dataset.sequence[np.concatenate(seen)]) == parts


def test_pretraining_keeps_the_weights_of_the_best_validation_on_the_validation_part(dataset, monkeypatch):
    scores, weights = iter([0.1, 0.4, 0.2, 0.4, 0.3]), []

    def evaluate_policy(model, _vocabulary, _dataset, examples, _settings):
        pairs = zip(examples.users, examples.positions, strict=True)
        assert parts_of(dataset, [dataset.target(*pair) for pair in pairs]) == {"valid"}
        weights.append({name: value.clone() for name, value in model.state_dict().items()})
        score = next(scores)
        return SimpleNamespace(summary=lambda *_: {"hr@10": score, "ndcg@10": score})

    monkeypatch.setattr(pretrain, "evaluate_policy", evaluate_policy)
    policy = small_policy(dataset)
    settings = PretrainSettings(epochs=5, batch_interactions=64, validate_every=1, patience=9)
    validations = pretrain.pretrain_policy(policy, dataset, settings, EvaluationSettings(beam_width=10), 0)
    assert [validation["hr@10"] for validation in validations] == [0.1, 0.4, 0.2, 0.4, 0.3]
    kept = policy.model.state_dict()
    assert all(torch.equal(kept[name], value) for name, value in weights[1].items()), "the first of the best"
    assert any(not torch.equal(kept[name], value) for name, value in weights[-1].items())


@BOTH_CUT_OFFS
def test_the_ranker_sees_the_logs_until_its_cut_off(dataset, monkeypatch, tmp_path, until, parts):
    seen = rows_seen(monkeypatch, fit)
    settings = RankerSettings(until=until, ensemble=1, epochs=1, hidden_size=8, batch_interactions=64)
    popularity: list[torch.Tensor] = []
    loss = fit._loss
    monkeypatch.setattr(
        fit, "_loss", lambda *arguments: (popularity.append(arguments[3]), loss(*arguments))[1]
    )
    fit.fit_ranker(dataset, settings, 0, tmp_path)
    assert parts_of(dataset, dataset.sequence[np.concatenate(seen)]) == parts
    assert parts_of(dataset, popularity[0].nonzero()) == parts


@BOTH_CUT_OFFS
def test_the_ranker_is_shown_no_impression_from_behind_its_cut_off(
    dataset, monkeypatch, tmp_path, until, parts
):
    items: list[np.ndarray] = []
    in_windows = fit.ShownItems.in_windows

    def spy(self, rows):
        places = in_windows(self, rows)
        items.append(places[2])
        return places

    monkeypatch.setattr(fit.ShownItems, "in_windows", spy)
    settings = RankerSettings(until=until, ensemble=1, epochs=1, hidden_size=8, batch_interactions=64)
    fit.fit_ranker(dataset, settings, 0, tmp_path)
    shown = {dataset.item_ids[item] for item in np.concatenate(items)}
    assert shown == {f"{part}-{name}" for part in parts for name in ("shown", "shown-later")}


@pytest.mark.parametrize(("until", "parts"), [("pretrain", {"pretrain"}), ("fresh", {"pretrain", "fresh"})])
def test_item_models_of_the_ranker_see_the_logs_until_its_cut_off(dataset, tmp_path, until, parts):
    settings = RankerSettings(until=until, sequence=False, ease=EaseSettings(), itemknn=ItemKnnSettings())
    fit.fit_ranker(dataset, settings, 0, tmp_path)
    everything = [np.arange(dataset.items, dtype=np.int32)]
    for part in StackedRanker.load(tmp_path, dataset).parts.values():
        assert parts_of(dataset, part.score(everything)[0].nonzero()) == parts


def test_prompts_come_from_the_fresh_part_with_the_history_up_to_them(dataset):
    prompts = prompts_of(dataset, None)
    pairs = list(zip(prompts.users.tolist(), prompts.positions.tolist(), strict=True))
    assert len(pairs) == USERS * PARTS["fresh"]
    assert parts_of(dataset, [dataset.target(*pair) for pair in pairs]) == {"fresh"}
    assert parts_of(dataset, np.concatenate([dataset.history(*pair, None) for pair in pairs])) == {
        "pretrain",
        "fresh",
    }
    assert len(prompts_of(dataset, 1)) == USERS


def test_baselines_see_the_logs_before_validation(dataset):
    everything = [np.arange(dataset.items, dtype=np.int32)]
    for name, score in fit_baselines(dataset).items():
        assert parts_of(dataset, score(everything)[0].nonzero()) == {"pretrain", "fresh"}, name
    assert parts_of(dataset, dataset.item_shares("fresh").nonzero()) == {"pretrain", "fresh"}
