"""The program `run.py`, which runs an exported file without this package: written from the package's own definitions.

The program is `runner_program.py` with every definition that it uses, directly or through others, from this package.
Nothing is written twice: the letterbox of the program is the text of `Letterbox`.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from detector import __version__
from detector.errors import ConfigError
from detector.structures.canvas import InputConfig

RUNNER_NAME = "run.py"
_PACKAGE = Path(__file__).parents[1]
_START = "detector.export.runner_program"
_HEAD = '''"""Detect objects with a file that `detector export` wrote; needs NumPy, OpenCV and onnxruntime or openvino.

    python run.py model.onnx street.jpg
    python run.py model.onnx photos/ --out results/

Written by Detector {version} from its own source (Apache License 2.0), of which it contains the parts that it needs.
"""

from __future__ import annotations

'''
_TAIL = """

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
"""


def require_runnable(input_config: InputConfig, *, is_plain: bool) -> None:
    """Reject a model that the program cannot run.

    Args:
        input_config: the input of its network.
        is_plain: whether each image has one view.

    Raises:
        ConfigError: images of other channels than grey and RGB, or several views of each image.
    """
    if input_config.channels not in (1, 3):
        raise ConfigError(f"--runner: expected images of 1 or 3 channels, got {input_config.channels}; leave it out")
    if not is_plain:
        raise ConfigError("--runner: expected one view of each image, got several; leave it or the keys of views out")


@dataclass
class _File:
    """Top-level statements of a module by the names that they define, and what its imports stand for."""

    lines: list[str]
    definitions: dict[str, ast.stmt] = field(default_factory=dict)
    inside: dict[str, tuple[str, str]] = field(default_factory=dict)  # name -> module of this package, name there
    outside: dict[str, tuple[str, str]] = field(default_factory=dict)  # name -> module or "", import in words

    def text_of(self, node: ast.stmt) -> str:
        """Return the text of a statement with its decorators and the comments before it."""
        first = min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", ()))])
        while self.lines[first - 2].startswith("#"):
            first -= 1
        return "\n".join(self.lines[first - 1 : node.end_lineno])


@cache
def _read(module: str) -> _File:
    text = (_PACKAGE.parent / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
    file = _File(text.splitlines())
    for node in ast.parse(text).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            file.definitions[node.name] = node
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in (name for each in targets for name in ast.walk(each)):
                if isinstance(target, ast.Name) and isinstance(target.ctx, ast.Store):
                    file.definitions[target.id] = node
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            origin = (node.module or "") if isinstance(node, ast.ImportFrom) else ""
            for alias in node.names:
                known = alias.asname or alias.name
                if origin.partition(".")[0] == "detector":
                    file.inside[known] = origin, alias.name
                else:
                    file.outside[known] = origin, ast.unparse(alias)
    return file


class _Collection:
    """Definitions that a name needs, by module, and the imports of other libraries that they need."""

    def __init__(self) -> None:
        self.nodes: dict[str, dict[int, ast.stmt]] = {}
        self.imports: set[tuple[str, str]] = set()
        self._owners: dict[str, str] = {}

    def add(self, module: str, name: str) -> None:
        """Add a definition of a module and all that it uses.

        Raises:
            LookupError: two modules define the same name, or nothing does.
        """
        file = _read(module)
        if name in file.inside:
            self.add(*file.inside[name])
            return
        if name in file.outside:
            self.imports.add(file.outside[name])
            return
        if name not in file.definitions:
            raise LookupError(f"{module}: expected a definition of {name}, got none")
        if self._owners.setdefault(name, module) != module:
            raise LookupError(f"{name}: defined in {module} and in {self._owners[name]}; rename one of them")
        node, added = file.definitions[name], self.nodes.setdefault(module, {})
        if node.lineno not in added:
            added[node.lineno] = node
            known = {*file.inside, *file.outside, *file.definitions}
            for used in sorted({each.id for each in ast.walk(node) if isinstance(each, ast.Name)} & known):
                self.add(module, used)

    def ordered(self) -> list[str]:
        """Return the modules, each after those that it imports."""
        order: list[str] = []

        def visit(module: str) -> None:
            if module not in order:
                for imported in sorted({origin for origin, _ in _read(module).inside.values()} & set(self.nodes)):
                    visit(imported)
                order.append(module)

        visit(_START)
        return [*(module for module in self.nodes if module not in order), *order]


@cache
def runner_text() -> str:
    """Return the program."""
    collection = _Collection()
    collection.add(_START, "main")
    collection.imports.add(("", "sys"))
    plain = sorted(f"import {what}" for origin, what in collection.imports if not origin)
    origins = sorted({origin for origin, _ in collection.imports if origin})
    named = [
        f"from {origin} import {', '.join(sorted(what for place, what in collection.imports if place == origin))}"
        for origin in origins
    ]
    parts = [_HEAD.replace("{version}", __version__) + "\n".join([*plain, *named])]
    for module in collection.ordered():
        parts.append(f"\n\n# --- from {module.replace('.', '/')}.py ---\n")
        nodes, was_short = collection.nodes[module], True
        for line in sorted(nodes):
            is_short = isinstance(nodes[line], (ast.Assign, ast.AnnAssign))
            parts.append(("\n" if is_short and was_short else "\n\n\n") + _read(module).text_of(nodes[line]))
            was_short = is_short
    return "".join([*parts, "\n", _TAIL])
