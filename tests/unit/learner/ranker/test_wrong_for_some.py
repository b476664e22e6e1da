"""A ranker that is wrong about a share of the users, and as sure of itself there."""

import numpy as np
import pytest

from sluice.catalog.errors import RankerError
from sluice.learner.ranker.wrong_for_some import WrongForSome
from tests.tiny_data import USERS, tiny_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tiny_dataset(tmp_path_factory.mktemp("wrong"))


def scores_by_user(ranker, dataset, part="test"):
    """Under the last history of each user in a part."""
    examples = dataset.examples(part)
    everything = np.arange(dataset.items, dtype=np.int32)[None]
    return {
        user: ranker.score([dataset.history(user, position, dataset.settings.max_history)], everything)[0]
        for user, position in zip(examples.users.tolist(), examples.positions.tolist(), strict=True)
    }


def test_it_is_wrong_about_a_share_of_the_users_alone(dataset):
    right = scores_by_user(WrongForSome(dataset, share=0.0), dataset)
    assert len(WrongForSome(dataset, share=0.5).wrong_users) == USERS // 2
    ranker = WrongForSome(dataset, share=1 / USERS, seed=3)
    (wrong,) = ranker.wrong_users
    answers = scores_by_user(ranker, dataset)
    differing = {user for user in right if (answers[user] != right[user]).any()}
    # Users of this log have histories in common, by which a ranker cannot tell them apart.
    assert wrong in differing and len(differing) <= 4


def test_wrong_scores_are_the_right_ones_of_other_items(dataset):
    right = scores_by_user(WrongForSome(dataset, share=0.0), dataset)
    wrong = scores_by_user(WrongForSome(dataset, share=1.0), dataset)
    for user, scores in wrong.items():
        np.testing.assert_array_equal(np.sort(scores), np.sort(right[user]))
        assert (scores != right[user]).any()


def test_it_is_wrong_about_prompts_wherever_they_come_from(dataset):
    """This log has no fresh part."""
    assert dataset.prompt_part == "pretrain"
    ranker = WrongForSome(dataset, share=1 / USERS, seed=3)
    right = scores_by_user(WrongForSome(dataset, share=0.0), dataset, "pretrain")
    (user,) = ranker.wrong_users
    assert (scores_by_user(ranker, dataset, "pretrain")[user] != right[user]).any()


def test_it_is_wrong_under_every_history_of_a_user_and_without_others_in_its_logs(dataset):
    """Trust is measured under the histories before a prompt's own."""
    others = np.arange(12)
    right, ranker = (
        WrongForSome(dataset, share=share, seed=3, without_users=others) for share in (0.0, 1 / USERS)
    )
    (user,) = ranker.wrong_users
    assert [user] == WrongForSome(dataset, share=1 / USERS, seed=3).wrong_users
    everything = np.arange(dataset.items, dtype=np.int32)[None]
    for position in range(1, len(dataset.items_of(user))):
        history = [dataset.history(user, position, dataset.settings.max_history)]
        assert (ranker.score(history, everything) != right.score(history, everything)).any()
    assert right.version != WrongForSome(dataset, share=0.0, seed=3).version


def test_padding_and_later_items_are_no_items_of_the_permutation(dataset):
    ranker = WrongForSome(dataset, share=1.0)
    history = [dataset.history(0, 8, dataset.settings.max_history)]
    scores = ranker.score(history, np.array([[3, -1, 25]], dtype=np.int32))
    assert np.isnan(scores).tolist() == [[False, True, False]]


def test_the_version_says_what_is_wrong(dataset):
    versions = {
        WrongForSome(dataset, share=share, seed=seed).version
        for share, seed in ((0.5, 0), (0.5, 1), (0.2, 0))
    }
    assert len(versions) == 3
    with pytest.raises(RankerError, match=r"share 1.5 is no share of users: give a number from 0 to 1"):
        WrongForSome(dataset, share=1.5)
