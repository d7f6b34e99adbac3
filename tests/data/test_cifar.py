from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torchvision import datasets

from detector.data.cifar import CifarSet
from detector.errors import DatasetError
from detector.structures.canvas import Canvas

CANVAS = Canvas((32, 32), 3, "letterbox")


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set of the form of CIFAR-10 with three images to train on and two to validate on."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()

    def write(name: str, content: Any) -> list[str]:
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        return [name, hashlib.md5(data).hexdigest()]

    rng = np.random.default_rng(0)

    def batch(labels: list[int]) -> dict[str, Any]:
        return {"data": rng.integers(0, 256, (len(labels), 3072)).astype(np.uint8), "labels": labels}

    monkeypatch.setattr(datasets.CIFAR10, "train_list", [write("data_batch_1", batch([9, 0, 4]))])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [write("test_batch", batch([1, 1]))])
    name, digest = write("batches.meta", {"label_names": list("abcdefghij")})
    monkeypatch.setattr(datasets.CIFAR10, "meta", {"filename": name, "key": "label_names", "md5": digest})
    return tmp_path


def test_the_files_are_read_as_torchvision_reads_them(cifar: Path) -> None:
    data = CifarSet(CifarSet.Config(cifar))
    train, val = data.split("train", CANVAS), data.split("val", CANVAS)
    assert train.labels.tolist() == [9, 0, 4]
    assert val.labels.tolist() == [1, 1]
    assert train.class_names == val.class_names == tuple("abcdefghij")
    raw = pickle.loads((cifar / "cifar-10-batches-py" / "data_batch_1").read_bytes())["data"]
    assert np.array_equal(train.images, raw.reshape(3, 3, 32, 32).transpose(0, 2, 3, 1))
    assert data.split("train", Canvas((64, 64), 1, "letterbox")).images.shape == (3, 64, 64, 1)


def test_a_file_that_was_changed_is_refused_before_it_is_unpickled(cifar: Path) -> None:
    path = cifar / "cifar-10-batches-py" / "data_batch_1"
    path.write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    with pytest.raises(DatasetError, match="expected cifar-10-batches-py in it, complete"):
        CifarSet(CifarSet.Config(cifar)).split("train", CANVAS)


@pytest.mark.parametrize("num_classes", [10, 100])
def test_missing_files_are_reported_and_never_downloaded(tmp_path: Path, num_classes: Any) -> None:
    with pytest.raises(DatasetError, match="unpack the archive of"):
        CifarSet(CifarSet.Config(tmp_path, num_classes)).split("train", CANVAS)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DatasetError, match="train and val, got 'test'"):
        CifarSet(CifarSet.Config(tmp_path, num_classes)).split("test", CANVAS)
