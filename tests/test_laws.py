"""The laws of the house, read off the source: who may import whom, what is never called, and how long a file may be."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "detector"

# The folders and top-level modules from the ground up: an import stays in its folder or goes further down.
FLOORS = (
    "errors",
    "io",
    "config",
    "structures",
    "ops",
    "models",
    "media",
    "losses",
    "data",
    "inference",
    "training",
    "darknet",
    "export",
    "evaluation",
    "tasks",
    "workflows",
    "api",
    "cli",
    "__main__",
)
# Which files may import a library; a folder ends in a slash.
FENCES = {
    "albumentations": ("data/albumentations_chain.py",),
    "pycocotools": ("data/coco", "evaluation/"),
    "cv2": ("structures/letterbox.py", "data/", "media/", "cli/show.py"),
    "pydantic": ("config/schema.py",),
    "yaml": ("config/nodes.py", "config/schema.py"),
    "tqdm": ("cli/",),
    "argparse": ("cli/",),
    "PIL": ("media/truncation.py",),
    "scipy": ("evaluation/effect_sizes.py", "inference/tracking.py"),
    "onnx": ("export/",),
    "onnxruntime": ("export/",),
    "openvino": ("export/",),
}
MAX_LINES = 500


@dataclass(frozen=True)
class Import:
    """One import of a module of the package by another, and where it stands."""

    importer: str
    imported: str
    place: str


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def sources() -> dict[str, tuple[Path, ast.Module]]:
    """Path and syntax tree of every module by its name below `detector`; the package itself is ''."""
    return {module_name(path): (path, ast.parse(path.read_text("utf-8"))) for path in sorted(PACKAGE.rglob("*.py"))}


def place_of(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(ROOT).as_posix()}:{getattr(node, 'lineno', 0)}"


def without_type_checking(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node that runs: what stands under `if TYPE_CHECKING:` does not."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for branch in child.orelse:
                yield branch
                yield from without_type_checking(branch)
        else:
            yield child
            yield from without_type_checking(child)


def imported_names(node: ast.AST, package: str) -> list[str]:
    """The absolute names of the modules or attributes that a statement imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
        base = ".".join([*parents, *([node.module] if node.module else [])])
        return [f"{base}.{alias.name}" for alias in node.names]
    return []


def imports_of(sources: dict[str, tuple[Path, ast.Module]]) -> list[Import]:
    found = []
    for importer, (path, tree) in sources.items():
        own = f"detector.{importer}".rstrip(".")
        package = own if path.name == "__init__.py" else own.rpartition(".")[0]
        for node in without_type_checking(tree):
            for name in imported_names(node, package):
                if name.partition(".")[0] != "detector":
                    continue
                below = name.removeprefix("detector").removeprefix(".")
                # `from detector.x import y`: y is a module or something in x.
                imported = below if below in sources else below.rpartition(".")[0]
                found.append(Import(importer, imported, place_of(path, node)))
    return found


def floor_of(module: str) -> int:
    """The number of a module's floor; the package itself, which imports nothing, is below all others."""
    return FLOORS.index(module.partition(".")[0]) if module else -1


def upward(imports: list[Import]) -> list[str]:
    return [
        f"{i.place}: detector.{i.importer} (floor {floor_of(i.importer)}) imports detector.{i.imported} "
        f"(floor {floor_of(i.imported)})"
        for i in imports
        if floor_of(i.imported) > floor_of(i.importer)
    ]


def circle(imports: list[Import]) -> list[str]:
    """The places of a chain of imports that ends where it began; empty where there is none."""
    edges: dict[str, list[Import]] = {}
    for i in imports:
        edges.setdefault(i.importer, []).append(i)
    done: set[str] = set()

    def visit(module: str, trail: list[Import]) -> list[Import]:
        on_trail = [i.importer for i in trail]
        if module in on_trail:
            return trail[on_trail.index(module) :]
        if module not in done:
            for edge in edges.get(module, []):
                found = visit(edge.imported, [*trail, edge])
                if found:
                    return found
            done.add(module)
        return []

    for module in edges:
        found = visit(module, [])
        if found:
            return [f"{i.place}: detector.{i.importer} imports detector.{i.imported}" for i in found]
    return []


# --- imports -------------------------------------------------------------------------------------------------------


def test_every_module_has_a_floor_and_every_floor_a_module():
    assert {name.partition(".")[0] for name in sources() if name} == set(FLOORS)


def test_no_import_goes_up():
    assert upward(imports_of(sources())) == []


def test_no_import_circle():
    assert circle(imports_of(sources())) == []


def test_the_walk_sees_what_it_must():
    """The walk itself, on a package where everything is wrong."""

    def package(**files: str) -> dict[str, tuple[Path, ast.Module]]:
        return {
            name.replace("__", "."): (PACKAGE / f"{name.replace('__', '/')}.py", ast.parse(text))
            for name, text in files.items()
        }

    up = imports_of(package(io="def f():\n    from detector.config import x", config=""))
    assert upward(up) == ["detector/io.py:2: detector.io (floor 1) imports detector.config (floor 2)"]
    for text in (
        "import detector.config",
        "from detector import config",
        "from .config import x",
        "from . import config",
    ):
        assert upward(imports_of(package(io=text, config=""))), text
    assert upward(imports_of(package(models__yolo="from ..config import x\nfrom ..api import y", config="", api="")))
    hidden = package(io="if TYPE_CHECKING:\n    from detector.config import x\nelse:\n    pass", config="")
    assert imports_of(hidden) == []
    shown = package(io="if TYPE_CHECKING:\n    pass\nelse:\n    from detector.config import x", config="")
    assert len(imports_of(shown)) == 1
    round_trip = package(io="import detector.config", config="import detector.io")
    assert circle(imports_of(round_trip)) == [
        "detector/io.py:1: detector.io imports detector.config",
        "detector/config.py:1: detector.config imports detector.io",
    ]


