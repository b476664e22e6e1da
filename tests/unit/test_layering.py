"""The shape of the code: import arrows, who may import Ray and vLLM, docstrings, lengths."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
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
CLUSTER_MAY_KNOW = {"catalog.errors", "catalog.settings"}
RAY = ("learner/train_loop.py", "actors/*.py", "cluster/*.py", "services/*.py")
VLLM = ("actors/vllm_*.py", "services/benches/vllm_*.py")
TORCH_FREE = ("*settings.py", "catalog/errors.py", "services/cli.py", "services/config.py")
LONGEST = 400

MODULES = sorted(path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
CODE = [path for path in MODULES if path.name != "__init__.py"]


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
            # `from services import train` imports services.train
            yield from ((f"{node.module}.{alias.name}", id(node) not in lazy) for alias in node.names)


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def roots(path: Path) -> set[str]:
    return {module.partition(".")[0] for module, _ in imports((ROOT / path).read_text())}


def allowed(path: Path, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(path.as_posix(), pattern) for pattern in patterns)


def test_there_is_something_to_check():
    assert {path.parts[0] for path in CODE} == set(PACKAGES)


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


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_follow_the_arrows(path: Path):
    ours = roots(path) & {*PACKAGES, "tests"}
    assert ours <= MAY_IMPORT[path.parts[0]]


@pytest.mark.parametrize("path", [path for path in CODE if path.parts[0] == "cluster"], ids=str)
def test_cluster_knows_no_learning(path: Path):
    known = {module for module, _ in imports((ROOT / path).read_text()) if module.startswith("catalog")}
    assert all(module in CLUSTER_MAY_KNOW or module.rpartition(".")[0] in CLUSTER_MAY_KNOW for module in known)


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_only_named_modules_import_ray_and_vllm(path: Path):
    found = roots(path)
    assert "ray" not in found or allowed(path, RAY)
    assert "vllm" not in found or allowed(path, VLLM)


def test_settings_and_command_line_load_without_torch_ray_and_vllm():
    names = [".".join(path.with_suffix("").parts) for path in CODE if allowed(path, TORCH_FREE)]
    assert {"catalog.settings", "learner.settings", "learner.objective_settings", "actors.settings"} <= set(names)
    assert {"cluster.settings", "services.cli"} <= set(names)
    script = f"import sys, {', '.join(names)}\nprint(sorted({{'torch', 'ray', 'vllm'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("path", [path for path in MODULES if path.name == "__init__.py"], ids=str)
def test_package_files_are_empty(path: Path):
    assert (ROOT / path).read_text() == ""


@pytest.mark.parametrize("path", CODE, ids=str)
def test_a_module_says_its_subject_and_is_short(path: Path):
    text = (ROOT / path).read_text()
    assert ast.get_docstring(ast.parse(text)), "no docstring"
    assert len(text.splitlines()) <= LONGEST


def test_the_wheel_lists_every_package():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    found = {".".join(path.parent.parts) for path in MODULES if path.name == "__init__.py"}
    assert set(project["tool"]["setuptools"]["packages"]) == found
