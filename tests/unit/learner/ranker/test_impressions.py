"""What was shown and not taken: the negatives of the click head."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from sluice.catalog.data.dataset import Dataset
from sluice.catalog.data.settings import DataSettings, SemanticIdSettings
from sluice.catalog.data.splits import Impressions
from sluice.catalog.errors import RankerError
from sluice.learner.ranker.fit import _loss, fit_ranker, logs_of
from sluice.learner.ranker.known_logs import KnownLogs, ShownItems
from sluice.learner.ranker.model import EnsembleRanker, build_member
from sluice.learner.ranker.quality import judge_ranker
from sluice.learner.ranker.settings import RankerSettings
from sluice.services.stages.prepare import prepare_data

USERS, STEPS = 16, 10
ALWAYS, NEVER, HALF = "always", "never", "half"
SETTINGS = RankerSettings(
    ensemble=1, hidden_size=16, epochs=40, batch_interactions=64, lr=2e-2, negatives=4, dropout=0.1
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    """Each user is shown three items at a time, one a second.

    `always` is clicked every time, `never` not once, and `half` on every other occasion, a second later.
    """
    directory = tmp_path_factory.mktemp("impressions")
    rows = []
    for user in range(USERS):
        for step in range(STEPS):
            time = 1_700_000_000 + 3600 * user + 10 * step
            rows += [(f"u{user}", ALWAYS, time, 1), (f"u{user}", NEVER, time, 0)]
            rows += [(f"u{user}", HALF, time + 1, (user + step) % 2)]
    columns = dict(zip(("user_id", "item_id", "timestamp", "click"), zip(*rows, strict=True), strict=True))
    pq.write_table(pa.table(columns), directory / "log.parquet")
    settings = DataSettings(
        name="impressions",
        source={
            "type": "table",
            "interactions": [str(directory / "log.parquet")],
            "columns": {"click": "click"},
        },
        semantic_ids=SemanticIdSettings(level_sizes=(4, 4), vector_dims=4, window=2),
        exclude_seen=False,
        max_history=8,
    )
    return Dataset.open(prepare_data(settings, directory / "data").directory)


def row(dataset: Dataset, item: str) -> int:
    return dataset.item_ids.index(item)


def test_the_click_head_tells_what_is_clicked_from_what_is_only_shown(dataset, tmp_path):
    quality = fit_ranker(dataset, SETTINGS, 0, tmp_path)
    ranker = EnsembleRanker.load(tmp_path, dataset)
    examples = dataset.examples("valid")
    histories = [dataset.history(*pair, 8) for pair in zip(examples.users, examples.positions, strict=True)]

    def chance(item: str) -> np.ndarray:
        items = np.full(len(histories), row(dataset, item), dtype=np.int32)
        return ranker.expected_outcomes(histories, items)["click"]

    assert chance(ALWAYS).min() > 0.9
    assert chance(NEVER).max() < 0.1
    assert 0.3 < chance(HALF).mean() < 0.7
    errors = quality["heads"]["click"]["rmse"]
    assert 0 < errors["ranker"] < 0.6 * errors["user_mean"]


def test_the_head_is_judged_on_impressions_too(dataset):
    member = build_member(KnownLogs.until(dataset, "fresh"), SETTINGS).eval()
    ranker = EnsembleRanker([member], "v", 8)
    judged = judge_ranker(ranker, dataset, "valid", until="fresh")["heads"]["click"]
    examples, shown = dataset.examples("valid"), dataset.impressions("test")
    shown = shown.where(shown.parts == 2)
    pairs = [*zip(examples.users, examples.positions, strict=True)]
    items = [dataset.target(*pair) for pair in pairs]
    pairs += [*zip(shown.users, shown.positions, strict=True)]
    items = np.array([*items, *shown.items], dtype=np.int32)
    assert len(shown) > 0
    assert judged["events"] == sum(judged["curve"]["events"]) == len(pairs)
    actual = np.repeat([1.0, 0.0], [len(examples), len(shown)])
    predicted = ranker.expected_outcomes([dataset.history(*pair, 8) for pair in pairs], items)["click"]
    assert judged["rmse"]["ranker"] == pytest.approx(np.sqrt(np.mean((predicted - actual) ** 2)), rel=1e-5)
    taken = np.bincount(KnownLogs.until(dataset, "fresh").interactions()[1], minlength=dataset.items)
    missed = np.bincount(dataset.impressions("fresh").items, minlength=dataset.items)
    by_item = (taken / (taken + missed))[items]
    assert judged["rmse"]["item_mean"] == pytest.approx(np.sqrt(np.mean((by_item - actual) ** 2)), rel=1e-5)


def test_exposure_is_what_was_shown_taken_or_not(dataset):
    logs = KnownLogs.until(dataset, "fresh")
    taken = np.bincount(logs.interactions()[1], minlength=dataset.items)
    missed = np.bincount(dataset.impressions("fresh").items, minlength=dataset.items)
    assert missed[row(dataset, NEVER)] > 0 == missed[row(dataset, ALWAYS)]
    assert logs.exposures().tolist() == (taken + missed).tolist()


def test_a_decile_has_the_examples_whose_targets_were_shown_as_seldom(dataset):
    """Of `always`, `half` and `never` each makes up a decile; no example has `never` as its target."""
    logs = KnownLogs.until(dataset, "fresh")
    ranker = EnsembleRanker([build_member(logs, SETTINGS).eval()], "v", 8)
    quality = judge_ranker(ranker, dataset, "valid", until="fresh")
    examples = dataset.examples("valid")
    targets = dataset.sequence[dataset.offsets[examples.users] + examples.positions]
    in_order = np.argsort(logs.exposures(), kind="stable")
    held = {int(place * 10 // 3) + 1: item for place, item in enumerate(in_order) if (targets == item).any()}
    assert [found["decile"] for found in quality["by_exposure"]] == list(held)
    for found, item in zip(quality["by_exposure"], held.values(), strict=True):
        assert found["exposure"] == logs.exposures()[item] and found["examples"] == (targets == item).sum()
    count = [found["examples"] for found in quality["by_exposure"]]
    for name in ("auc", "hr@10"):
        values = [found[name] for found in quality["by_exposure"]]
        assert np.average(values, weights=count) == pytest.approx(quality[name])


def test_the_scale_of_the_head_counts_both(dataset):
    logs = KnownLogs.until(dataset, "fresh")
    clicks, misses = int(logs.lengths.sum()), len(dataset.impressions("fresh"))
    mean = float(build_member(logs, SETTINGS).head("click").mean)
    assert mean == pytest.approx((clicks + 1) / (clicks + misses + 2))


def test_the_loss_takes_both_with_the_history_before_each(dataset):
    """Against what the ranker says of every event by itself."""
    settings = SETTINGS.model_copy(update={"dropout": 0.0, "item_dropout": 0.0, "click_weight": 0.5})
    logs = KnownLogs.until(dataset, "fresh")
    torch.manual_seed(0)
    member = build_member(logs, settings).eval()
    ranker = EnsembleRanker([member], "v", 8)
    begin = int(dataset.offsets[3])
    rows = [np.arange(4), np.arange(begin, begin + 6)]
    shares = torch.from_numpy(logs.item_shares())
    torch.manual_seed(1)
    both = _loss(member, dataset, rows, shares, settings, ShownItems(logs)).item()
    torch.manual_seed(1)
    alone = _loss(
        member, dataset, rows, shares, settings.model_copy(update={"click_weight": 0.0}), ShownItems(logs)
    ).item()
    shown = dataset.impressions("test")
    shown_at = pq.read_table(dataset.directory / "impressions.parquet").column("timestamp").to_numpy()
    events: list[tuple[np.ndarray, int, float]] = []
    for user, window in zip((0, 3), rows, strict=True):
        items, times = dataset.sequence[window], dataset.timestamps[window]
        events += [(items[:place], items[place], 1.0) for place in range(1, len(window))]
        # Up to the time of the interaction behind the window, and not without a history.
        until = dataset.timestamps[window[-1] + 1]
        inside = (shown.users == user) & (shown_at > times[0]) & (shown_at <= until)
        events += [(items[times < shown_at[row]], shown.items[row], 0.0) for row in np.flatnonzero(inside)]
    histories, items, clicked = zip(*events, strict=True)
    chance = ranker.expected_outcomes(list(histories), np.array(items, dtype=np.int32))["click"]
    expected = -np.mean(np.where(clicked, np.log(chance), np.log(1 - chance)))
    assert both - alone == pytest.approx(0.5 * expected, rel=1e-4)


def test_places_in_windows_by_hand():
    # Interactions 0 to 4 are user 0's and 5 to 8 user 1's. To user 0, 11 and 12 are shown behind the second
    # interaction and 13 behind all five; to user 1, 10 before all and 14 behind the third.
    shown = Impressions(
        users=np.array([1, 1, 0, 0, 0], dtype=np.int32),
        items=np.array([10, 14, 11, 13, 12], dtype=np.int32),
        positions=np.array([0, 3, 2, 5, 2], dtype=np.int32),
        parts=np.zeros(5, dtype=np.int8),
    )
    index = ShownItems(
        SimpleNamespace(dataset=SimpleNamespace(offsets=np.array([0, 5, 9])), impressions=shown)
    )

    def listed(*windows: list[int]) -> set[tuple[int, int, int]]:
        places = index.in_windows([np.array(window) for window in windows])
        assert all(part.dtype == np.int64 for part in places)
        return set(zip(*(part.tolist() for part in places), strict=True))

    assert listed([0, 1, 2, 3, 4]) == {(0, 1, 11), (0, 1, 12), (0, 4, 13)}
    assert listed([5, 6, 7, 8], [1, 2, 3, 4]) == {(0, 2, 14), (1, 0, 11), (1, 0, 12), (1, 3, 13)}
    assert listed([2, 3]) == set()
    # 0 and 1 have one time, and stand in the other order: both come before what was shown.
    assert listed([1, 0, 2]) == {(0, 1, 11), (0, 1, 12)}


def test_what_was_shown_behind_what_is_held_out_is_held_out(dataset):
    logs = KnownLogs.until(dataset, "fresh")
    assert len(logs.impressions) == len(dataset.impressions("fresh"))
    rest, _ = logs.hold_out(0.2)
    shown, kept = logs.impressions, rest.impressions
    expected = shown.positions < rest.lengths[shown.users]
    assert 0 < expected.sum() < len(shown)
    assert kept.items.tolist() == shown.items[expected].tolist()
    assert (kept.positions < rest.lengths[kept.users]).all()


def test_a_ranker_of_impressions_learns_of_those_alone_who_have_some(tmp_path):
    """Users 0 to 3 have rows without a click; the others take item `other` again and again."""
    rows = [(f"u{u}", f"i{t % 3}", 100 * u + t, int(t % 4 != 1)) for u in range(4) for t in range(12)]
    rows += [(f"u{u}", "other", 100 * u + t, 1) for u in range(4, 8) for t in range(10)]
    columns = dict(zip(("user_id", "item_id", "timestamp", "click"), zip(*rows, strict=True), strict=True))
    pq.write_table(pa.table(columns), tmp_path / "log.parquet")
    source = {"type": "table", "interactions": [str(tmp_path / "log.parquet")], "columns": {"click": "click"}}
    settings = DataSettings(
        name="some",
        source=source,
        semantic_ids=SemanticIdSettings(level_sizes=(2,), vector_dims=2, window=2),
        split={"type": "fresh"},
        exclude_seen=False,
    )
    dataset = Dataset.open(prepare_data(settings, tmp_path / "data").directory)
    own = RankerSettings(users="with_impressions", until="fresh")
    known = logs_of(dataset, own)
    learned_from = {dataset.user_ids[user] for user in np.flatnonzero(known.lengths)}
    assert learned_from and learned_from <= {f"u{u}" for u in range(4)}
    assert known.item_counts()[row(dataset, "other")] == 0
    everybody = logs_of(dataset, RankerSettings(until="fresh"))
    assert everybody.item_counts()[row(dataset, "other")] > 0


def test_a_log_without_impressions_has_nobody_to_learn_from(dataset, monkeypatch):
    none = dataset.impressions("test").where(np.zeros(len(dataset.impressions("test")), dtype=bool))
    monkeypatch.setattr(Dataset, "impressions", lambda self, until: none)
    with pytest.raises(RankerError, match=r"ranker\.users is with_impressions, and the log has none"):
        logs_of(dataset, RankerSettings(users="with_impressions"))


def test_a_ranker_of_clicks_scores_by_the_click_and_stays_so(dataset, tmp_path):
    clicks = SETTINGS.model_copy(update={"scores": "click"})
    fit_ranker(dataset, clicks, 0, tmp_path / "clicks")
    fit_ranker(dataset, SETTINGS, 0, tmp_path / "next")
    by_click, by_next = (EnsembleRanker.load(tmp_path / name, dataset) for name in ("clicks", "next"))
    assert by_click.version == f"{by_next.version}-click"
    histories = [dataset.history(user, 5, 8) for user in range(4)]
    candidates = np.tile(np.arange(dataset.items, dtype=np.int32), (4, 1))
    scores = by_click.score(histories, candidates)
    for item in range(dataset.items):
        chances = by_next.expected_outcomes(histories, np.full(4, item, dtype=np.int32))["click"]
        logits = np.log(chances / (1 - chances)) - scores[:, item]
        np.testing.assert_allclose(logits, logits[0], atol=1e-3)  # up to the logit of the mean
    assert not np.allclose(scores, by_next.score(histories, candidates))
    assert np.isnan(by_click.score(histories[:1], np.array([[-1, 0]], dtype=np.int32))[0]).tolist() == [
        True,
        False,
    ]


def test_a_ranker_of_clicks_needs_clicks(dataset, tmp_path):
    without = SETTINGS.model_copy(update={"scores": "click", "click_weight": 0.0})
    with pytest.raises(RankerError, match=r"ranker\.scores is click, and the logs"):
        fit_ranker(dataset, without, 0, tmp_path)