@pytest.mark.parametrize("library", FENCES)
def test_a_library_stays_behind_its_fence(library):
    users = []
    for path, tree in sources().values():
        inside = path.relative_to(PACKAGE).as_posix()
        users += [
            (inside, place_of(path, node))
            for node in without_type_checking(tree)
            if any(name.partition(".")[0] == library for name in imported_names(node, ""))
        ]
    assert users, f"{library} is imported nowhere: take its fence down"
    assert [place for inside, place in users if not inside.startswith(FENCES[library])] == []


def loaded_by(code: str) -> set[str]:
    """The modules in a fresh interpreter after some code."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_models_load_without_the_heavy_libraries():
    loaded = loaded_by("import detector.models.yolo, detector.ops.mish")
    heavy = {"cv2", "pydantic", "albumentations", "pycocotools", "yaml", "detector.structures.letterbox"}
    heavy |= {"detector.config.schema"}
    assert "torch" in loaded
    assert sorted(loaded & heavy) == []


def test_importing_the_package_loads_no_library():
    loaded = loaded_by("import detector")
    assert sorted(loaded & {"torch", "numpy", "cv2", "pydantic", "yaml", "albumentations"}) == []
    assert {m for m in loaded if m.startswith("detector")} == {"detector"}


def test_the_public_names_are_there():
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import detector; print(*(getattr(detector, n).__name__ for n in detector.__all__[:3]))",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["Classifier", "Detections", "Detector"]


# --- calls that are never made -------------------------------------------------------------------------------------

FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "yaml.load", "yaml.unsafe_load", "yaml.full_load"}
FORBIDDEN_MODULES = {"dill", "marshal", "shelve", "socket", "urllib", "http", "requests", "ftplib"}
DOWNLOADER_MODULES = {"http", "urllib"}  # for io/download.py alone, which the user asks for
HARMLESS_OF_PICKLE = {"pickle.UnpicklingError", "pickle.PickleError"}  # raised by torch.load, caught by name


def violations(path: Path, tree: ast.Module) -> list[str]:
    found = []
    for node in ast.walk(tree):
        place = place_of(path, node)
        for name in imported_names(node, ""):
            is_downloader = path == PACKAGE / "io" / "download.py" and name.partition(".")[0] in DOWNLOADER_MODULES
            if name.partition(".")[0] in FORBIDDEN_MODULES and not is_downloader:
                found.append(f"{place}: imports {name}")
            if name in ("os.system", "os.popen", "torch.hub"):
                found.append(f"{place}: imports {name}")
            if name.startswith("pickle.") and name not in HARMLESS_OF_PICKLE:
                found.append(f"{place}: imports {name}")
        is_of_pickle = isinstance(node, ast.Attribute) and ast.unparse(node.value) == "pickle"
        if is_of_pickle and ast.unparse(node) not in HARMLESS_OF_PICKLE:
            found.append(f"{place}: uses {ast.unparse(node)}")
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called in FORBIDDEN_CALLS or called.startswith(
            ("os.system", "os.popen", "os.exec", "os.spawn", "torch.hub")
        ):
            found.append(f"{place}: calls {called}")
        if called.endswith(".exec_module") and path.name != "registry.py":  # import_parts, which the user asks for
            found.append(f"{place}: calls {called}")
        for keyword in node.keywords:
            if keyword.arg == "shell" and ast.unparse(keyword.value) != "False":
                found.append(f"{place}: passes shell=")
            if keyword.arg in ("weights_only", "allow_pickle") and ast.unparse(keyword.value) != (
                "True" if keyword.arg == "weights_only" else "False"
            ):
                found.append(f"{place}: passes {keyword.arg}={ast.unparse(keyword.value)}")
        if called == "torch.load" and "weights_only" not in {k.arg for k in node.keywords}:
            found.append(f"{place}: torch.load without weights_only=True")
        if called == "print" and path.parent.name != "cli":
            found.append(f"{place}: prints")
    return found


def test_nothing_runs_code_from_data():
    assert [v for path, tree in sources().values() for v in violations(path, tree)] == []


@pytest.mark.parametrize(
    "text",
    [
        "eval('1')",
        "exec(x)",
        "pickle.loads(x)",
        "load = pickle.Unpickler",
        "from pickle import loads",
        "def f():\n    import socket",
        "import urllib.request",
        "yaml.load(x)",
        "os.system('x')",
        "from os import system",
        "subprocess.run(x, shell=True)",
        "torch.load(x)",
        "torch.load(x, weights_only=False)",
        "np.load(x, allow_pickle=True)",
        "torch.hub.load(x)",
        "print(1)",
        "loader.exec_module(m)",
    ],
)
def test_each_forbidden_call_would_be_seen(text):
    assert len(violations(PACKAGE / "media" / "tiff.py", ast.parse(text))) >= 1


def test_no_file_is_too_long():
    files = [p for folder in ("detector", "tests", "tools") for p in (ROOT / folder).rglob("*.py")]
    lengths = {p.relative_to(ROOT).as_posix(): len(p.read_text("utf-8").splitlines()) for p in files}
    assert {name: lines for name, lines in lengths.items() if lines > MAX_LINES} == {}
