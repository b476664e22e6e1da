"""What is known of a user counts in the built-in ranker, and a ranker may be told whose a history is."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from sluice.catalog.data.dataset import Dataset, Examples
from sluice.catalog.data.settings import DataSettings, SemanticIdSettings, UserColumns
from sluice.catalog.errors import RankerError
from sluice.learner.full_catalogue import score_all_items, score_catalogue
from sluice.learner.ranker.contract import ask_ranker, ask_score
from sluice.learner.ranker.fit import _owners, fit_on, fit_ranker
from sluice.learner.ranker.known_logs import KnownLogs
from sluice.learner.ranker.model import EnsembleRanker, SequenceRanker, code_users
from sluice.learner.ranker.quality import judge_ranker
from sluice.learner.ranker.settings import ItemKnnSettings, RankerSettings
from sluice.services.stages.prepare import prepare_data
from tests.rollout_fakes import RowRanker
from tests.tiny_data import tiny_dataset

SETTINGS = RankerSettings(
    ensemble=2, hidden_size=16, epochs=30, batch_interactions=64, lr=2e-2, negatives=8, dropout=0.0
)
FIRST = "i10"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    """All begin with one item. Then users of kind a take items 0 to 4 and of b 5 to 9; of some nobody knows.

    So after the first item the attribute alone tells what comes next.
    """
    directory, rng, rows = tmp_path_factory.mktemp("users"), np.random.default_rng(0), []
    for user in range(60):
        rows.append((f"u{user:02d}", FIRST, 0))
        for step, item in enumerate(rng.permutation(5)[:4]):
            rows.append((f"u{user:02d}", f"i{item + 5 * (user % 2):02d}", step + 1))
    columns = dict(zip(("user_id", "item_id", "timestamp"), zip(*rows, strict=True), strict=True))
    pq.write_table(pa.table(columns), directory / "log.parquet")
    known = [user for user in range(60) if user % 10 < 8]
    users = {"id": [f"u{user:02d}" for user in known], "kind": ["ab"[user % 2] for user in known]}
    pq.write_table(pa.table(users), directory / "users.parquet")
    settings = DataSettings(
        name="users",
        source={
            "type": "table",
            "interactions": [str(directory / "log.parquet")],
            "timestamp_unit": "none",
            "users": str(directory / "users.parquet"),
            "user_columns": UserColumns(id="id", attributes=("kind",)),
        },
        semantic_ids=SemanticIdSettings(level_sizes=(4, 4), vector_dims=4, window=2),
    )
    return Dataset.open(prepare_data(settings, directory / "data").directory)


def user(dataset, name):
    return dataset.user_ids.index(name)


def margin(scores: np.ndarray) -> np.ndarray:
    """How much higher the items of b are than those of a, in a row of scores of items 0 to 9."""
    return scores[:, 5:10].mean(axis=1) - scores[:, :5].mean(axis=1)


@pytest.fixture(scope="module")
def fitted(dataset, tmp_path_factory):
    directory = tmp_path_factory.mktemp("fitted")
    return directory, fit_ranker(dataset, SETTINGS, 0, directory), EnsembleRanker.load(directory, dataset)


def ask(dataset, ranker, users):
    first = np.array([dataset.item_ids.index(FIRST)], dtype=np.int32)
    items = np.array([dataset.item_ids.index(f"i{item:02d}") for item in range(10)], dtype=np.int32)
    return ranker.score([first] * len(users), np.tile(items, (len(users), 1)), np.array(users))


def test_users_are_coded_with_a_row_for_those_who_are_not_known(dataset):
    codes = code_users(dataset)
    assert codes.dtype == torch.int64 and codes.shape == (61, 1)
    assert dataset.user_attributes[1] == ["kind=a", "kind=b"]
    found = {name: int(codes[user(dataset, name), 0]) for name in ("u00", "u01", "u08", "u09")}
    assert found == {"u00": 2, "u01": 3, "u08": 1, "u09": 1} and int(codes[-1, 0]) == 1


def test_the_attribute_of_a_user_tells_what_comes_next(dataset, fitted):
    ranker = fitted[2]
    assert ranker.needs_users
    users = [user(dataset, name) for name in ("u00", "u01", "u08", "u09")] + [-1]
    a, b, stranger, other, nobody = margin(ask(dataset, ranker, users))
    assert a < -1 and b > 1
    assert stranger == pytest.approx(other) == pytest.approx(nobody) and a + 0.5 < nobody < b - 0.5
    np.testing.assert_array_equal(
        ranker.score([np.array([0], np.int32)], np.array([[1, 2]], np.int32)),
        ranker.score([np.array([0], np.int32)], np.array([[1, 2]], np.int32), np.array([-1])),
    )


def test_predict_and_the_quality_know_the_users_too(dataset, fitted):
    _, quality, ranker = fitted
    users = np.array([user(dataset, name) for name in ("u00", "u01")])
    histories = [np.array([0], np.int32)] * 2
    candidates = np.tile(np.arange(11, dtype=np.int32), (2, 1))
    scores = ranker.score(histories, candidates, users)
    np.testing.assert_array_equal(ranker.predict(histories, candidates, users).scores, scores)
    assert not np.array_equal(scores[0], scores[1])
    # The same ranker, asked for nobody, ranks worse on first targets, which the history tells nothing of.
    examples = dataset.examples("pretrain")
    first = examples.positions == 1
    firsts = Examples(users=examples.users[first], positions=examples.positions[first])

    def area(score):
        found = score_catalogue(dataset, firsts, score_all_items(score, dataset.items), batch=7)
        return np.mean(np.concatenate([scored.areas() for scored in found]))

    known = area(ranker.score)
    assert known > area(lambda histories, candidates, users: ranker.score(histories, candidates)) + 0.1
    again = judge_ranker(ranker, dataset, "valid", until=SETTINGS.until)
    assert {name: again[name] for name in ("auc", "mrr")} == {name: quality[name] for name in ("auc", "mrr")}


def test_a_stack_hands_the_users_on(dataset):
    settings = SETTINGS.model_copy(update={"itemknn": ItemKnnSettings(), "ensemble": 1, "epochs": 5})
    stack = fit_on(KnownLogs.until(dataset, "pretrain"), settings, 0, lambda *_: None)
    assert stack.needs_users
    stack.weights["sequence"] = 1.0
    a, b = ask(dataset, stack, [user(dataset, "u00"), user(dataset, "u01")])
    assert not np.allclose(a, b)
    histories, candidates = [np.array([0], np.int32)], np.array([[1, 2, 3]], np.int32)
    users = np.array([user(dataset, "u00")])
    predicted = stack.predict(histories, candidates, users).scores
    np.testing.assert_allclose(predicted, stack.score(histories, candidates, users), rtol=1e-6)


def test_without_attributes_the_ranker_is_what_it_was(tmp_path):
    plain = tiny_dataset(tmp_path)
    assert code_users(plain) is None
    torch.manual_seed(0)
    member = SequenceRanker(torch.zeros(20, 1), 8, 0.0, ["rating"])
    assert not any("user_embedding" in name for name in member.state_dict())
    ranker = EnsembleRanker([member], "v", 5)
    assert not ranker.needs_users
    histories, candidates = [np.array([0], np.int32)], np.array([[1, 2]], np.int32)
    np.testing.assert_array_equal(
        ranker.score(histories, candidates, np.array([7])), ranker.score(histories, candidates)
    )


def test_windows_belong_to_the_user_whose_interactions_they_hold(dataset):
    begin = dataset.offsets
    rows = [np.arange(begin[3], begin[3] + 2), np.arange(begin[0], begin[1]), np.array([begin[5] - 1])]
    assert _owners(dataset, rows).tolist() == [3, 0, 4]


class Asked(RowRanker):
    """Keeps whose the histories were."""

    needs_users = True

    def __init__(self):
        super().__init__()
        self.users = []

    def score(self, histories, candidates, users):
        self.users.append(users)
        return super().score(histories, candidates)


def test_a_ranker_is_told_the_users_if_it_says_that_it_needs_them():
    histories, candidates = [np.array([1], np.int32)] * 2, np.array([[1, 2], [3, 4]], np.int32)
    ranker = Asked()
    scores = ask_score(ranker, histories, candidates, np.array([4, 2]))
    np.testing.assert_array_equal(scores, ask_score(RowRanker(), histories, candidates, np.array([4, 2])))
    ask_ranker(ranker, histories, candidates, np.array([5, 6]))
    ask_ranker(ranker, histories, candidates)
    assert [users.tolist() for users in ranker.users] == [[4, 2], [5, 6], [-1, -1]]
    assert all(users.dtype == np.int32 for users in ranker.users)


def test_an_attribute_that_no_user_of_the_logs_has_says_nothing():
    """Everybody has an attribute, so a stranger's embedding has never been learned."""
    torch.manual_seed(0)
    member = SequenceRanker(torch.zeros(20, 1), 8, 0.0, user_codes=torch.tensor([[2], [3], [1]]))
    histories, candidates = [np.array([0], np.int32)], np.array([[1, 2]], np.int32)
    nothing = SequenceRanker(torch.zeros(20, 1), 8, 0.0)
    nothing.load_state_dict(member.state_dict(), strict=False)
    np.testing.assert_array_equal(
        EnsembleRanker([member], "v", 5).score(histories, candidates, np.array([-1])),
        EnsembleRanker([nothing], "v", 5).score(histories, candidates),
    )


@pytest.mark.parametrize(
    ("names", "said"),
    [(["kind=a"], "by 1 attributes, the data set has 2, .* 'kind=b'"), ([], "by 0 .* 'kind=a'")],
)
def test_a_ranker_of_other_attributes_of_users_is_refused(dataset, fitted, tmp_path, names, said):
    shutil.copytree(fitted[0], tmp_path, dirs_exist_ok=True)
    facts = json.loads((tmp_path / "ranker.json").read_text())
    assert facts["user_attributes"] == ["kind=a", "kind=b"]
    (tmp_path / "ranker.json").write_text(json.dumps(facts | {"user_attributes": names}))
    with pytest.raises(RankerError, match=said):
        EnsembleRanker.load(tmp_path, dataset)
    del facts["user_attributes"]  # as an earlier release wrote it
    (tmp_path / "ranker.json").write_text(json.dumps(facts))
    assert EnsembleRanker.load(tmp_path, dataset).needs_users
