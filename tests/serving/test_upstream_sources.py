"""Every upstream name that we rely on, in the sources of the installed vLLM and of the other supported ones."""

import ast
import importlib.util
import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from notices import notice
from source_tree import SourceTree
from vllm_releases import NEWEST, Unavailable, cached_sources

from vllm_pard.cli.serve import SERVE, SERVE_ON_CPU
from vllm_pard.serving import compat
from vllm_pard.serving.hooks import HOOKS, Hook
from vllm_pard.serving.patches import PATCHES

ROOT = Path(__file__).parents[2]
SERVING = ROOT / "vllm_pard" / "serving"
OTHER_RELEASES = (NEWEST,)  # supported, and not what the `cpu` extra installs

# Read through the module's __getattr__ or from its metadata, which no AST shows.
NOT_HOOKS = {("vllm", "__version__"), ("vllm.platforms", "current_platform")}


@pytest.fixture(scope="module")
def installed() -> SourceTree:
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        pytest.skip("vLLM is not installed")
    return SourceTree(Path(spec.origin).parents[1])


@pytest.fixture(scope="module", params=OTHER_RELEASES)
def other_release(request: pytest.FixtureRequest) -> SourceTree:
    try:
        sources = cached_sources(request.param)
    except (Unavailable, OSError) as error:
        reason = f"hooks not checked against vLLM {request.param}: {error}"
        notice(request.config, reason)
        pytest.skip(reason)
    return SourceTree(zipfile.Path(sources))


def problems(tree: SourceTree, hooks: tuple[Hook, ...]) -> list[str]:
    return [problem for hook in hooks if (problem := tree.problem(hook))]


def vllm_imports(tree: ast.Module, modules: set[str]) -> set[tuple[str, str]]:
    """Every (module, name) taken from vLLM, at module level or inside a function; of `modules`, the attributes read."""
    found, imported_modules = set(), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            found |= {(name, "__version__") for name in names if name.partition(".")[0] == "vllm"}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "vllm":
            for alias in node.names:
                if (dotted := f"{node.module}.{alias.name}") in modules:
                    imported_modules[alias.asname or alias.name] = dotted
                else:
                    found.add((node.module, alias.name))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in imported_modules:
            found.add((imported_modules[node.value.id], node.attr))
    return found


def test_installed_release_has_every_hook(installed: SourceTree) -> None:
    assert problems(installed, HOOKS) == []


@pytest.mark.network
def test_other_release_has_every_hook(other_release: SourceTree) -> None:
    assert problems(other_release, HOOKS) == []


def startable(tree: SourceTree, module: str) -> bool:
    return '__name__ == "__main__"' in (tree.root / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("module", [SERVE[0], SERVE_ON_CPU[0]])
def test_what_serve_starts_can_be_started(module: str, installed: SourceTree) -> None:
    assert startable(installed, module)


@pytest.mark.network
@pytest.mark.parametrize("module", [SERVE[0], SERVE_ON_CPU[0]])
def test_other_release_can_be_started(module: str, other_release: SourceTree) -> None:
    assert startable(other_release, module)


def test_other_releases_are_supported() -> None:
    assert [release for release in OTHER_RELEASES if compat.unsupported_reason(release)] == []


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"module": "vllm.no_such_module"}, "vllm.no_such_module: no such module"),
        ({"name": "no_such_name"}, "no_such_name: not defined"),
        ({"parameters": ("no_such_parameter",)}, "takes no no_such_parameter"),
    ],
    ids=["module", "name", "parameter"],
)
def test_a_changed_hook_is_reported(installed: SourceTree, change: dict[str, Any], wanted: str) -> None:
    hooks = tuple(replace(hook, **change) for hook in HOOKS if hook.parameters)
    found = problems(installed, hooks)
    assert len(found) == len(hooks)
    assert all(wanted in problem for problem in found), found


def test_a_missing_member_is_reported(installed: SourceTree) -> None:
    members = tuple(replace(hook, name=f"{hook.name}_gone") for hook in HOOKS if "." in hook.name)
    assert problems(installed, members) == [f"{hook.module}.{hook.name}: not defined" for hook in members]


def test_names_resolve_as_getattr_would(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("from .child import Child as Public\n")
    (package / "base.py").write_text("class Base:\n    annotated: int\n    def run(self, x, *, y): ...\n")
    (package / "child.py").write_text(
        "try:\n    from package.base import Base\nexcept ImportError:\n    Base = object\n"
        "class Child(Base):\n    kept = 1\n    @property\n    def size(self): ...\n"
    )
    tree = SourceTree(tmp_path)
    inherited = Hook(module="package", name="Public.run", parameters=("self", "x", "y"))
    good = tuple(Hook(module="package", name=name) for name in ("Public", "Public.size", "Public.kept"))
    assert problems(tree, (*good, inherited)) == []
    bad = tuple(Hook(module="package", name=name) for name in ("Public.annotated", "Public.kept.real", "Child"))
    assert problems(tree, bad) == [f"package.{hook.name}: not defined" for hook in bad]
    assert problems(tree, (replace(inherited, parameters=("x", "z")),)) == ["package.Public.run: takes no z"]


def test_every_vllm_import_is_a_hook() -> None:
    hooked = {(hook.module, hook.name.partition(".")[0]) for hook in HOOKS}
    trees = [ast.parse(path.read_text()) for path in SERVING.rglob("*.py")]
    imports = set().union(*(vllm_imports(tree, {hook.module for hook in HOOKS}) for tree in trees))
    assert sorted(imports - hooked - NOT_HOOKS) == []


def test_attributes_of_an_imported_module_are_imports() -> None:
    tree = ast.parse("from vllm.a import b, c\ndef f():\n    import vllm\n    return b.d, c.e")
    assert vllm_imports(tree, {"vllm.a.b"}) == {("vllm.a.b", "d"), ("vllm.a", "c"), ("vllm", "__version__")}


def test_every_patch_is_a_hook() -> None:
    assert {patch.target for patch in PATCHES} <= {f"{hook.module}:{hook.name}" for hook in HOOKS}


AS_ON_A_GPU = """
import torch

before = torch.Event, torch.cuda.Event, torch.cuda.Stream, torch.Tensor.pin_memory
from vllm_pard.serving import compat, hooks

compat.check_hooks((*hooks.CONFIG_HOOKS, *hooks.WORKER_HOOKS, *hooks.RUNNER_V2_HOOKS, *hooks.TREE_HOOKS))
compat.check_hooks(hooks.SCHEDULER_HOOKS)
assert before == (torch.Event, torch.cuda.Event, torch.cuda.Stream, torch.Tensor.pin_memory)
"""


def test_checks_on_gpus_leave_torch_alone(newest_vllm: dict[str, str]) -> None:
    """vLLM's modules for CPUs put stand-ins in the place of torch's events and streams as soon as they are imported."""
    checked = subprocess.run(
        [sys.executable, "-c", AS_ON_A_GPU], env=os.environ | newest_vllm, capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr[-3000:]
