"""Downloads by name: the indexes, and the checks before a file gets its name."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from detector.cli.main import run
from detector.config.nodes import presets_dir
from detector.darknet.cfg_file import parse_cfg, read_cfg
from detector.darknet.weights_file import WeightsHeader, num_weight_bytes
from detector.errors import DetectorError
from detector.models.published_weights import PublishedWeights
from detector.models.yolox import Yolox
from detector.models.yolox_checkpoint import config_of_size, save_yolox_file
from detector.workflows import catalog
from detector.workflows.catalog import (
    PublishedArchive,
    PublishedDataSet,
    fetch_data_set,
    fetch_weights,
)

CFG = """[net]
width=32
height=32
channels=3
[convolutional]
filters=4
size=1
stride=1
pad=1
activation=leaky
[convolutional]
filters=6
size=1
stride=1
pad=1
activation=linear
[yolo]
mask=0
anchors=4,4
classes=1
num=1
"""
# Lengths by Darknet's own rule; the first four are those of files that its users have had for years.
LENGTHS = {
    "yolov4": 257_717_640,
    "yolov3": 248_007_048,
    "yolov3-tiny": 35_434_956,
    "yolov4-tiny": 24_251_276,
    "yolov4.conv.137": 170_038_676,
    "yolov4-tiny.conv.29": 19_789_716,
    "darknet53.conv.74": 162_482_580,
    "yolov4-csp.conv.142": 146_548_116,
    "yolov4-csp-swish.conv.164": 185_312_660,
    "yolov4x-mish.conv.166": 277_307_668,
    "yolov4-csp-x-swish.conv.192": 358_357_268,
    "yolov4-p5.conv.232": 256_427_412,
    "yolov4-p6.conv.289": 463_340_948,
}


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Replace the downloader; the returned dictionary holds the content of each address."""
    contents: dict[str, bytes] = {}

    def fetch(
        url: str,
        target: Path,
        *,
        num_bytes: int,
        sha256: str | None = None,
        check: Callable[[Path], None] = lambda part: None,
        progress: Callable[[int], None] = lambda num_done: None,
    ) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.part")
        part.write_bytes(contents[url])
        progress(len(contents[url]))
        check(part)
        part.replace(target)

    monkeypatch.setattr(catalog, "fetch", fetch)
    return contents


def entry_of(network: str, content: bytes, **more: Any) -> PublishedWeights:
    return PublishedWeights(network, network, f"https://x/{network}.weights", len(content), "page", "licence", **more)


# --- the indexes ---------------------------------------------------------------------------------------------------


def test_every_length_fits_its_network():
    entries = {e.name: e for e in catalog.published().values() if isinstance(e, PublishedWeights)}
    assert {name: entries[name].num_bytes for name in LENGTHS} == LENGTHS
    num_checked = 0
    for entry in entries.values():
        cfg = presets_dir() / "darknet" / f"{entry.network}.cfg"
        if cfg.is_file():
            num_checked += 1
            assert entry.num_bytes == num_weight_bytes(read_cfg(cfg), entry.num_layers), entry.name
    assert num_checked >= 17
    shipped = {path.stem for path in (presets_dir() / "darknet").glob("*.cfg")}
    assert shipped <= set(entries)


def test_every_entry_states_its_source_and_licence():
    entries = catalog.published()
    assert {"coco2017", "voc2007", "voc2012"} < set(entries)
    for entry in entries.values():
        urls = [entry.url] if isinstance(entry, PublishedWeights) else [a.url for a in entry.archives]
        assert all(url.startswith("https://") for url in urls)
        assert entry.page.startswith("http")
        assert entry.licence
        if isinstance(entry, PublishedWeights):
            assert entry.file_name.replace("_", "-").startswith(entry.name.replace("_", "-"))
            is_measured = entry.ap is not None or entry.ap50 is not None
            assert is_measured == (entry.test_set is not None) == (entry.measured_at is not None)
        else:
            assert all(a.sha256 is None or re.fullmatch("[0-9a-f]{64}", a.sha256) for a in entry.archives)
    text = (Path(__file__).parents[2] / "weights" / "index.yaml").read_text("utf-8")
    assert text.count("- name:") == sum(isinstance(e, PublishedWeights) for e in entries.values())  # no name twice


