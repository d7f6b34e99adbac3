"""Figures of the source tree, each with the limit that it must keep and the target that it is to reach.

    python tools/house.py                    # print the table; exit 1 when a figure is over its target
    python tools/house.py --trace            # also count the files that one image passes (about a minute)
    python tools/house.py --list messages    # print where each occurrence of one figure is

Everything except the time of `detector --help` and the trace is read off the syntax trees. The docstring of each
function below is the definition of its figure. `tests/test_laws.py` fails when a figure exceeds its limit.
"""

from __future__ import annotations

import argparse
import ast
import functools
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from source_tree import Module, docstrings, imports_of, modules, strings

ROOT = Path(__file__).resolve().parents[1]
MAX_FUNCTION_LINES = 60
MAX_PARAMETERS = 8
MAX_FILE_LINES = 500
NUM_TIMED_RUNS = 3
OPENERS = re.compile(r"(What|How|Whether|Where|Which|Who|Those)\b")
# "X wants Y, found Z" in all its forms. "found" alone is English: "not found", "objects found in an image".
TRANSLATED = re.compile(r"\bwant(s|ed)?\b|[,;] found\b", re.IGNORECASE)
TASK_CLASSES = re.compile(r"Classif|^Experiment(Config)?$|^Detection(Config|Experiment|Metrics|Task)$")
TASK_QUESTIONS = re.compile(r"^_?is_(classif|detection|detector)")
TASK_NAMES = ("classify", "detect")
FunctionNode: TypeAlias = "ast.FunctionDef | ast.AsyncFunctionDef"


# --- measurements: each returns the places that count ---------------------------------------------------------------


def rooms(root: Path) -> list[str]:
    """Return the folders of the package, subfolders included, and its loose modules but `__main__`."""
    package = [module for module in modules(root) if module.name not in ("", "__main__")]
    is_room = {module.name for module in package if module.path.name == "__init__.py" or "." not in module.name}
    return sorted(is_room)


def folder_circles(root: Path) -> list[str]:
    """Return the pairs of folders that import each other; a folder and its subfolders count as one."""
    places: dict[tuple[str, str], str] = {}
    for each in imports_of(modules(root)):
        pair = (each.importer.partition(".")[0], each.imported.partition(".")[0])
        if pair[0] != pair[1]:
            places.setdefault(pair, each.place)
    return [f"{a} <-> {b}: {places[a, b]}, {places[b, a]}" for a, b in sorted(places) if a < b and (b, a) in places]


def floor_exceptions(root: Path) -> list[str]:
    """Return the entries of `FLOORS` in `tests/test_laws.py` that give a file or subfolder a floor of its own."""
    path = root / "tests" / "test_laws.py"
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "FLOORS":
            return [name for name in ast.literal_eval(node.value) if "." in name]
    raise LookupError(f"{path}: expected an assignment to FLOORS, got none")


def registering_imports(root: Path) -> list[str]:
    """Return the imports from the package whose name is never used; `__init__` files re-export and do not count."""
    places = []
    for module in modules(root):
        if module.path.name == "__init__.py":
            continue
        used = {node.id for node in module.nodes if isinstance(node, ast.Name)}
        quoted = {word for _, text in strings(module) for word in re.findall(r"\w+", text)}  # types in quotes
        for node in module.nodes:
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "detector":
                names = [alias.asname or alias.name for alias in node.names]
                places += [f"{module.at(node)}: {name}" for name in names if name not in used | quoted]
    return places


def functions(root: Path) -> Iterator[tuple[Module, FunctionNode]]:
    """Yield every function and method of the package and the tools."""
    for module in (*modules(root), *modules(root, "tools")):
        for node in module.nodes:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield module, node


def long_functions(root: Path) -> list[str]:
    """Return the functions of more than 60 lines, signature and docstring included, decorators not."""
    sized = [(module, node, (node.end_lineno or 0) - node.lineno + 1) for module, node in functions(root)]
    return [f"{m.at(node)}: {node.name}, {lines} lines" for m, node, lines in sized if lines > MAX_FUNCTION_LINES]


def wide_functions(root: Path) -> list[str]:
    """Return the functions with more than 8 parameters; `self`, `cls`, `*args` and `**kwargs` do not count."""
    places = []
    for module, node in functions(root):
        parameters = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
        number = sum(parameter.arg not in ("self", "cls") for parameter in parameters)
        if number > MAX_PARAMETERS:
            places.append(f"{module.at(node)}: {node.name}, {number} parameters")
    return places


def question_docstrings(root: Path) -> list[str]:
    """Return the docstrings that open with What, How, Whether, Where, Which, Who or Those."""
    return [m.at(node) for m in modules(root) for node in docstrings(m) if OPENERS.match(str(node.value).lstrip())]


