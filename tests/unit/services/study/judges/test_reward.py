"""The reward model as a judge: what it adds up, over whom, and of what it knows nothing."""

from types import SimpleNamespace

import numpy as np
import pytest

from sluice.catalog.decoding import Decoding
from sluice.catalog.errors import ConfigError
from sluice.catalog.trie.vocabulary import Vocabulary
from sluice.learner.batches.collate import collate_histories
from sluice.learner.decoding.tree import TreeDecoder
from sluice.learner.evaluation.evaluate import UserResults, evaluate_policy
from sluice.learner.policy.policy import load_policy
from sluice.learner.ranker.model import EnsembleRanker
from sluice.learner.ranker.settings import RankerSettings
from sluice.learner.settings import EvaluationSettings
from sluice.services.study.judges import reward
from sluice.services.study.judges.reward import (
    JUDGE,
    RETURN,
    SPREAD,
    RewardJudge,
    fit_judge,
    keep_high_rewards,
)
from sluice.services.study.judges.settings import JudgeSettings
from sluice.services.study.results import paths_of
from tests.tiny_data import tiny_dataset
from tests.unit.services.study.conftest import no_progress

SETTINGS = JudgeSettings(members=2, steps=3, discount=0.5)
RANKER = RankerSettings(hidden_size=16, epochs=3, batch_interactions=64)


@pytest.fixture(scope="module")
def judged(finished, tmp_path_factory):
    """A policy's lists on the test examples of the tiny log, and a judge of its ratings."""
    directory = tmp_path_factory.mktemp("judge")
    dataset = tiny_dataset(directory / "data")
    fit_judge(dataset, RANKER, SETTINGS, 0, directory / "judge", no_progress)
    policy_directory = paths_of(finished.study, "tiny", 0).policy
    policy = load_policy(policy_directory)
    vocabulary = Vocabulary.of(dataset.codes, policy.layout)
    results = evaluate_policy(
        policy.model, vocabulary, dataset, dataset.examples("test"), EvaluationSettings(beam_width=10)
    )
    return SimpleNamespace(
        dataset=dataset,
        directory=directory / "judge",
        policy=policy_directory,
        model=policy.model,
        vocabulary=vocabulary,
        results=results,
    )


def histories_of(judged):
    pairs = zip(judged.results.users, judged.results.positions, strict=True)
    return [judged.dataset.history(user, at, 6) for user, at in pairs]


def test_a_list_is_worth_the_mean_prediction_of_its_ten_items(judged):
    columns = RewardJudge(judged.directory, judged.dataset, SETTINGS, None)(judged.policy, judged.results)
    ensemble = EnsembleRanker.load(judged.directory, judged.dataset)
    values = ensemble.predict(histories_of(judged), judged.results.top_items).values
    np.testing.assert_allclose(columns[JUDGE], values.mean(axis=1), rtol=1e-5)
    of_members = [
        EnsembleRanker([member], "v", 6, "rating").predict(histories_of(judged), judged.results.top_items)
        for member in ensemble.members
    ]
    first, second = (answer.values.mean(axis=1) for answer in of_members)
    np.testing.assert_allclose(columns[SPREAD], np.abs(first - second) / np.sqrt(2), rtol=1e-3, atol=1e-5)
    assert columns[JUDGE].min() > 1 and columns[JUDGE].max() < 5  # stars


def test_a_return_is_the_discounted_reward_of_what_would_be_generated_next(judged):
    columns = RewardJudge(judged.directory, judged.dataset, SETTINGS, None)(judged.policy, judged.results)
    ensemble = EnsembleRanker.load(judged.directory, judged.dataset)
    decoder = TreeDecoder(judged.model, judged.vocabulary)
    for row in (0, 7, 20):
        user, at = judged.results.users[row], judged.results.positions[row]
        history, seen, total = judged.dataset.history(user, at, 6), judged.dataset.seen(user, at), 0.0
        for step in range(3):
            prefix = decoder.prefill(*collate_histories([history], judged.vocabulary))
            beams = decoder.beams(prefix, Decoding(kind="beam", candidates=10, constrained=True), [seen])
            item = judged.vocabulary.trie.lookup(beams.tokens_BWL)[0, 0]
            total += 0.5**step * ensemble.predict([history], np.array([[item]], dtype=np.int32)).values[0, 0]
            history, seen = np.append(history, item).astype(np.int32)[-6:], np.append(seen, item)
        assert columns[RETURN][row] == pytest.approx(total, rel=1e-5)


def test_a_single_step_has_no_return_and_a_missing_item_is_worth_nothing(judged):
    once = RewardJudge(judged.directory, judged.dataset, JudgeSettings(members=2), None)
    whole = once(judged.policy, judged.results)
    assert RETURN not in whole
    items = judged.results.items.copy()
    items[:, 5:] = -1
    fields = {name: getattr(judged.results, name) for name in UserResults.__dataclass_fields__}
    half = once(judged.policy, UserResults(**fields | {"items": items}))
    values = EnsembleRanker.load(judged.directory, judged.dataset).predict(histories_of(judged), items).values
    np.testing.assert_allclose(half[JUDGE], np.nansum(values, axis=1) / 10, rtol=1e-5)


def test_users_above_the_median_of_their_mean_reward_are_kept(judged):
    kept = keep_high_rewards(judged.dataset, judged.results)
    rewards = judged.dataset.logged_rewards(judged.results.users, judged.results.positions)
    means = {user: rewards[judged.results.users == user].mean() for user in set(judged.results.users)}
    median = np.median(list(means.values()))
    assert set(kept.users) == {user for user, mean in means.items() if mean > median}
    assert 0 < len(kept.users) < len(judged.results.users) and len(kept.items) == len(kept.users)


def test_where_most_users_have_the_highest_reward_nobody_would_be_left(judged, monkeypatch):
    everyone = np.where(judged.results.users % 3 == 0, 4.0, 5.0)
    monkeypatch.setattr(type(judged.dataset), "logged_rewards", lambda *_: everyone)
    with pytest.raises(ConfigError, match=r"keeps nobody: more than half .* 5\. Set it to false"):
        keep_high_rewards(judged.dataset, judged.results)


def test_a_judge_that_learned_of_users_is_told_who_they_are(judged, monkeypatch):
    asked = []

    def ask(member, histories, items, users):
        asked.append(users)
        return member.predict(histories, items)

    monkeypatch.setattr(reward, "ask_ranker", ask)
    RewardJudge(judged.directory, judged.dataset, SETTINGS, None)(judged.policy, judged.results)
    assert all(np.array_equal(users, judged.results.users) for users in asked) and len(asked) == 2 * 4


def test_a_log_without_a_reward_cannot_be_judged(tmp_path, judged):
    plain = tiny_dataset(tmp_path / "data", reward="none")
    with pytest.raises(ConfigError, match=r"data\.reward is none"):
        fit_judge(plain, RANKER, SETTINGS, 0, tmp_path / "judge", no_progress)
    with pytest.raises(ConfigError, match="high_rewards needs logged rewards"):
        keep_high_rewards(plain, judged.results)
    heedless = RANKER.model_copy(update={"rating_weight": 0.0})
    with pytest.raises(ConfigError, match=r"ranker\.rating_weight is 0"):
        fit_judge(judged.dataset, heedless, SETTINGS, 0, tmp_path / "judge", no_progress)
