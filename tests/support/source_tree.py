"""Python packages read by AST and never imported: is a dotted name defined, and which parameters does it take?"""

import ast
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

Function = ast.FunctionDef | ast.AsyncFunctionDef


class Wanted(Protocol):
    """What is looked for; `vllm_pard.serving.hooks.Hook` is one."""

    @property
    def module(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def parameters(self) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class Definition:
    """The statement that binds a name, and the module it stands in."""

    module: str
    node: ast.stmt


@dataclass(frozen=True)
class SourceTree:
    """A folder or zip file of packages; names resolve as `getattr` would: through re-exports and base classes."""

    root: Path | zipfile.Path

    def problem(self, wanted: Wanted) -> str | None:
        """One sentence if `wanted` can't be used as it says, else None."""
        if self._parse(wanted.module) is None:
            return f"{wanted.module}: no such module"
        found = self.find(wanted.module, wanted.name)
        if found is None:
            return f"{wanted.module}.{wanted.name}: not defined"
        if not wanted.parameters:
            return None
        if not isinstance(found.node, Function):
            return f"{wanted.module}.{wanted.name}: not a function"
        missing = [name for name in wanted.parameters if name not in parameter_names(found.node)]
        return f"{wanted.module}.{wanted.name}: takes no {', '.join(missing)}" if missing else None

    def find(self, module: str, name: str) -> Definition | None:
        """Where the dotted `name` of `module` is defined."""
        first, *members = name.split(".")
        found = self._in_module(module, first)
        for member in members:
            found = found and self._in_class(found, member)
        return found

    def _in_module(self, module: str, name: str) -> Definition | None:
        tree = self._parse(module)
        for node in reversed(list(_statements(tree.body))) if tree else ():
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    if (alias.asname or alias.name) == name:
                        return self._in_module(self._absolute(module, node), alias.name)
            elif name in _bound_names(node):
                return Definition(module, node)
        return None

    def _in_class(self, owner: Definition, name: str) -> Definition | None:
        if not isinstance(owner.node, ast.ClassDef):
            return None
        for node in reversed(list(_statements(owner.node.body))):
            if name in _bound_names(node):
                return Definition(owner.module, node)
        for base in owner.node.bases:
            base = base.value if isinstance(base, ast.Subscript) else base
            parent = self._in_module(owner.module, base.id) if isinstance(base, ast.Name) else None
            if parent and (found := self._in_class(parent, name)):
                return found
        return None

    def _absolute(self, module: str, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        package = module.split(".") if _path(self.root, module).name == "__init__.py" else module.split(".")[:-1]
        return ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])

    def _parse(self, module: str) -> ast.Module | None:
        path = _path(self.root, module)
        return _parse(path) if path.is_file() else None


def parameter_names(function: Function) -> set[str]:
    """Every parameter's name, `*args` and `**kwargs` included."""
    arguments = function.args
    starred = [argument for argument in (arguments.vararg, arguments.kwarg) if argument]
    return {a.arg for a in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, *starred]}


def _path(root: Path | zipfile.Path, module: str) -> Path | zipfile.Path:
    *packages, last = module.split(".")
    folder = root
    for package in packages:
        folder = folder / package
    package_file = folder / last / "__init__.py"
    return package_file if package_file.is_file() else folder / f"{last}.py"


@cache
def _parse(path: Path | zipfile.Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of one scope in the order that binds: what a `try` wants comes after what it falls back to."""
    for node in body:
        yield node
        if isinstance(node, ast.Try):
            yield from _statements([line for handler in node.handlers for line in handler.body])
        if isinstance(node, ast.If | ast.Try):
            yield from _statements(node.orelse)
        if isinstance(node, ast.If | ast.Try | ast.With):
            yield from _statements(node.body)


def _bound_names(node: ast.stmt) -> set[str]:
    if isinstance(node, Function | ast.ClassDef):
        return {node.name}
    targets: list[ast.expr] = []
    if isinstance(node, ast.Assign):
        targets = node.targets
    elif isinstance(node, ast.AnnAssign) and node.value:  # a bare annotation binds nothing
        targets = [node.target]
    return {target.id for target in targets if isinstance(target, ast.Name)}
