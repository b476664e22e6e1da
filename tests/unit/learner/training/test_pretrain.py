"""Pretraining: which weights are kept, when it stops, and what their average is."""

import pytest
import torch

from sluice.catalog.errors import DataError
from sluice.learner.policy.policy import build_policy
from sluice.learner.settings import EvaluationSettings, PolicySettings, PretrainSettings
from sluice.learner.training import pretrain
from tests.tiny_data import tiny_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tiny_dataset(tmp_path_factory.mktemp("pretrain"))


class Judged:
    """Stands in for `evaluate_policy`: gives the next of the scores and keeps the weights that it sees."""

    def __init__(self, *scores):
        self.scores = list(scores)
        self.weights = []

    def __call__(self, model, *_):
        self.weights.append({name: value.clone() for name, value in model.state_dict().items()})
        return self

    def summary(self, *_):
        return {"hr@10": self.scores[len(self.weights) - 1]}


def train(dataset, monkeypatch, judged, **given):
    monkeypatch.setattr(pretrain, "evaluate_policy", judged)
    policy = build_policy(
        PolicySettings(hidden_size=16, layers=1, heads=1, feed_forward_size=16), dataset.level_sizes, 40, 0
    )
    settings = PretrainSettings(epochs=6, batch_interactions=64, validate_every=1, **given)
    validations = pretrain.pretrain_policy(policy, dataset, settings, EvaluationSettings(beam_width=10), 0)
    return policy.model.state_dict(), [row["epoch"] for row in validations]


@pytest.mark.parametrize(
    ("scores", "patience", "epochs", "best"),
    [
        ((0.1, 0.3, 0.2, 0.2, 0.4, 0.5), 2, 4, 1),  # gives up before the better ones
        ((0.1, 0.3, 0.2, 0.2, 0.4, 0.5), 3, 6, 5),
        (
            (0.1, 0.3, 0.3, 0.3, 0.9, 0.9),
            2,
            4,
            1,
        ),  # a tie is no improvement, and the earlier weights are kept
    ],
)
def test_the_best_weights_are_kept_and_patience_ends_it(dataset, monkeypatch, scores, patience, epochs, best):
    judged = Judged(*scores)
    kept, validated = train(dataset, monkeypatch, judged, patience=patience)
    assert validated == list(range(1, epochs + 1))
    assert all(torch.equal(kept[name], value) for name, value in judged.weights[best].items())
    assert not torch.equal(kept["model.norm.weight"], judged.weights[best - 1]["model.norm.weight"])


def test_without_weights_to_choose_by_nothing_is_trained(dataset, monkeypatch):
    monkeypatch.setattr(pretrain, "_step", lambda *_: pytest.fail("has begun"))
    sizes = PolicySettings(hidden_size=16, layers=1, heads=1, feed_forward_size=16)
    policy = build_policy(sizes, dataset.level_sizes, 40, 0)
    evaluation = EvaluationSettings(beam_width=10, select_by="weighted")
    with pytest.raises(DataError, match="no validation example has a propensity"):
        pretrain.pretrain_policy(policy, dataset, PretrainSettings(epochs=1), evaluation, 0)


def test_the_average_by_hand():
    average, weights = [torch.tensor([0.0])], [torch.tensor([1.0])]
    pretrain._mix_weights(0.9, average, weights, torch.tensor(0))
    assert average[0].item() == pytest.approx(0.9)  # keeps 1/10 of the old one
    average = [torch.tensor([0.0])]
    pretrain._mix_weights(0.9, average, weights, torch.tensor(8))
    assert average[0].item() == pytest.approx(0.5)  # 9/18
    average = [torch.tensor([0.0])]
    pretrain._mix_weights(0.9, average, weights, torch.tensor(10_000))
    assert average[0].item() == pytest.approx(0.1)


def test_what_is_validated_is_the_average(dataset, monkeypatch):
    plain, slow = Judged(0.1, 0.1), Judged(0.1, 0.1)
    train(dataset, monkeypatch, plain, average_decay=0.0, patience=1)
    train(dataset, monkeypatch, slow, average_decay=0.99, patience=1)
    name = "model.embed_tokens.weight"
    assert not torch.equal(plain.weights[1][name], slow.weights[1][name])


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_muon_takes_the_matrices_of_the_layers_alone(kind):
    sizes = PolicySettings(hidden_size=16, layers=1, heads=1, feed_forward_size=16)
    model = build_policy(sizes, (4, 4), 40, 0).model
    settings = PretrainSettings(optimizer=kind, lr=0.01, weight_decay=0.1)
    optimizers = pretrain._Optimizer(model, settings, 100)._optimizers
    names = {id(weight): name for name, weight in model.named_parameters()}
    of_kind = {
        type(optimizer).__name__.lower(): sorted(
            names[id(weight)] for group in optimizer.param_groups for weight in group["params"]
        )
        for optimizer in optimizers
    }
    layers = sorted(name for name in names.values() if "layers" in name and "norm" not in name)
    rest = sorted(set(names.values()) - set(layers))
    assert len(layers) == 7 and "model.embed_tokens.weight" in rest
    expected = {"adamw": sorted(names.values())} if kind == "adamw" else {"adamw": rest, "muon": layers}
    assert of_kind == expected
    decays = {
        names[id(weight)]: group["weight_decay"]
        for optimizer in optimizers
        for group in optimizer.param_groups
        for weight in group["params"]
    }
    assert {name for name, decay in decays.items() if decay == 0} == {
        name for name in names.values() if "norm" in name
    }


def test_an_orthogonal_step_has_the_size_of_adamws():
    sizes = PolicySettings(hidden_size=16, layers=1, heads=1, feed_forward_size=256)
    model = build_policy(sizes, (4, 4), 40, 0).model
    weight = model.model.layers[0].mlp.down_proj.weight
    before = weight.detach().clone()
    settings = PretrainSettings(optimizer="muon", lr=0.01, warmup_share=0.0, weight_decay=0.0)
    optimizer = pretrain._Optimizer(model, settings, 100)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    size = (weight - before).pow(2).mean().sqrt().item()
    assert size == pytest.approx(0.2 * 0.01, rel=0.3)  # the root mean square that AdamW's updates have
    assert weight.grad is None