def translated_messages(root: Path) -> list[str]:
    """Return the texts that say "wants", "wanted" or ", found" where English says "expected" and "got".

    Strings (an f-string is one), docstrings and comments count, once each; names in the code do not. The verb "want"
    counts in every form, "found" only after a comma or semicolon: "not found" and "found in the image" are English.
    """
    places = []
    for module in modules(root):
        texts = [(node.lineno, str(node.value)) for node in docstrings(module)]
        texts += [(getattr(node, "lineno", 0), text) for node, text in strings(module)]
        texts += module.comments
        places += [f"{module.place}:{line}" for line, text in sorted(texts) if TRANSLATED.search(text)]
    return places


def any_types(root: Path) -> list[str]:
    """Return the uses of the name `Any`, annotations in quotes included; its import does not count."""
    places = []
    for module in modules(root):
        places += [module.at(node) for node in module.nodes if isinstance(node, ast.Name) and node.id == "Any"]
        places += [module.at(node) for node, text in strings(module) for _ in re.findall(r"\bAny\b(?! )", text)]
    return places


def type_ignores(root: Path) -> list[str]:
    """Return the comments `type: ignore`."""
    return [f"{m.place}:{line}" for m in modules(root) for line, text in m.comments if "type: ignore" in text]


def task_branches(root: Path) -> list[str]:
    """Return the lines outside `tasks/` that ask which task a model or experiment belongs to.

    A line asks by `isinstance` with the class of a task (its configuration, metrics or task part), by a comparison with
    the name of a task, or by calling or assigning a name such as `is_classifier`.
    """
    places = []
    for module in modules(root):
        if module.room != "tasks":
            lines = {getattr(node, "lineno", 0) for node in module.nodes if _asks_for_task(node)}
            places += [f"{module.place}:{line}" for line in sorted(lines)]
    return places


def _asks_for_task(node: ast.AST) -> bool:
    if isinstance(node, ast.Compare | ast.MatchValue):
        compared = (node.left, *node.comparators) if isinstance(node, ast.Compare) else (node.value,)
        return any(isinstance(each, ast.Constant) and each.value in TASK_NAMES for each in compared)
    if isinstance(node, ast.Call):
        called = ast.unparse(node.func).rpartition(".")[2]
        if called in ("isinstance", "issubclass") and len(node.args) == 2:
            classes = re.findall(r"\w+", ast.unparse(node.args[1]))
            return any(TASK_CLASSES.search(name) for name in classes)
        return bool(TASK_QUESTIONS.match(called))
    return isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and bool(TASK_QUESTIONS.match(node.id))


def local_imports(root: Path) -> list[str]:
    """Return the import statements inside functions of `cli/`."""
    places: set[tuple[str, int]] = set()
    for module, node in functions(root):
        if module.place.startswith("detector/cli/"):
            inside = [each for each in ast.walk(node) if isinstance(each, ast.Import | ast.ImportFrom)]
            places.update((module.place, each.lineno) for each in inside)
    return [f"{place}:{line}" for place, line in sorted(places)]


def repeated_file_names(root: Path) -> list[str]:
    """Return the files of the package whose name another one has, those of `cli/` and `__init__` files aside."""
    files = [m for m in modules(root) if m.room != "cli" and not m.path.name.startswith("__")]
    number_of = Counter(module.path.name for module in files)
    return [module.place for module in files if number_of[module.path.name] > 1]


def repeated_class_names(root: Path) -> list[str]:
    """Return the public classes at the top level of their module whose name another one has."""
    classes = [(m, node) for m in modules(root) for node in m.tree.body if isinstance(node, ast.ClassDef)]
    number_of = Counter(node.name for _, node in classes)
    return [f"{m.at(c)}: {c.name}" for m, c in classes if number_of[c.name] > 1 and not c.name.startswith("_")]


def long_files(root: Path) -> list[str]:
    """Return the files of the package, the tests and the tools of more than 500 lines."""
    files = [module for folder in ("detector", "tests", "tools") for module in modules(root, folder)]
    sized = [(module.place, len(module.text.splitlines())) for module in files]
    return [f"{place}: {lines} lines" for place, lines in sized if lines > MAX_FILE_LINES]


def package_lines(root: Path) -> int:
    """Return the number of lines of all Python files of the package."""
    return sum(len(module.text.splitlines()) for module in modules(root))


def help_seconds(root: Path) -> float:
    """Return the shortest wall time of three runs of `detector --help`."""
    environment = {**os.environ, "PYTHONPATH": str(root)}
    taken = []
    for _ in range(NUM_TIMED_RUNS):
        started_s = time.perf_counter()
        command = [sys.executable, "-m", "detector", "--help"]
        subprocess.run(command, check=True, capture_output=True, cwd=root, env=environment)
        taken.append(time.perf_counter() - started_s)
    return round(min(taken), 3)


