"""Which unit tests belong to a change."""

from tests.changed import ALWAYS, choose_tests

EXISTING = [
    "tests/unit/learner/gate/test_gate.py",
    "tests/unit/learner/gate/test_variants.py",
    "tests/unit/learner/test_ranking_metrics.py",
    "tests/unit/catalog/data/test_splits.py",
    "tests/unit/docs/test_pages.py",
    "tests/unit/docs/test_extending.py",
]


def chosen(*changed: str) -> list[str]:
    return choose_tests(changed, EXISTING)[len(ALWAYS) :]


def test_the_choose_tests_a_file_stand_in_the_folder_that_mirrors_its_own():
    assert chosen("learner/gate/gate.py") == EXISTING[:2]
    assert chosen("learner/ranking_metrics.py") == [EXISTING[2]]
    assert chosen("catalog/data/splits.py", "learner/gate/variants.py") == [EXISTING[3], *EXISTING[:2]]


def test_a_test_that_changed_is_run_alone_and_what_it_stands_on_with_its_neighbours():
    assert chosen("tests/unit/learner/gate/test_gate.py") == [EXISTING[0]]
    assert chosen("tests/unit/learner/gate/conftest.py") == EXISTING[:2]


def test_shape_doctests_and_documentation_come_once_and_always():
    assert choose_tests([], EXISTING) == list(ALWAYS)
    assert choose_tests(["README.md", "tests/unit/docs/test_pages.py", "Makefile"], EXISTING) == list(ALWAYS)
    assert chosen("docs/extending.md") == ["tests/unit/docs/test_extending.py"]
