"""The shape of the code: rooms and the arrows between them, who may import Ray and vLLM, docstrings, lengths.

A room is a folder of a package. Rooms stand on floors; a module imports from its own room and from floors
below it.
"""

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatch
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("catalog", "learner", "actors", "services", "cluster")
MAY_IMPORT = {
    "catalog": {"catalog"},
    "cluster": {"cluster", "catalog"},  # for errors and the settings' base alone
    "learner": {"learner", "catalog"},
    "actors": {"actors", "learner", "catalog", "cluster"},
    "services": {"services", "actors", "learner", "catalog", "cluster"},
}
# Lowest floor first. Rooms of one floor do not import each other.
FLOORS = {
    "catalog": (("",), ("trie",), ("data", "simulator")),
    "cluster": (("",),),
    "learner": (
        ("",),
        ("batches", "kernels"),
        ("scoring", "decoding"),
        ("policy", "gate", "rewards", "ranker"),
        ("trust",),
        ("objectives/settings",),
        ("objectives/terms",),
        ("objectives",),
        ("evaluation",),
        ("training",),
    ),
    "actors": (("",), ("boards", "engines", "queue", "ranker"), ("engines/vllm",), ("rollout",)),
    "services": (
        ("",),
        ("advise",),
        ("report", "stages"),
        ("preflight", "run"),
        ("bench", "operate", "submit"),
        ("study/judges",),
        ("ab", "study"),
        ("audit",),
        ("bench/support",),
        ("bench/engines", "bench/learner"),
        ("bench/system",),
        ("cli",),
    ),
}
# Who may know more of a simulated world than its settings: who makes it, and who judges by its truth.
KNOW_THE_TRUTH = (
    "catalog/simulator/*.py",
    "services/stages/simulate.py",
    "services/study/*.py",
    "services/study/judges/*.py",
    "services/ab/*.py",
)
CLUSTER_MAY_KNOW = {"sluice.catalog.errors", "sluice.catalog.settings", "sluice.catalog.files"}
RAY = ("learner/training/train_loop.py", "actors/*.py", "cluster/*.py", "services/*.py")
VLLM = ("actors/engines/vllm/*.py", "services/bench/engines/vllm_*.py")
TORCH_FREE = (
    "*settings.py",
    "*/settings/*.py",
    "catalog/errors.py",
    "services/cli/*.py",
    "services/config.py",
)
# A file in such a format runs code when it is read.
RUNS_CODE = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "ray.cloudpickle"}
LONGEST = 400
LONGEST_FUNCTION = 60
WIDEST = 15

MODULES = sorted(path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
OUTSIDE = sorted(
    path.relative_to(ROOT)
    for name in ("tests", "docs", "requirements")
    for path in (ROOT / name).rglob("*.py")
)
CODE = [path for path in MODULES if path.name != "__init__.py"]
NAMES = {".".join(("sluice", *path.with_suffix("").parts)): path for path in CODE}


def imports(source: str) -> Iterator[tuple[str, bool]]:
    """Every absolute import, wherever it stands, as (module, whether it runs when the module is imported)."""
    tree = ast.parse(source)
    lazy = {
        id(node)
        for outer in ast.walk(tree)
        if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef) or is_type_checking(outer)
        for node in ast.walk(outer)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) not in lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the arrows"
            assert node.module is not None
            yield node.module, id(node) not in lazy
            # `from sluice.services.run import train` imports sluice.services.run.train
            yield from ((f"{node.module}.{alias.name}", id(node) not in lazy) for alias in node.names)


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def modules_of(path: Path) -> set[str]:
    return {module for module, _ in imports((ROOT / path).read_text())}


def own_imports(path: Path) -> set[Path]:
    """The modules of this project that a module imports."""
    return {NAMES[module] for module in modules_of(path) if module in NAMES}


def roots(path: Path) -> set[str]:
    """Outside packages by name, our own as `sluice.learner`, ..., tests as `tests`."""
    names = [module.split(".") for module in modules_of(path)]
    return {".".join(parts[:2]) if parts[0] == "sluice" else parts[0] for parts in names}


def room(path: Path) -> str:
    return "/".join(path.parent.parts[1:])


def floor(path: Path) -> int:
    return next(number for number, rooms in enumerate(FLOORS[path.parts[0]]) if room(path) in rooms)


def allowed(path: Path, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(path.as_posix(), pattern) for pattern in patterns)


def goes_up(path: Path, other: Path) -> bool:
    """Whether an import of `other` breaks the arrows between the rooms of a package."""
    return path.parts[0] == other.parts[0] and room(path) != room(other) and floor(other) >= floor(path)


