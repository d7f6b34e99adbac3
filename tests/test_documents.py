"""Every command and snippet of the documents, executed at toy size in a prepared folder.

A line of a block is executed unless its comment, or an HTML comment before the block, says what it needs:

    detector download yolov4-tiny    # needs the network
    <!-- The next block needs several GPUs. -->

The shipped presets are replaced by toy ones of the same names, so that documents show commands as users type them.
Commands inside a sentence are only parsed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import shlex
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import pytest
import yaml

from detector.cli.main import build_parser, run
from detector.config import nodes
from detector.config.schema import load_config
from detector.darknet.darknet_model_file import save_darknet_files
from detector.darknet.network import CfgText, DarknetNet
from detector.data.dataset import DatasetConfig
from detector.data.label_decisions import FORMAT, VERSION
from detector.tasks.detection_model import load_detection
from detector.workflows.studies.plan import load_study

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (
        *ROOT.glob("*.md"),
        *(p for folder in ("data", "weights", "docs") for p in ROOT.glob(f"{folder}/**/*.md")),
    )
    if path.name != "CHANGELOG.md"
)
NEEDS_ARROW = re.compile(r" --shard | --engine |^detector results |scored\.json")  # those of the optional pyarrow
NEEDS = re.compile(r"\bneeds? (?:a|an|the|several) (?:NVIDIA )?(?:GPUs?|camera|network|good model)\b")
TOY: dict[str, Any] = {
    "input": {"size": 64},
    "augment": {"albumentations": []},
    "loader": {"workers": 0, "batch_size": 4},
    "train": {"iterations": 2, "evaluations": 1, "precision": "fp32"},
    "device": "cpu",
}
# The imports of the example of a part, which the text around it leaves out.
PART_IMPORTS = """
from dataclasses import dataclass
from torch import Tensor
from detector import register
from detector.models.blocks import Scale
from detector.models.necks import Neck, NeckConfig
"""
VOC_IMAGE = """<annotation><filename>1.jpg</filename><size><width>64</width><height>64</height><depth>3</depth></size>
<object><name>cat</name><bndbox><xmin>5</xmin><ymin>5</ymin><xmax>40</xmax><ymax>40</ymax></bndbox></object></annotation>
"""
LAST_WORDS = {
    "train": ["train.iterations=2"],
    "study": ["--dry-run"],
    "tune": ["--dry-run"],
    "benchmark": ["--turns", "1", "--backends", "reference"],
}


@dataclass(frozen=True)
class Block:
    """A fenced block of a document.

    Attributes:
        language: the word after the fence; empty for commands.
        text: the lines.
        line: the line of the document that the text starts at.
        is_marked: true if a comment before the block says that it needs something.
    """

    language: str
    text: str
    line: int
    is_marked: bool


def blocks_of(document: str) -> Iterator[Block]:
    text = (ROOT / document).read_text(encoding="utf-8")
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        before = re.search(r"<!--([^>]*)-->\s*\Z", text[: match.start()])
        line = text.count("\n", 0, match.start(2)) + 1
        yield Block(match[1], match[2], line, bool(before and NEEDS.search(before[1])))


def commands_of(block: Block) -> Iterator[tuple[int, str]]:
    """Yield line number and text of each command that can be executed."""
    joined = block.text.replace("\\\n", "\\\0")
    line = block.line
    for text in joined.splitlines():
        comment = re.search(r"\s#.*", text)
        if text.strip() and not (block.is_marked or (comment and NEEDS.search(comment[0]))):
            yield line, text.replace("\\\0", " ")
        line += 1 + text.count("\0")


def toy_presets(folder: Path) -> None:
    """Write presets of the shipped names that train a tiny network for two steps."""
    shutil.copytree(nodes.presets_dir(), folder)
    for path in folder.glob("*.yaml"):
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        is_classifier = path.stem.startswith("classify")
        toy = {key: value for key, value in TOY.items() if not is_classifier or key in ("train", "device")}
        for key, value in toy.items():
            settings[key] = {**settings.get(key, {}), **value} if isinstance(value, dict) else value
        if path.stem.startswith("mish"):
            settings["model"] = {"depth": 0.1, "width": 0.125}
        elif path.stem == "pretrain":
            settings["data"] = {"name": "pictures", "num_train": 8, "num_val": 2, "image_size": 64}
        elif path.stem == "classify":  # its weights are those of the backbone of mish-n
            settings["model"].update(depth=0.1, width=0.125)
        path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    for path in (folder / "darknet").glob("*.cfg"):
        shutil.copy(ROOT / "tests/darknet/tiny.cfg", path)


def write_coco(shapes: Path) -> None:
    """Write the COCO files, images and videos that the documents name."""
    for name in ("train.json", "val.json", "all.json", "gt.json"):
        shutil.copy(shapes / "annotations/val.json", name)
    for folder in ("images", "photos"):
        shutil.copytree(shapes / "images/val", folder)
    found = json.loads(Path("gt.json").read_text())["annotations"]
    keys = ("image_id", "category_id", "bbox")
    Path("results.json").write_text(json.dumps([{**{key: box[key] for key in keys}, "score": 0.9} for box in found]))
    write_decisions()
    write_folders()
    Path("data").mkdir()
    split = "{annotations: ../val.json, images: ../images}"
    for name in ("mine.yaml", "coco2017.yaml", "bccd.yaml"):
        Path("data", name).write_text(f"name: coco\ntrain: {split}\nval: {split}\n")
    image = cv2.imread(str(next(Path("photos").iterdir())))
    assert image is not None
    street = cv2.resize(image, (1280, 720))
    cv2.imwrite("street.jpg", street)
    cv2.imwrite("aerial.tif", street)
    writer = cv2.VideoWriter("street.mp4", cv2.VideoWriter.fourcc(*"mp4v"), 10, (1280, 720))
    for _ in range(3):
        writer.write(street)
    writer.release()
    for split_name in ("train", "val"):
        for name in ("cat", "dog"):
            class_folder = Path("photos_by_class") / split_name / name
            class_folder.mkdir(parents=True)
            cv2.imwrite(str(class_folder / "1.jpg"), image)


def write_decisions() -> None:
    """Write decisions about `val.json`, as the page of suspect labels saves them."""
    content = Path("val.json").read_bytes()
    first = json.loads(content)["annotations"][0]
    decision = {key: first[key] for key in ("image_id", "category_id", "bbox")} | {
        "kind": "extra",
        "decision": "accept",
    }
    head = {"format": FORMAT, "version": VERSION, "annotations": "val.json"}
    made = {**head, "annotations_sha256": hashlib.sha256(content).hexdigest(), "decisions": [decision]}
    Path("decisions.json").write_text(json.dumps(made))


def write_folders() -> None:
    """Write a COCO file of images in two folders, and a Pascal VOC folder."""
    content = json.loads(Path("all.json").read_text())
    for index, entry in enumerate(content["images"]):
        folder = Path("images", "ab"[index % 2])
        folder.mkdir(exist_ok=True)
        shutil.copy(Path("images", entry["file_name"]), folder)
        entry["file_name"] = f"{folder.name}/{entry['file_name']}"
    Path("all.json").write_text(json.dumps(content))
    for name in ("Annotations", "JPEGImages"):
        Path("VOC_FOLDER", name).mkdir(parents=True)
    shutil.copy(next(Path("photos").iterdir()), "VOC_FOLDER/JPEGImages/1.jpg")
    Path("VOC_FOLDER/Annotations/1.xml").write_text(VOC_IMAGE)


def write_darknet() -> None:
    """Write the network, the weights and the list of classes that the documents name."""
    model = DarknetNet(DarknetNet.Config(CfgText.of_file(str(ROOT / "tests/darknet/tiny.cfg"))), 3)
    save_darknet_files(model, Path("yolov4.weights"), ("a", "b", "c"), (64, 64), "stretch")
    Path("weights").mkdir()
    first_layers = [*model.named_parameters(), *((n, b) for n, b in model.named_buffers() if "running" in n)]
    num_bytes = 20 + sum(4 * tensor.numel() for name, tensor in first_layers if int(name.split(".")[1]) < 6)
    Path("weights/yolov4-tiny.conv.29").write_bytes(Path("yolov4.weights").read_bytes()[:num_bytes])


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, tiny_shapes: Path) -> Path:
    """Return a folder with everything that the documents take for granted, and the toy presets beside it."""
    root = tmp_path_factory.mktemp("documents")
    toy_presets(root / "presets")
    folder = root / "work"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(nodes, "presets_dir", lambda: root / "presets")
        write_coco(tiny_shapes)
        write_darknet()
        assert run(["dataset", "to-yolo", "data/mine.yaml", "--to", "yolo"]) == 0
        described = yaml.safe_load(Path("yolo/data.yaml").read_text())
        Path("data.yaml").write_text(yaml.safe_dump({**described, "path": "yolo"}))
        shutil.make_archive("export", "zip", "yolo")
        few_layers = f"model={{name: darknet, cfg: {ROOT}/tests/darknet/tiny.cfg}}"  # exported in seconds
        for preset, name in (("mish-n", "best"), ("classify", "classifier")):
            words = ["data=data/mine.yaml", few_layers] if preset == "mish-n" else ["data=photos_by_class/"]
            assert run(["train", preset, *words, "train.iterations=2", "train.project=prepared", "--quiet"]) == 0
            shutil.copy("prepared/train/weights/best.safetensors", f"{name}.safetensors")
            if preset == "mish-n":  # the run that guides evaluate and predict with
                shutil.copytree("prepared/train", "runs/detect/train")
            shutil.rmtree("prepared")
        shutil.copy("best.safetensors", "bccd.safetensors")
    return folder


@pytest.fixture
def work(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a copy of the prepared folder as the working directory, with the toy presets in use."""
    folder = shutil.copytree(prepared, tmp_path / "work")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # archives are unpacked there
    monkeypatch.setattr(nodes, "presets_dir", lambda: prepared.parent / "presets")
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield Path(folder)
    for number, handler in before.items():
        signal.signal(number, handler)