def test_unknown_name_is_rejected_with_the_nearest_one():
    with pytest.raises(
        DetectorError,
        match=r"'yolo4-tiny' is not in the catalogue of downloads; did you mean 'yolov4-tiny' or 'yolox-tiny'\?",
    ):
        catalog.find_published("yolo4-tiny")


# --- weights -------------------------------------------------------------------------------------------------------


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """The content of a weights file of a network that is shipped under the name `tiny`."""
    (tmp_path / "presets" / "darknet").mkdir(parents=True)
    (tmp_path / "presets" / "darknet" / "tiny.cfg").write_text(CFG)
    monkeypatch.setattr(catalog, "presets_dir", lambda: tmp_path / "presets")
    num_values = (num_weight_bytes(parse_cfg(CFG, "tiny.cfg")) - 20) // 4
    return WeightsHeader().pack() + b"\0\0\0\x3f" * num_values


def test_weights_get_their_name_when_every_array_is_correct(served, network, tmp_path):
    entry = entry_of("tiny", network)
    served[entry.url] = network
    fetch_weights(entry, tmp_path / "x.weights")
    assert (tmp_path / "x.weights").read_bytes() == network


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda content: content[:-4], "4 bytes too short"),
        (lambda content: content + b"1234", "4 bytes too long"),
        (lambda content: content[:-4] + b"\0\0\xc0\x7f", "not finite|NaN|nan"),
        (lambda content: b"<html>" + content[6:], "version|header|no .weights"),
    ],
)
def test_damaged_weights_never_get_their_name(served, network, tmp_path, damage, words):
    entry = entry_of("tiny", network)
    served[entry.url] = damage(network)
    with pytest.raises(DetectorError, match=words):
        fetch_weights(entry, tmp_path / "x.weights")
    assert not (tmp_path / "x.weights").exists()


def test_file_of_the_first_layers_is_checked_as_such(served, network, tmp_path):
    first = network[: 20 + 4 * (4 + 4 * 3)]
    entry = entry_of("tiny", first, num_layers=1)
    served[entry.url] = first
    fetch_weights(entry, tmp_path / "x.conv.1")
    served[entry.url] = first[:-8]
    with pytest.raises(DetectorError, match="it is damaged or belongs to another network"):
        fetch_weights(entry, tmp_path / "y.conv.1")


def test_header_is_checked_where_the_network_is_not_shipped(served, network, tmp_path):
    entry = entry_of("unshipped", network)
    served[entry.url] = network
    fetch_weights(entry, tmp_path / "x.weights")
    served[entry.url] = b"<!doctype html>" * 20
    with pytest.raises(DetectorError):
        fetch_weights(entry, tmp_path / "y.weights")


# --- data sets -----------------------------------------------------------------------------------------------------


def zipped(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        for name, content in files.items():
            made.writestr(f"folder/{name}", content)
    return buffer.getvalue()


@pytest.fixture
def data_set(served: dict[str, bytes]) -> PublishedDataSet:
    served.update({"https://x/one.zip": zipped(a=b"a" * 50), "https://x/two.zip": zipped(b=b"b", c=b"c")})
    archives = tuple(PublishedArchive(url, len(content)) for url, content in served.items())
    return PublishedDataSet("set", "page", "licence", archives)


def test_data_set_appears_with_all_its_files(data_set, tmp_path):
    seen: list[int] = []
    fetch_data_set(data_set, tmp_path / "data" / "set", seen.append)
    files = {p.relative_to(tmp_path / "data").as_posix() for p in (tmp_path / "data").rglob("*") if p.is_file()}
    assert files == {"set/folder/a", "set/folder/b", "set/folder/c"}
    assert seen[-1] == data_set.num_bytes
    assert seen == sorted(seen)
    with pytest.raises(DetectorError, match=r"set exists; remove it, or name another place with --out"):
        fetch_data_set(data_set, tmp_path / "data" / "set")


def test_description_of_a_data_set_is_written_beside_its_folder(data_set, tmp_path):
    coco = replace(data_set, name="coco2017")
    fetch_data_set(coco, tmp_path / "data" / "coco2017")
    described = (tmp_path / "data" / "coco2017.yaml").read_text()
    assert described == (Path(__file__).parents[2] / "data" / "coco2017.yaml").read_text()
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "coco2017.yaml").write_text("mine")
    fetch_data_set(coco, tmp_path / "own" / "coco2017")
    assert (tmp_path / "own" / "coco2017.yaml").read_text() == "mine"
    fetch_data_set(coco, tmp_path / "other" / "name")
    assert [p.name for p in (tmp_path / "other").iterdir()] == ["name"]