def unsafe_files(source: str) -> set[str]:
    """Ways to write or read files that run code when they are read."""
    unsafe = {module for module, _ in imports(source) if module in RUNS_CODE}
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name, options = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
        safe_load = name == "torch.load" and options.get("weights_only") == "True"
        if name in ("torch.save", "torch.load") and not safe_load:
            unsafe.add(name)
        if options.get("allow_pickle", "False") != "False":
            unsafe.add(name)
    return unsafe


def circle(arrows: Mapping[str, Iterable[str]]) -> list[str]:
    """One circle of the arrows, empty when there is none."""
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def width(folder: Path) -> int:
    """Files of a folder; empty package files do not count."""
    return sum(path.is_file() and path.name != "__init__.py" for path in folder.iterdir())


def test_there_is_something_to_check():
    assert {path.parts[0] for path in CODE} == set(PACKAGES)
    assert {(path.parts[0], room(path)) for path in CODE} == {
        (package, name) for package, floors in FLOORS.items() for rooms in floors for name in rooms
    }
    assert sum(len(own_imports(path)) for path in CODE) > len(CODE)


def test_imports_are_found_wherever_they_stand():
    source = "import a.b\nfrom c import d\nif TYPE_CHECKING:\n    import e\ndef f():\n    from g import h\n"
    assert dict(imports(source)) == {
        "a.b": True,
        "c": True,
        "c.d": True,
        "e": False,
        "g": False,
        "g.h": False,
    }


def test_a_broken_arrow_a_circle_and_a_wide_folder_are_noticed(tmp_path: Path):
    gate, step = Path("learner/gate/gate.py"), Path("learner/training/step.py")
    assert goes_up(gate, step) and not goes_up(step, gate)
    assert goes_up(gate, Path("learner/rewards/rewards.py")), "rooms of one floor"
    assert not goes_up(gate, Path("learner/gate/variants.py"))
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) and not circle({"a": {"b", "c"}, "b": {"c"}})
    for number in range(3):
        (tmp_path / f"{number}.py").touch()
    (tmp_path / "__init__.py").touch()
    assert width(tmp_path) == 3


def test_files_that_run_code_are_noticed():
    assert unsafe_files("import pickle\nfrom ray import cloudpickle") == {"pickle", "ray.cloudpickle"}
    assert unsafe_files("torch.load(path)\ntorch.save(x, path)") == {"torch.load", "torch.save"}
    assert unsafe_files("torch.load(path, weights_only=False)") == {"torch.load"}
    assert unsafe_files("np.load(path, allow_pickle=True)") == {"np.load"}
    assert unsafe_files("torch.load(path, weights_only=True)\nnp.load(path, mmap_mode='r')") == set()


@pytest.mark.parametrize("path", CODE, ids=str)
def test_no_file_runs_code_when_it_is_read(path: Path):
    assert unsafe_files((ROOT / path).read_text()) == set()


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_follow_the_arrows(path: Path):
    ours = {name for name in roots(path) if name.startswith("sluice")} - {"sluice"}
    assert ours <= {f"sluice.{package}" for package in MAY_IMPORT[path.parts[0]]}
    assert not roots(path) & {"tests", *PACKAGES}, "bare names are everybody's: import sluice.learner, ..."


@pytest.mark.parametrize("path", OUTSIDE, ids=str)
def test_tests_and_scripts_import_by_the_one_name(path: Path):
    assert not roots(path) & set(PACKAGES), "bare names are everybody's: import sluice.learner, ..."


def test_the_audit_shares_no_code_with_what_it_audits():
    files = [path for path in OUTSIDE if path.parts[:2] == ("tests", "audit")]
    assert len(files) > 3
    known = {name for path in files for name in modules_of(path) if name.split(".")[0] in ("sluice", "tests")}
    assert known and all(name.startswith("tests.audit") for name in known)


@pytest.mark.parametrize("path", CODE, ids=str)
def test_imports_between_rooms_go_down(path: Path):
    assert [str(other) for other in own_imports(path) if goes_up(path, other)] == []


def test_no_circle_of_modules_or_of_folders():
    assert circle({str(path): {str(other) for other in own_imports(path)} for path in CODE}) == []
    folders: dict[str, set[str]] = {}
    for path in CODE:
        folders.setdefault(str(path.parent), set()).update(str(other.parent) for other in own_imports(path))
    assert circle({name: others - {name} for name, others in folders.items()}) == []


def test_no_folder_is_wide():
    checked = [ROOT / name for name in (*PACKAGES, "tests", "docs", "configs", "requirements")]
    folders = [path for top in checked for path in (top, *top.rglob("*")) if path.is_dir()]
    wide = {str(path): width(path) for path in folders if path.name != "__pycache__" and width(path) > WIDEST}
    assert wide == {}


