"""The examples in docstrings: each is run, and says what comes out.

An example has the names of its module, and `directory`, where a small data set is prepared: 24 users with 9
interactions each, 20 items (`tests/tiny_data.py`).
"""

import doctest
import importlib
import inspect
from pathlib import Path

import pytest

from tests.tiny_data import tiny_dataset
from tests.unit.test_layering import NAMES, ROOT

WITH_EXAMPLES = sorted(name for name, path in NAMES.items() if ">>> " in (ROOT / path).read_text())
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_dataset(tmp_path_factory.mktemp("examples")).directory


class Finder(doctest.DocTestFinder):
    """Finds the examples of functions under a decorator of another module too, such as `torch.no_grad`."""

    def _from_module(self, module, object):
        return super()._from_module(module, inspect.unwrap(object))


def examples_of(name: str, names: dict) -> list[doctest.DocTest]:
    module = importlib.import_module(name)
    examples = Finder().find(module, extraglobs=names)
    return [example for example in examples if example.examples]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_the_examples_of_a_module_are_true(name: str, directory: Path):
    examples = examples_of(name, {"directory": directory})
    assert examples, "the examples of this module are in no docstring that doctest finds"
    said: list[str] = []
    for example in examples:
        doctest.DocTestRunner(optionflags=FLAGS).run(example, out=said.append)
    assert not said, "".join(said)


def test_a_wrong_example_is_noticed():
    example = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
    assert doctest.DocTestRunner(optionflags=FLAGS).run(example, out=lambda _: None).failed == 1


def test_what_users_call_has_an_example():
    with_examples = {example.name for name in WITH_EXAMPLES for example in examples_of(name, {})}
    assert {
        "sluice.actors.settings.DecodeSettings",
        "sluice.catalog.data.dataset.Dataset.open",
        "sluice.catalog.decoding.Decoding",
        "sluice.catalog.trie.trie.Trie.build",
        "sluice.catalog.trie.trie.Trie.lookup",
        "sluice.catalog.trie.trie.Trie.mask",
        "sluice.catalog.trie.vocabulary.Vocabulary.changed",
        "sluice.catalog.trie.vocabulary.Vocabulary.of",
        "sluice.learner.gate.gate.compute_gate",
        "sluice.learner.gate.settings.GateSettings",
        "sluice.learner.objectives.terms.advantages.group_advantages",
        "sluice.learner.ranker.contract.Ranker",
        "sluice.learner.ranker.contract.ask_ranker",
        "sluice.learner.rewards.rewards.compose_rewards",
        "sluice.learner.rewards.settings.check_rewards",
    } <= with_examples
