import numpy as np
import pytest

from sluice.catalog.data.dataset import Dataset, Examples
from sluice.catalog.data.settings import DataSettings
from sluice.learner.evaluation.baselines import fit_baselines, judge_baselines, judge_scores
from sluice.services.stages.prepare import prepare_data
from tests.tiny_data import ITEMS, tiny_dataset


@pytest.fixture(scope="module")
def movielens(tmp_path_factory):
    return Dataset.open(prepare_data(DataSettings(), tmp_path_factory.mktemp("data") / "ml").directory)


def test_figures_of_movielens(movielens):
    """HR@10 on the test split, seen items excluded; popularity is known from elsewhere to be .0859."""
    judged = judge_baselines(movielens, movielens.examples("test"), width=50)
    found = {name: result.summary(movielens) for name, result in judged.items()}
    assert set(found) == {"popularity", "itemknn", "ease"}
    assert found["ease"]["hr@10"] == pytest.approx(0.19, abs=0.02)
    assert found["popularity"]["hr@10"] == pytest.approx(0.0859, abs=0.002)
    assert found["itemknn"]["hr@10"] == pytest.approx(0.2153, abs=0.002)
    assert found["popularity"]["head_share"] == 1 and found["itemknn"]["head_share"] < 1


def test_baselines_see_the_logs_before_validation_alone(movielens):
    assert fit_baselines(movielens)["popularity"]([np.array([0])]).sum() == 100_000 - 2 * 943


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_dataset(tmp_path_factory.mktemp("scores"))


@pytest.fixture(scope="module")
def one_user(tiny):
    """An example with eight consumed items and twelve others, of which one is the target."""
    examples = tiny.examples("test")
    return Examples(users=examples.users[:1], positions=examples.positions[:1])


def test_a_target_beyond_the_places_of_a_list_is_not_in_it(tiny, one_user):
    pair = int(one_user.users[0]), int(one_user.positions[0])
    seen, target = set(tiny.seen(*pair).tolist()), tiny.target(*pair)
    others = [item for item in range(ITEMS) if item not in seen | {target}]
    order = [*seen, *others, target]  # of the twelve items that are left the target is the last

    def score(histories):
        row = np.empty(ITEMS, dtype=np.float32)
        row[order] = -np.arange(ITEMS)
        return np.tile(row, (len(histories), 1))

    for width, rank in ((20, 12), (12, 12), (11, 0)):
        found = judge_scores(tiny, one_user, score, width=width)
        assert found.ranks.tolist() == [rank]
        expected = ([*others, target] + [-1] * ITEMS)[:width]
        assert found.items.tolist() == [expected], "consumed items take no place"


def test_what_has_no_finite_score_is_in_no_list(tiny, one_user):
    target = tiny.target(int(one_user.users[0]), int(one_user.positions[0]))
    for value in (np.nan, np.inf, -np.inf):

        def score(histories, value=value):
            row = np.arange(ITEMS, dtype=np.float32)
            row[target] = value
            return np.tile(row, (len(histories), 1))

        found = judge_scores(tiny, one_user, score, width=ITEMS)
        assert found.ranks.tolist() == [0] and target not in found.items
        assert found.items[0, 0] >= 0, "it takes no place either"


def asked_of(tiny, **options):
    """The lengths of the histories that a score is given, and how much comes before the targets."""
    examples = tiny.examples("test")
    asked = []

    def score(histories):
        asked.extend(histories)
        return np.zeros((len(histories), ITEMS), dtype=np.float32)

    judge_scores(tiny, examples, score, width=10, batch=5, **options)
    whole = [tiny.seen(*pair) for pair in zip(examples.users, examples.positions, strict=True)]
    return [history.tolist() for history in asked], [history.tolist() for history in whole]


def test_a_ranker_is_judged_on_no_longer_histories_than_it_is_promised(tiny):
    asked, whole = asked_of(tiny)
    limit = tiny.settings.max_history
    assert asked == [history[-limit:] for history in whole] and limit == 6


def test_baselines_see_the_whole_history(tiny):
    asked, whole = asked_of(tiny, whole_history=True)
    assert asked == whole and min(map(len, asked)) == 8
    judged = judge_baselines(tiny, tiny.examples("test"), width=10)
    cut = {
        name: judge_scores(tiny, tiny.examples("test"), score, 10)
        for name, score in fit_baselines(tiny).items()
    }
    assert judged.keys() == cut.keys()
    assert any((judged[name].items != cut[name].items).any() for name in cut), (
        "six items tell less than eight"
    )