def execute(command: str) -> str:
    """Execute a command line of a document and return what is wrong, or an empty text."""
    program, *words = shlex.split(command, comments=True)
    if program == "make":
        target = next(word for word in words if "=" not in word)
        return "" if re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE) else "no such target"
    if program == "python" and words[0].startswith("tools/"):
        return "" if (ROOT / words[0]).is_file() else "no such file"
    if NEEDS_ARROW.search(command) and importlib.util.find_spec("pyarrow") is None:
        return ""
    if program != "detector":
        return f"{program} cannot be executed here; say what the line needs"
    try:
        code = run([*words, *LAST_WORDS.get(words[0], ())])
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    return f"exit code {code}" if code else ""


def check_yaml(block: Block, folder: Path) -> None:
    """Read a block as a data set, an experiment or a study; the document may use it by the name it begins with."""
    if "axes:" in block.text:
        text = block.text.replace("/data/mine.yaml", str(folder / "data/mine.yaml"))
        Path("study.yaml").write_text(text, encoding="utf-8")
        assert load_study("study.yaml").seeds
    elif block.text.startswith(("# own", "model:")):
        assert load_detection(write_named(block.text)), block.text
    else:
        assert load_config(DatasetConfig, write_named(block.text)), block.text


def write_named(text: str) -> str:
    """Write a block into the file that its first line names and return the name."""
    name = text.splitlines()[0].removeprefix("# ").strip()
    Path(name).write_text(text, encoding="utf-8")
    return name