def test_data_set_with_a_damaged_archive_does_not_appear_and_can_be_retried(data_set, served, tmp_path):
    good = served["https://x/two.zip"]
    served["https://x/two.zip"] = b"no archive"
    with pytest.raises(DetectorError, match=r"two.zip cannot be unpacked, it is damaged or no archive"):
        fetch_data_set(data_set, tmp_path / "set")
    assert not (tmp_path / "set").exists()
    served["https://x/two.zip"] = good
    fetch_data_set(data_set, tmp_path / "set")
    assert (tmp_path / "set" / "folder" / "c").read_bytes() == b"c"
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


def test_archive_that_unpacks_to_too_many_bytes_is_rejected(data_set, served, tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("zeros", bytes(1_000_000))
    served["https://x/one.zip"] = buffer.getvalue()
    with pytest.raises(DetectorError, match="holds more than"):
        fetch_data_set(data_set, tmp_path / "set")


# --- the command ---------------------------------------------------------------------------------------------------


def test_command_lists_and_downloads_weights(served, network, tmp_path, monkeypatch, capsys):
    entry = entry_of("tiny", network, ap50=12.5, measured_at=32, test_set="a set")
    monkeypatch.setattr(catalog, "published", lambda: {"tiny": entry})
    served[entry.url] = network
    monkeypatch.chdir(tmp_path)
    assert run(["download"]) == 0
    printed = capsys.readouterr()
    assert re.fullmatch(r"tiny +0\.0 MB  AP50 12\.5 at 32 \(a set\)\n", printed.out)
    assert run(["download", "tiny"]) == 0
    printed = capsys.readouterr()
    assert printed.out == "weights/tiny.weights\n"
    assert printed.err == "tiny: page\nlicence: licence\n"
    assert (tmp_path / "weights" / "tiny.weights").read_bytes() == network
    (tmp_path / "folder").mkdir()
    for output, expected in (("folder", "folder/tiny.weights"), ("other.weights", "other.weights")):
        assert run(["download", "tiny", "--output", output, "-q"]) == 0
        assert capsys.readouterr() == (f"{expected}\n", "")
        assert (tmp_path / expected).is_file()
    assert run(["download", "big"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert run(["download", "tiny", "tiny"]) == 2


def test_command_downloads_a_data_set_into_data(data_set, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(catalog, "published", lambda: {"set": data_set})
    monkeypatch.chdir(tmp_path)
    assert run(["download", "set", "-q"]) == 0
    assert capsys.readouterr().out == "data/set\n"
    assert (tmp_path / "data" / "set" / "folder" / "a").is_file()


def test_yolox_file_is_read_whole_before_it_gets_its_name(served, tmp_path, monkeypatch):
    monkeypatch.setattr("detector.models.published_weights.COCO_CLASS_NAMES", ("a", "b"))
    nano = Yolox(config_of_size("nano"), 2)
    save_yolox_file(tmp_path / "given.pth", nano)
    content = (tmp_path / "given.pth").read_bytes()
    entries = catalog.published()
    small, other = entries["yolox-nano"], entries["yolox-s"]
    served.update({small.url: content, other.url: content})
    fetch_weights(small, tmp_path / "yolox_nano.pth")
    assert (tmp_path / "yolox_nano.pth").read_bytes() == content
    with pytest.raises(DetectorError, match="expected the weights of yolox-s with 2 classes, got yolox-nano"):
        fetch_weights(other, tmp_path / "yolox_s.pth")
    served[small.url] = content[:-1000]
    with pytest.raises(DetectorError, match="truncated or damaged"):
        fetch_weights(small, tmp_path / "cut.pth")
    assert not (tmp_path / "yolox_s.pth").exists()
    assert not (tmp_path / "cut.pth").exists()
