"""The laws of the source tree: which folder may import which, which calls are never made, which figures must hold."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))  # the figures and the walk of the imports are tools of their own

from house import FIGURES, Figure, value_of  # noqa: E402
from source_tree import Import, Module, circle, imported_names, imports_of, modules, without_type_checking  # noqa: E402

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
    "service",
    "cli",
    "__main__",
)
# Which files may import a library; a folder ends in a slash.
FENCES = {
    "albumentations": ("data/albumentations_chain.py",),
    "pycocotools": ("data/coco", "evaluation/"),
    "av": ("media/",),
    "cv2": ("structures/letterbox.py", "data/", "media/", "cli/show.py", "export/runner_program.py"),
    "pydantic": ("config/schema.py",),
    "yaml": ("config/nodes.py", "config/schema.py"),
    "tqdm": ("cli/", "workflows/training_progress.py"),
    "argparse": ("cli/", "export/runner_program.py"),
    "PIL": ("media/truncation.py", "media/animation_reader.py", "media/captions.py"),
    "scipy": ("evaluation/effect_sizes.py", "evaluation/track_scores.py", "inference/tracking.py"),
    "onnx": ("export/",),
    "onnxruntime": ("export/",),
    "openvino": ("export/",),
    "tensorrt": ("export/",),
    "ncnn": ("export/",),
    "pnnx": ("export/",),
    "ai_edge_litert": ("export/",),
    "litert_torch": ("export/",),
    "fastapi": ("service/",),
    "starlette": ("service/",),
    "uvicorn": ("service/",),
    "h11": ("service/",),
    "prometheus_client": ("service/",),
    "optuna": ("workflows/studies/optuna_sampler.py",),
    "pyarrow": ("io/arrow_files.py",),
}


def sources() -> dict[str, Module]:
    """The modules by their name below `detector`; the package itself is ''."""
    return {module.name: module for module in modules(ROOT)}


def floor_of(module: str) -> int:
    """The number of a module's floor; the package itself, which imports nothing, is below all others."""
    return FLOORS.index(module.partition(".")[0]) if module else -1


def upward(imports: Sequence[Import]) -> list[str]:
    return [
        f"{i.place}: detector.{i.importer} (floor {floor_of(i.importer)}) imports detector.{i.imported} "
        f"(floor {floor_of(i.imported)})"
        for i in imports
        if floor_of(i.imported) > floor_of(i.importer)
    ]


def circle_of(package: Sequence[Module]) -> list[str]:
    return [f"{i.place}: detector.{i.importer} imports detector.{i.imported}" for i in circle(imports_of(package))]


# --- figures -------------------------------------------------------------------------------------------------------


def check_figure(figure: Figure) -> None:
    """A failing figure shows its places; `python tools/house.py --list KEY` prints the same."""
    measured = figure.measure(ROOT)
    value = value_of(measured)
    assert figure.limit >= figure.target, f"{figure.key}: the limit is below the target; lower the target too"
    assert value <= figure.limit, f"{figure.title}: expected at most {figure.limit:g}, got {value:g}: {measured}"


# The time of `detector --help` is a promise of its own, in test_promises.py.
@pytest.mark.parametrize("key", [f.key for f in FIGURES if not f.is_traced and f.key != "help"])
def test_a_figure_of_the_source_keeps_its_limit(key):
    check_figure(next(figure for figure in FIGURES if figure.key == key))


@pytest.mark.slow
@pytest.mark.parametrize("key", [f.key for f in FIGURES if f.is_traced])
def test_an_image_passes_few_files(key):
    check_figure(next(figure for figure in FIGURES if figure.key == key))


# --- imports -------------------------------------------------------------------------------------------------------


def test_every_module_has_a_floor_and_every_floor_a_module():
    assert {name.partition(".")[0] for name in sources() if name} == set(FLOORS)


def test_no_import_goes_up():
    assert upward(imports_of(modules(ROOT))) == []


def test_no_import_circle():
    assert circle_of(modules(ROOT)) == []


def test_walk_reports_upward_imports_and_circles():
    """The walk itself, on a package where everything is wrong."""

    def package(**files: str) -> list[Module]:
        return [
            Module(
                PACKAGE / f"{name.replace('__', '/')}.py",
                f"detector/{name.replace('__', '/')}.py",
                name.replace("__", "."),
                text,
            )
            for name, text in files.items()
        ]

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
    assert circle_of(round_trip) == [
        "detector/io.py:1: detector.io imports detector.config",
        "detector/config.py:1: detector.config imports detector.io",
    ]


@pytest.mark.parametrize("library", FENCES)
def test_a_library_stays_behind_its_fence(library):
    users = []
    for module in modules(ROOT):
        inside = module.path.relative_to(PACKAGE).as_posix()
        users += [
            (inside, module.at(node))
            for node in without_type_checking(module.tree)
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
HARMLESS_OF_URLLIB = "urllib.parse"  # splits and decodes text
HARMLESS_OF_PICKLE = {"pickle.UnpicklingError", "pickle.PickleError"}  # raised by torch.load, caught by name


def violations(path: Path, tree: ast.Module) -> list[str]:
    found = []
    for node in ast.walk(tree):
        place = f"{path.relative_to(ROOT).as_posix()}:{getattr(node, 'lineno', 0)}"
        for name in imported_names(node, ""):
            is_downloader = path == PACKAGE / "io" / "download.py" and name.partition(".")[0] in DOWNLOADER_MODULES
            is_harmless = is_downloader or name.startswith(HARMLESS_OF_URLLIB)
            if name.partition(".")[0] in FORBIDDEN_MODULES and not is_harmless:
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
    assert [v for module in modules(ROOT) for v in violations(module.path, module.tree)] == []


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
def test_each_forbidden_call_is_reported(text):
    assert len(violations(PACKAGE / "media" / "tiff.py", ast.parse(text))) >= 1