def run_python(block: Block, document: str) -> None:
    """Execute a snippet; what it registers is forgotten after the test."""
    names: dict[str, Any] = {"__name__": "detector_parts_document"}
    if block.text.startswith("@register"):
        exec(PART_IMPORTS, names)
    exec(compile("\n" * (block.line - 1) + block.text, str(ROOT / document), "exec"), names)


@pytest.mark.parametrize("document", [d for d in DOCUMENTS if any(blocks_of(d))])
def test_every_block_of_a_document_can_be_executed(
    document: str, work: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    failures = []
    for block in blocks_of(document):
        if block.language in ("", "sh"):
            for line, command in commands_of(block):
                if problem := execute(command):
                    failures.append(f"{document}:{line}: {command}\n  {problem}: {capfd.readouterr().err[-400:]}")
        elif block.language in ("yaml", "python"):
            try:
                check_yaml(block, work) if block.language == "yaml" else run_python(block, document)
            except Exception as error:  # reported with the failures of the commands
                failures.append(f"{document}:{block.line}: {type(error).__name__}: {error}")
        else:
            assert block.language == "text", f"{document}:{block.line}: unknown language {block.language}"
    assert not failures, "\n".join(failures)


TOY_PARAMETERS = """
if "DATA" in globals():
    DATA, STEPS = {**DATA, "num_train": 8, "num_val": 4, "image_size": 64}, 2
"""


@pytest.mark.parametrize("notebook", sorted(ROOT.glob("docs/notebooks/*.ipynb")), ids=lambda path: path.name)
def test_every_cell_of_a_notebook_can_be_executed(notebook: Path, work: Path) -> None:
    """Execute the cells in one process; the cell with the tag `parameters` gets toy values."""
    book = json.loads(notebook.read_text(encoding="utf-8"))
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in book["cells"]}) == len(book["cells"])
    names: dict[str, Any] = {"__name__": "notebook"}
    for number, cell in enumerate(book["cells"]):
        if cell["cell_type"] == "code":
            assert not cell["outputs"], f"cell {number}: clear the outputs"
            text = "".join(cell["source"])
            exec(compile(text, f"{notebook.name}, cell {number}", "exec"), names)
            if "parameters" in cell["metadata"].get("tags", ()):
                exec(TOY_PARAMETERS, names)


