"""Data sets and images in a bucket: fsspec's file system in memory, and moto's S3 server on the loopback interface."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from detector.cli.main import run
from detector.config.schema import config_to_plain, load_config
from detector.data.loader import BatchRange, LoaderConfig, StreamSampler, TrainingSamples, training_batches
from detector.errors import ConfigError, MediaError
from detector.io import addresses, remote
from detector.media.images import load_image
from detector.models.checkpoint import load_model_file, save_model
from detector.structures.canvas import Canvas
from detector.tasks.detection_config import DetectionConfig
from detector.tasks.detection_model import load_detection, load_model, read_split
from detector.tasks.task import changed_config, load_experiment


def data_override(root: Path | str, *keys: str) -> str:
    """Return the override that names the splits of a drawn data set, with more keys."""
    splits = [
        f"{name}: {{annotations: '{root}/annotations/{name}.json', images: '{root}/images/{name}'}}"
        for name in ("train", "val")
    ]
    return f"data={{name: coco, {', '.join((*splits, *keys))}}}"


@dataclass(frozen=True)
class Bucket:
    """Bucket with the drawn data set of the tests.

    Attributes:
        system: its file system.
        root: its address.
        local: the same data set as files.
        cache: a folder for the cache.
    """

    system: Any
    root: str
    local: Path
    cache: Path

    def data(self, *keys: str) -> str:
        """Return the override that names the data set in the bucket, with more keys."""
        return data_override(self.root, f"remote_cache: '{self.cache}'", *keys)

    @property
    def allowed(self) -> str:
        return self.data("allow_remote: true")


def serve_s3(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Callable[[], None]]:
    """Start moto's server and return a file system of s3fs on it, and a function that stops it."""
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()  # the server of an earlier test had another port
    return fsspec.filesystem("s3", skip_instance_cache=True), server.stop


@pytest.fixture(params=["memory", "s3"])
def bucket(
    request: pytest.FixtureRequest, tiny_shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Bucket]:
    monkeypatch.setitem(addresses.PACKAGES, "memory", "fsspec")
    monkeypatch.setattr(remote, "_permitted", {})
    monkeypatch.setattr(remote, "_FIRST_WAIT_S", 0.001)
    remote._file_system.cache_clear()
    system, stop = fsspec.filesystem("memory"), lambda: None
    if request.param == "s3":
        system, stop = serve_s3(monkeypatch)
        system.mkdir("bucket")
    for path in sorted(tiny_shapes.rglob("*")):
        if path.is_file():
            system.pipe(f"bucket/{path.relative_to(tiny_shapes).as_posix()}", path.read_bytes())
    yield Bucket(system, f"{request.param}://bucket", tiny_shapes, tmp_path / "cache")
    remote._file_system.cache_clear()
    system.rm("bucket", recursive=True)
    stop()