@functools.cache
def traced(root: Path) -> dict[str, list[str]]:
    """Return the files that a `training` and a `prediction` image pass, as `tools/house_trace.py` defines them."""
    command = [sys.executable, str(ROOT / "tools" / "house_trace.py"), str(root)]
    written = subprocess.run(command, check=True, capture_output=True, text=True, cwd=root).stdout
    files: dict[str, list[str]] = json.loads(written.splitlines()[-1])
    return files


# --- the table -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figure:
    """One figure of the table.

    Attributes:
        key: its name for `--list` and in the tests.
        title: its name in the table.
        measure: returns the places that count, or the value itself.
        limit: the most it may be today; a test fails above it. It only goes down, in the end to the target.
        target: the most it may be when the work is done.
        is_traced: it takes a training step and a prediction to measure.
    """

    key: str
    title: str
    measure: Callable[[Path], Sequence[str] | float]
    limit: float
    target: float
    is_traced: bool = False


def value_of(measured: Sequence[str] | float) -> float:
    """Return the value of a figure: what was measured, or the number of places."""
    return measured if isinstance(measured, int | float) else len(measured)


# Limits that are not at their target yet are today's values: lower them as the figures fall, never raise one.
FIGURES = (
    Figure("rooms", "rooms (folders and loose modules)", rooms, limit=23, target=23),
    Figure("circles", "folders that import each other", folder_circles, limit=0, target=0),
    Figure("floors", "exceptions in the floor table", floor_exceptions, limit=0, target=0),
    Figure("registering", "imports only to register a part", registering_imports, limit=0, target=0),
    Figure("long", "functions over 60 lines", long_functions, limit=0, target=0),
    Figure("wide", "functions over 8 parameters", wide_functions, limit=0, target=0),
    Figure("docstrings", "docstrings that open with What, How, ...", question_docstrings, limit=0, target=0),
    Figure("messages", 'texts with "wants ..., found ..."', translated_messages, limit=0, target=0),
    Figure("any", "uses of Any", any_types, limit=200, target=200),
    Figure("ignore", "type: ignore", type_ignores, limit=40, target=40),
    Figure("tasks", "questions for the task outside tasks/", task_branches, limit=0, target=0),
    Figure("local", "function-level imports in cli/", local_imports, limit=40, target=40),
    Figure("help", "seconds of detector --help", help_seconds, limit=0.3, target=0.3),
    Figure("training", "files from JSON to loss", lambda root: traced(root)["training"], 35, 24, is_traced=True),
    Figure("prediction", "files from path to picture", lambda root: traced(root)["prediction"], 26, 16, is_traced=True),
    Figure("lines", "lines of detector/", package_lines, limit=64_800, target=37818),
    Figure("files", "files over 500 lines", long_files, limit=0, target=0),
    Figure("file-names", "files that share a name", repeated_file_names, limit=0, target=0),
    Figure("class-names", "public classes that share a name", repeated_class_names, limit=0, target=0),
)


def main(words: Sequence[str] | None = None) -> int:
    """Print the table or the places of one figure; return 1 when a figure is over its target, else 0."""
    parser = argparse.ArgumentParser(description="measure the figures of the source tree against their targets")
    keys = [figure.key for figure in FIGURES]
    parser.add_argument("--trace", action="store_true", help="also count the files that one image passes")
    parser.add_argument("--list", choices=keys, metavar="FIGURE", help=f"print its places: {', '.join(keys)}")
    parser.add_argument("--root", type=Path, default=ROOT, help="repository to measure, by default this one")
    arguments = parser.parse_args(words)
    root = arguments.root.resolve()
    if arguments.list:
        measured = next(figure for figure in FIGURES if figure.key == arguments.list).measure(root)
        print(measured if isinstance(measured, int | float) else "\n".join(measured))
        return 0
    exit_code = 0
    print(f"{'figure':42}{'value':>8}{'limit':>8}{'target':>8}")
    for figure in FIGURES:
        if figure.is_traced and not arguments.trace:
            print(f"{figure.title:42}{'-':>8}{figure.limit:>8}{figure.target:>8}  not measured without --trace")
            continue
        value = value_of(figure.measure(root))
        verdict = "ok" if value <= figure.target else "over" if value <= figure.limit else "over its limit"
        print(f"{figure.title:42}{value:>8}{figure.limit:>8}{figure.target:>8}  {verdict}")
        if value > figure.target:
            exit_code = 1
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