def inline_commands(document: str) -> Iterator[str]:
    """Yield the commands inside the sentences and tables of a document."""
    text = re.sub(r"^```.*?^```$", "", (ROOT / document).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for match in re.finditer(r"`((?:detector|make|python tools/)[^`]*)`", text):
        yield " ".join(match[1].split()).replace(" ...", "")


@pytest.mark.parametrize("document", [d for d in DOCUMENTS if any(inline_commands(d))])
def test_every_command_in_a_sentence_is_valid(document: str, capfd: pytest.CaptureFixture[str]) -> None:
    failures = []
    for command in inline_commands(document):
        words = shlex.split(command)
        if words[0] == "detector" and "--help" not in words:
            try:
                build_parser(words[1:]).parse_known_args(words[1:])
            except SystemExit:
                message = capfd.readouterr().err
                if "arguments are required" not in message:  # a sentence may name a command alone
                    failures.append(f"{command}: {message}")
        elif words[0] != "detector" and len(words) > 1 and (problem := execute(command)):
            failures.append(f"{command}: {problem}")
    assert not failures, "\n".join(failures)


def test_marked_lines_and_blocks_are_left_out() -> None:
    text = "detector a  # needs the network\ndetector b \\\n  --c\n\ndetector d  # what it needs: much\n"
    assert list(commands_of(Block("", text, 7, False))) == [
        (8, "detector b    --c"),
        (11, "detector d  # what it needs: much"),
    ]
    assert not list(commands_of(Block("", text, 7, True)))
