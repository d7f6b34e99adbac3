"""Modules, imports and texts of the package, read off its syntax trees."""

from __future__ import annotations

import ast
import functools
import io
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Module:
    """One Python file.

    Attributes:
        path: the file.
        place: its path relative to the repository.
        name: its dotted name below the package, such as `data.coco`; the package itself is ''.
        text: its source.
    """

    path: Path
    place: str
    name: str
    text: str

    @functools.cached_property
    def tree(self) -> ast.Module:
        """Syntax tree of the source."""
        return ast.parse(self.text)

    @functools.cached_property
    def nodes(self) -> tuple[ast.AST, ...]:
        """All nodes of the syntax tree."""
        return tuple(ast.walk(self.tree))

    @functools.cached_property
    def comments(self) -> tuple[tuple[int, str], ...]:
        """All comments, each with its line."""
        tokens = tokenize.generate_tokens(io.StringIO(self.text).readline)
        return tuple((token.start[0], token.string) for token in tokens if token.type == tokenize.COMMENT)

    @property
    def room(self) -> str:
        """Folder or loose module at the top of the package that the file belongs to."""
        return self.name.partition(".")[0]

    def at(self, node: ast.AST) -> str:
        """Return the place of a node as `file:line`."""
        return f"{self.place}:{getattr(node, 'lineno', 0)}"


@dataclass(frozen=True)
class Import:
    """One import of a module of the package by another, by dotted names below the package, and where it is."""

    importer: str
    imported: str
    place: str


@functools.cache
def modules(root: Path, folder: str = "detector") -> tuple[Module, ...]:
    """Return every Python file of a folder of the repository, in the order of their paths."""
    read = []
    for path in sorted((root / folder).rglob("*.py")):
        parts = path.relative_to(root / folder).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        read.append(Module(path, path.relative_to(root).as_posix(), name, path.read_text("utf-8")))
    return tuple(read)


def without_type_checking(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield every node that runs, so none of those under `if TYPE_CHECKING:`."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for branch in child.orelse:
                yield branch
                yield from without_type_checking(branch)
        else:
            yield child
            yield from without_type_checking(child)


def imported_names(node: ast.AST, package: str) -> list[str]:
    """Return the absolute names of the modules or attributes that a statement in `package` imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
        base = ".".join([*parents, *([node.module] if node.module else [])])
        return [f"{base}.{alias.name}" for alias in node.names]
    return []


def imports_of(package: Sequence[Module]) -> list[Import]:
    """Return every import of one module of the package by another."""
    names, imports = {module.name for module in package}, []
    for module in package:
        own = f"detector.{module.name}".rstrip(".")
        parent = own if module.path.name == "__init__.py" else own.rpartition(".")[0]
        for node in without_type_checking(module.tree):
            for name in imported_names(node, parent):
                if name.partition(".")[0] != "detector":
                    continue
                below = name.removeprefix("detector").removeprefix(".")
                # `from detector.x import y`: y is a module or something in x.
                imported = below if below in names else below.rpartition(".")[0]
                imports.append(Import(module.name, imported, module.at(node)))
    return imports


def circle(imports: Sequence[Import]) -> list[Import]:
    """Return a chain of imports that ends where it began; empty when there is none."""
    edges: dict[str, list[Import]] = {}
    for each in imports:
        edges.setdefault(each.importer, []).append(each)
    done: set[str] = set()

    def visit(module: str, trail: list[Import]) -> list[Import]:
        on_trail = [each.importer for each in trail]
        if module in on_trail:
            return trail[on_trail.index(module) :]
        if module not in done:
            for edge in edges.get(module, []):
                chain = visit(edge.imported, [*trail, edge])
                if chain:
                    return chain
            done.add(module)
        return []

    for module in edges:
        chain = visit(module, [])
        if chain:
            return chain
    return []


@functools.cache
def docstrings(module: Module) -> list[ast.Constant]:
    """Return the docstrings of a module, its classes and its functions, in the order of their lines."""
    nodes = []
    for node in module.nodes:
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                nodes.append(first.value)
    return sorted((node for node in nodes if isinstance(node.value, str)), key=lambda node: node.lineno)


@functools.cache
def strings(module: Module) -> list[tuple[ast.AST, str]]:
    """Return each string that is no docstring, with its node; of an f-string its constant parts, joined by `{}`."""
    skipped: set[ast.AST] = set(docstrings(module))
    texts: list[tuple[ast.AST, str]] = []
    for node in module.nodes:
        if isinstance(node, ast.JoinedStr):
            skipped.update(node.values)
            parts = [str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values]
            texts.append((node, "".join(parts)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in skipped:
            texts.append((node, node.value))
    return texts