def test_unit_tests_mirror_the_rooms():
    tests = [
        path.relative_to(ROOT / "tests" / "unit") for path in (ROOT / "tests" / "unit").rglob("test_*.py")
    ]
    rooms = {path.parent for path in CODE} | {Path("docs")}
    assert {path.parent for path in tests if path.parent != Path(".")} <= rooms
    assert {path.name for path in tests if path.parent == Path(".")} == {
        "test_changed.py",
        "test_doctests.py",
        "test_import_name.py",
        "test_layering.py",
    }


@pytest.mark.parametrize("path", [path for path in CODE if path.parts[0] == "cluster"], ids=str)
def test_cluster_knows_no_learning(path: Path):
    known = {module for module in modules_of(path) if module.startswith("sluice.catalog")}
    assert all(
        module in CLUSTER_MAY_KNOW or module.rpartition(".")[0] in CLUSTER_MAY_KNOW for module in known
    )


def opens_a_world(modules: Iterable[str]) -> bool:
    """Whether a module that imports `modules` could read the truth of a simulated world, or make it again."""
    prefix = "sluice.catalog.simulator."
    inside = [module.removeprefix(prefix) for module in modules if module.startswith(prefix)]
    return bool({name.split(".")[0] for name in inside} - {"settings"})


def test_whoever_opens_a_world_is_noticed():
    assert opens_a_world(["sluice.catalog.simulator.truth", "sluice.catalog.simulator.truth.Truth"])
    assert opens_a_world(["sluice.catalog.simulator", "sluice.catalog.simulator.sessions"])
    assert not opens_a_world(["numpy", "sluice.catalog.simulator.settings.WorldSettings"])


@pytest.mark.parametrize("path", CODE, ids=str)
def test_only_makers_and_judges_know_the_truth_of_a_simulated_world(path: Path):
    assert allowed(path, KNOW_THE_TRUTH) or not opens_a_world(modules_of(path))


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_only_named_modules_import_ray_and_vllm(path: Path):
    found = roots(path)
    assert "ray" not in found or allowed(path, RAY)
    assert "vllm" not in found or allowed(path, VLLM)


def test_settings_and_command_line_load_without_torch_ray_and_vllm():
    names = [name for name, path in NAMES.items() if allowed(path, TORCH_FREE)]
    assert {"sluice.catalog.settings", "sluice.learner.settings", "sluice.actors.settings"} <= set(names)
    assert {"sluice.cluster.settings", "sluice.services.cli.main"} <= set(names)
    assert {"sluice.learner.objectives.settings.objective", "sluice.learner.gate.settings"} <= set(names)
    script = f"import sys, {', '.join(names)}\nprint(sorted({{'torch', 'ray', 'vllm'}} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("path", [path for path in MODULES if path.name == "__init__.py"], ids=str)
def test_package_files_are_empty(path: Path):
    assert (ROOT / path).read_text() == ""


@pytest.mark.parametrize("path", CODE, ids=str)
def test_a_module_says_its_subject_and_is_short(path: Path):
    text = (ROOT / path).read_text()
    assert ast.get_docstring(ast.parse(text)), "no docstring"
    assert len(text.splitlines()) <= LONGEST


def long_functions(source: str) -> list[str]:
    """The functions that do not fit on a screen, with their lengths."""
    functions = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    lengths = {function.name: function.end_lineno - function.lineno + 1 for function in functions}
    return [f"{name}: {length} lines" for name, length in lengths.items() if length > LONGEST_FUNCTION]


def test_a_long_function_is_noticed():
    body = "    pass\n" * LONGEST_FUNCTION
    assert long_functions(f"class A:\n  async def f():\n{body}") == ["f: 61 lines"]
    assert long_functions(f"def f():\n{body[:-9]}") == []


@pytest.mark.parametrize("path", CODE, ids=str)
def test_functions_fit_on_a_screen(path: Path):
    assert long_functions((ROOT / path).read_text()) == []


def test_the_import_name_is_a_link_to_each_package():
    links = {path.name: path for path in (ROOT / "sluice").iterdir() if path.is_symlink()}
    assert {name: str(path.readlink()) for name, path in links.items()} == {
        name: f"../{name}" for name in PACKAGES
    }


def test_every_package_is_found_for_the_wheel():
    from setuptools import find_packages

    found = {".".join(("sluice", *path.parent.parts)) for path in MODULES if path.name == "__init__.py"}
    assert set(find_packages(str(ROOT), include=["sluice*"])) == {"sluice", *found}
