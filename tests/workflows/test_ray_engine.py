"""Ray starts many processes, so these tests run where Ray is installed; the rest of the engine is that of the parts."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from detector.cli.main import run
from detector.workflows import ray_engine


def test_without_ray_the_extra_is_named(
    random_weights: Path,
    tiny_shapes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("pyarrow")
    monkeypatch.setitem(sys.modules, "ray.data", None)
    words = [str(random_weights), str(tiny_shapes / "images/val"), "--out", str(tmp_path / "parts")]
    assert run(["predict", *words, "--engine", "ray"]) == 2
    assert "pip install 'detector-toolkit[ray]'" in capsys.readouterr().err


@pytest.fixture
def local_ray() -> Iterator[None]:
    """Limit the Ray that the command starts to two processes, and stop it after the test."""
    pytest.importorskip("pyarrow")
    pytest.importorskip("ray.data")
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ray_engine._LOCAL, "num_cpus", 2)
        yield
    ray.shutdown()


def test_ray_writes_the_same_parts(
    local_ray: None, random_weights: Path, tiny_shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = [
        str(random_weights),
        str(tiny_shapes / "images/train"),
        "--confidence",
        "0.00001",
        "--max-detections",
        "20",
    ]
    ids = ["--annotations", str(tiny_shapes / "annotations/train.json"), "--format", "coco", "--images-per-part", "2"]
    alone, pool = tmp_path / "alone", tmp_path / "pool"
    assert run(["predict", *common, *ids, "--out", str(alone), "--shard", "0/1"]) == 0
    assert run(["predict", *common, *ids, "--out", str(pool), "--shard", "0/3"]) == 0  # Ray continues with the rest
    assert run(["predict", *common, *ids, "--out", str(pool), "--engine", "ray", "--workers", "2"]) == 0
    assert "12 images, 0 skipped: 4 parts written, 2 kept, of 6" in capsys.readouterr().err
    for folder in (alone, pool):
        assert run(["results", "merge", str(folder), "--out", str(folder / "merged.json")]) == 0
    assert (pool / "merged.json").read_bytes() == (alone / "merged.json").read_bytes()
