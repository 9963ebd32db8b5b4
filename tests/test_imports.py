"""Which part imports which, what stays unimported until it is needed, and the sizes that CONTRIBUTING.md sets.

A layer is a subpackage of vllm_pard, "top" for the modules beside them, "pard_kernels", or a third-party package.
"""

import ast
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "triton", "vllm", "transformers"}
SUBPACKAGES = {"bench", "cli", "demo", "reference", "serving", "training"}
LOWER = {"pard_kernels", "top"}

# cli -> bench -> {serving, reference, training} -> pard_kernels; training and the catalog -> demo.
# Of third parties only the heavy ones are ruled.
MAY_IMPORT = {
    "bench": {"demo", "reference", "torch", "transformers", "vllm"} | LOWER,
    "cli": {"bench", "demo", "reference", "serving", "training", "torch", "transformers", "vllm"} | LOWER,
    "serving": {"torch", "vllm"} | LOWER,
    "reference": {"torch", "transformers"} | LOWER,
    "training": {"demo", "torch", "transformers"} | LOWER,
    "pard_kernels": {"torch", "triton"},
    "top": {"demo", "torch", "transformers"},
    "demo": {"top"},
}
# The command's own processes, to which every other part of the command line talks; and vLLM's benchmark client.
MAY_START_VLLM = {"vllm_pard.cli.engine.process", "vllm_pard.bench.load"}
COMMANDS = ("", "bench", "demo", "generate", "serve", "train", "evaluate", "vocabulary", "doctor", "patches")
MAX_FILE_LINES, MAX_FUNCTION_LINES = 299, 49


class Import(NamedTuple):
    """One imported module; `late` if only a function or a type checker imports it."""

    importer: str
    imported: str
    late: bool


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


OURS = sources("vllm_pard", "kernels")
EVERYTHING = sources("vllm_pard", "kernels", "tests", "benchmarks", "scripts")


def module_name(path: Path) -> str:
    base = ROOT / "kernels" if path.is_relative_to(ROOT / "kernels") else ROOT
    return ".".join(path.relative_to(base).with_suffix("").parts).removesuffix(".__init__")


def layer(module: str) -> str:
    package, *rest = module.split(".")
    if package != "vllm_pard":
        return package
    return rest[0] if rest and rest[0] in SUBPACKAGES else "top"


def imported_by(module: str, node: ast.AST, late: bool = False) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        yield from (Import(module, alias.name, late) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"{module} line {node.lineno}: a relative import hides its layer"
        # `from vllm_pard import serving` names a layer only in the alias.
        yield from (Import(module, f"{node.module}.{alias.name}", late) for alias in node.names)
    late = late or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    late = late or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
    for child in ast.iter_child_nodes(node):
        yield from imported_by(module, child, late)


IMPORTS = [found for path in OURS for found in imported_by(module_name(path), ast.parse(path.read_text()))]


def imported_at_run_time(*arguments: str) -> set[str]:
    """The top-level packages that `python *arguments` imports."""
    command = [sys.executable, "-X", "importtime", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return {name.partition(".")[0] for name in re.findall(r"^import time:.*\|\s*(\S+)$", done.stderr, re.MULTILINE)}


def test_imports_point_one_way() -> None:
    ruled = HEAVY | set(MAY_IMPORT)
    wrong = [
        f"{found.importer} imports {found.imported}"
        for found in IMPORTS
        if layer(found.imported) in ruled - MAY_IMPORT[layer(found.importer)] - {layer(found.importer)}
    ]
    assert wrong == []


def test_no_module_imports_itself_in_a_circle() -> None:
    """Late imports count: a circle is one thing in two files, whenever it is closed."""
    graph: dict[str, set[str]] = {module_name(path): set() for path in OURS}
    for found in IMPORTS:
        # What is imported is a module, or a name in one.
        graph[found.importer] |= {found.imported, found.imported.rpartition(".")[0]}
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"d"}}) == ["b", "c", "d"]
    assert circles(graph) == []


def circles(graph: dict[str, set[str]]) -> list[str]:
    """The nodes from which a walk along the edges comes back."""
    reached = {node: successors & graph.keys() for node, successors in graph.items()}
    for middle in graph:
        for node in graph:
            if middle in reached[node]:
                reached[node] |= reached[middle]
    return sorted(node for node in graph if node in reached[node])


def test_every_layer_is_ruled() -> None:
    assert {layer(module_name(path)) for path in OURS} == set(MAY_IMPORT)


def test_top_level_modules_import_nothing_heavy_at_once() -> None:
    assert [i for i in IMPORTS if layer(i.importer) == "top" and layer(i.imported) in HEAVY and not i.late] == []


def test_the_command_line_leaves_vllm_to_the_engine_process() -> None:
    wanted = [i for i in IMPORTS if layer(i.importer) in ("bench", "cli") and layer(i.imported) == "vllm"]
    assert {found.importer for found in wanted} <= MAY_START_VLLM
    assert all(found.late for found in wanted)


def test_the_package_imports_nothing_else() -> None:
    assert imported_at_run_time("-c", "import vllm_pard") & (HEAVY | {"pard_kernels", "typer", "rich"}) == set()


def test_light_modules_stay_light() -> None:
    """What vLLM loads in every process of every user, and the modules that every command shares."""
    top = [module_name(path) for path in OURS if layer(module_name(path)) in ("top", "demo")]
    modules = [*top, "vllm_pard.serving", "vllm_pard.serving.plugin", "vllm_pard.serving.patches"]
    assert imported_at_run_time("-c", f"import {', '.join(modules)}") & HEAVY == set()


@pytest.mark.parametrize("command", COMMANDS, ids=lambda name: name or "vllm-pard")
def test_help_is_light(command: str) -> None:
    imported = imported_at_run_time("-m", "vllm_pard.cli", *command.split(), "--help")
    assert "typer" in imported
    assert imported & HEAVY == set()


def test_kernels_is_a_source_root() -> None:
    """A package named `kernels` would hide Hugging Face's."""
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert not (ROOT / "tests" / "kernels").exists()
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_files_are_short() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in OURS}
    assert {path: length for path, length in lengths.items() if length > MAX_FILE_LINES} == {}


def test_functions_are_short() -> None:
    """From the first statement on: a kernel's launcher takes two dozen named tensors, a line each."""
    too_long = {}
    for path in OURS:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or is_device_function(node):
                continue
            body = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
            length = (body[-1].end_lineno or 0) - body[0].lineno + 1
            if length > MAX_FUNCTION_LINES:
                too_long[f"{path.relative_to(ROOT)}: {node.name}"] = length
    assert too_long == {}


def is_device_function(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """One launch is one function: what it loads stays in registers."""
    return any("triton.jit" in ast.unparse(decorator) for decorator in node.decorator_list)


def test_ignored_types_name_their_error() -> None:
    bare = []
    for path in EVERYTHING:
        with tokenize.open(path) as file:
            comments = [token for token in tokenize.generate_tokens(file.readline) if token.type == tokenize.COMMENT]
        found = [token.start[0] for token in comments if re.search(r"type:\s*ignore(?!\[)", token.string)]
        bare += [f"{path.relative_to(ROOT)}:{line}" for line in found]
    assert bare == []
