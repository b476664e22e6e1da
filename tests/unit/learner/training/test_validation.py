"""Validation by several workers: every example counts once, whatever their number."""

import numpy as np
import pytest
import torch.distributed as dist

from sluice.catalog.data.dataset import Examples
from sluice.learner.evaluation.evaluate import UserResults
from sluice.learner.training import validation
from sluice.learner.training.validation import equal_share, validate_policy

# Seven examples of three users: neither the users nor the examples are a multiple of 2 or 3.
EXAMPLES = Examples(
    users=np.array([0, 0, 0, 1, 2, 2, 2], dtype=np.int32),
    positions=np.array([4, 5, 6, 9, 1, 2, 3], dtype=np.int32),
)


def results_of(examples):
    """What a policy might give: a rank that names the example."""
    ranks = 100 * examples.users + examples.positions
    return UserResults(
        users=examples.users,
        positions=examples.positions,
        ranks=ranks.astype(np.int64),
        items=np.repeat(ranks[:, None], 10, axis=1),
        invalid=np.zeros(len(examples), dtype=np.int64),
    )


class Learner:
    model = None

    def run(self, call):
        return call()


@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_example_counts_once(monkeypatch, world):
    judged = []

    def evaluate_policy(_model, _vocabulary, _dataset, examples, _settings):
        judged.append(examples)
        return results_of(examples)

    def all_gather(parts, part):
        assert part.users.tolist() == equal_share(EXAMPLES, rank, world).users.tolist()
        parts[:] = [results_of(equal_share(EXAMPLES, other, world)) for other in range(world)]

    monkeypatch.setattr(validation, "evaluate_policy", evaluate_policy)
    monkeypatch.setattr(dist, "is_initialized", lambda: world > 1)
    monkeypatch.setattr(dist, "get_world_size", lambda: world)
    monkeypatch.setattr(dist, "all_gather_object", all_gather)
    whole = results_of(EXAMPLES)
    for rank in range(world):
        monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
        found = validate_policy(Learner(), None, None, EXAMPLES, None)
        assert all((getattr(found, name) == value).all() for name, value in vars(whole).items())
        assert len(found.users) == len(EXAMPLES)
    assert {len(examples) for examples in judged} == {-(-len(EXAMPLES) // world)}, "equal shares"