def test_a_split_in_a_bucket_is_that_of_the_files(bucket: Bucket) -> None:
    config = load_detection("base", [bucket.allowed])
    bucket.system.rm(f"bucket/images/train/{next((bucket.local / 'images/train').iterdir()).name}")
    found = read_split(config, "train")
    assert ("image file missing", 1) in [(problem.kind, problem.count) for problem in found.problems]
    expected = read_split(load_detection("base", [data_override(bucket.local)]), "train")
    assert set(found.file_names) < set(expected.file_names)
    val = read_split(config, "val")
    index = read_split(load_detection("base", [bucket.allowed, f"data.index={bucket.cache}-index"]), "val")
    assert index.digest() == val.digest()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_from_a_bucket_are_those_of_the_files(bucket: Bucket, num_workers: int) -> None:
    def batches(data: str) -> list[np.ndarray]:
        config = load_detection("mish-n", [data])
        split = read_split(config, "train")
        canvas = Canvas((64, 64), 3, "letterbox")
        samples = TrainingSamples(split, canvas, config.augment, seed=0, cache_mb=0)
        sampler = StreamSampler(len(split), 4, 0, BatchRange(0, 4, 3))
        loader = LoaderConfig(batch_size=4, workers=num_workers)
        return [batch.images.numpy() for batch in training_batches(samples, sampler, loader)]

    expected = batches(data_override(bucket.local))
    for _ in range(2):  # with an empty cache, and with a warm one
        for ours, theirs in zip(batches(bucket.allowed), expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert any(bucket.cache.rglob("*.object"))


def test_an_image_that_cannot_be_read_is_replaced_and_named(bucket: Bucket) -> None:
    config = load_detection("mish-n", [bucket.allowed])
    split = read_split(config, "train")
    samples = TrainingSamples(split, Canvas((64, 64), 3, "letterbox"), config.augment, seed=0, cache_mb=0)
    bucket.system.rm(f"bucket/images/train/{split.file_names[0]}")
    skipped: list[str] = []
    samples.source(0, skipped=skipped)
    assert skipped == [
        f"{bucket.root}/images/train/{split.file_names[0]} cannot be read: there is no such file; check the address"
    ]


def test_predict_and_evaluate_read_the_bucket(
    bucket: Bucket, random_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = str(random_weights), str(tmp_path / "out")
    common = [model, f"{bucket.root}/images/val", "--no-pictures", "--out", out]
    assert run(["predict", *common]) == 2
    assert f"{bucket.root}/images/val: this would use the network; allow it by --allow-url" in capsys.readouterr().err
    assert run(["predict", *common, "--allow-url"]) == 0
    capsys.readouterr()
    records = json.loads((tmp_path / "out/predictions.json").read_text())
    assert [Path(record["source"]).name for record in records] == sorted(
        path.name for path in (bucket.local / "images/val").iterdir()
    )
    assert run(["evaluate", model, bucket.data()]) == 2
    told = capsys.readouterr().err
    assert "would use the network; allow it by data.allow_remote=true on the command line" in told
    assert run(["evaluate", model, bucket.data(), "data.allow_remote=true", "--json", "--out", f"{out}-1"]) == 0
    remote_document = json.loads(capsys.readouterr().out)
    assert run(["evaluate", model, data_override(bucket.local), "--json", "--out", f"{out}-2"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["results"]["sha256"] == remote_document["results"]["sha256"]
    assert document["ground_truth"]["sha256"] == remote_document["ground_truth"]["sha256"]
    assert run(["check", bucket.allowed]) in (0, 3)
    assert "cannot be read" not in capsys.readouterr().out


def test_parts_of_a_bucket_are_those_of_the_files(bucket: Bucket, random_weights: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    common = ["--annotations", str(bucket.local / "annotations/val.json"), "--format", "coco", "--shard", "0/1"]
    for name, source in (("a", f"{bucket.root}/images/val"), ("b", str(bucket.local / "images/val"))):
        words = [str(random_weights), source, *common, "--out", str(tmp_path / name), "--allow-url"]
        assert run(["predict", *words]) == 0
        assert run(["results", "merge", str(tmp_path / name), "--out", str(tmp_path / f"{name}.json")]) == 0
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


@pytest.mark.parametrize("bucket", ["memory"], indirect=True)
def test_only_the_users_own_words_give_the_permission(bucket: Bucket, random_weights: Path, tmp_path: Path) -> None:
    own = load_detection("base", [bucket.allowed])
    assert own.data.allow_remote  # type: ignore[union-attr]
    given = load_detection("base", [bucket.data(), "data.allow_remote=true"])
    assert given == own
    section = {key: value for key, value in config_to_plain(own)["data"].items() if value is not None}  # type: ignore[attr-defined]

    def refused(config: Any) -> None:
        assert not config.data.allow_remote
        with pytest.raises(ConfigError, match="because a file cannot"):
            read_split(config, "val")

    # A model file, whose configuration says yes, as it stands and with other overrides.
    stranger = tmp_path / "stranger.safetensors"
    file = load_model_file(random_weights)
    save_model(stranger, replace(file, config={**file.config, "data": section}))
    refused(load_model(stranger).config)
    refused(load_model(stranger, ["evaluate.iou=0.6"]).config)
    assert load_model(stranger, ["data.allow_remote=true"]).config.data.allow_remote  # type: ignore[union-attr]
    # A configuration, and a file that describes the data.
    (tmp_path / "whole.yaml").write_text(json.dumps({"base": "base", "data": section}))
    refused(load_detection(str(tmp_path / "whole.yaml")))
    (tmp_path / "data.yaml").write_text(json.dumps({"name": "coco", **section}))
    refused(load_detection("base", [f"data={tmp_path / 'data.yaml'}"]))
    # The overrides of a study.
    refused(load_experiment("base", [bucket.allowed], are_own=False))
    refused(load_config(DetectionConfig, "base", [bucket.data(), "data.allow_remote=true"], are_own=False))
    # Python: what the caller gives counts, a file that it names does not.
    base = load_detection("base")
    assert changed_config(base, section, {}, "test").data.allow_remote  # type: ignore[union-attr]
    refused(changed_config(base, tmp_path / "data.yaml", {}, "test"))
    refused(changed_config(load_model(stranger).config, None, {"evaluate": {"iou": 0.6}}, "test"))
    # A name in an annotation file leads nowhere.
    remote.permit(f"{bucket.root}/images", None)
    with pytest.raises(MediaError, match="there is no such file"):
        load_image(Path(bucket.root) / "annotations/val.json")


@pytest.mark.parametrize("bucket", ["memory"], indirect=True)
def test_messages_about_a_configuration_hold_no_secret(bucket: Bucket, capsys: pytest.CaptureFixture[str]) -> None:
    for place in ("s3://key:secret@bucket/a.json", "https://host/a.json?sig=secret"):
        words = [f"data.val.annotations={place}", "data.val.images=s3://bucket/images", "data.name=coco"]
        assert run(["check", *words, "data.allow_remote=true"]) == 2
        told = capsys.readouterr().err
        assert "secret" not in told
        assert "expected an address without user, password, query" in told
    assert run(["predict", "s3://key:secret@bucket/a.jpg", "--allow-url"]) == 2
    assert "secret" not in capsys.readouterr().err
