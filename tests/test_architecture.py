"""The arrows between the rooms, checked on the code as it is."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("api", "jobs", "kleash", "rlhf_core", "worker")
SOURCES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
HEAVY = ("torch", "transformers", "peft")
PICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
BUILTIN_EVALUATORS = {"eval", "exec", "__import__"}
LOADERS = {("torch", "load"), ("torch", "save"), ("yaml", "load"), ("numpy", "load"), ("np", "load")}


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_import_contracts_hold() -> None:
    lint = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "module",
    [
        "api.app",
        "api.__main__",
        "worker.app",
        "worker.supervisor",
        "jobs.migrate",
        "kleash.cli",
        "kleash.up",
        "kleash.demo",
    ],
)
def test_torch_free_modules_leave_torch_out_of_the_process(module: str) -> None:
    code = f"import sys, {module}; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_packages_are_free_of_code() -> None:
    packages = [path for path in SOURCES if path.name == "__init__.py" and path.parent.name != "kleash"]
    assert len(packages) >= len(ROOMS) - 1
    for path in packages:
        body = ast.parse(path.read_text()).body
        only_a_docstring = all(
            isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in body
        )
        assert only_a_docstring, named(path)


def forbidden_uses(source: str) -> list[str]:
    """Where a source could run data as code: pickles, loaders that unpickle, eval and its kin."""
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in PICKLERS]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            found += [module] * (module.split(".")[0] in PICKLERS)
            found += [f"{module}.{alias.name}" for alias in node.names if (module, alias.name) in LOADERS]
        elif isinstance(node, ast.Call):
            called = node.func
            if isinstance(called, ast.Name) and called.id in BUILTIN_EVALUATORS:
                found.append(called.id)
            elif isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name):
                found += [f"{called.value.id}.{called.attr}"] * ((called.value.id, called.attr) in LOADERS)
            found += [
                f"{word.arg}=True"
                for word in node.keywords
                if word.arg in ("shell", "allow_pickle", "trust_remote_code")
                and not (isinstance(word.value, ast.Constant) and word.value.value is False)
            ]
    return found


@pytest.mark.parametrize("path", SOURCES, ids=named)
def test_nothing_runs_data_as_code(path: Path) -> None:
    assert forbidden_uses(path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from cloudpickle import loads",
        "import torch\ntorch.load('x')",
        "from torch import load",
        "eval('1')",
        "np.load(f, allow_pickle=True)",
        "subprocess.run('ls', shell=True)",
        "AutoModel.from_pretrained(x, trust_remote_code=flag)",
    ],
)
def test_the_walk_finds_what_it_looks_for(source: str) -> None:
    assert forbidden_uses(source) != []
