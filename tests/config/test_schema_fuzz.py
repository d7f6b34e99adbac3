"""Mutated configurations: any file gives a configuration or a `ConfigError`."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from detector.config.nodes import presets_dir
from detector.errors import ConfigError, DatasetError
from detector.tasks.detection_config import DetectionConfig
from detector.tasks.task import TaskConfig, load_experiment

SEEDS = [path.read_bytes() for path in sorted(presets_dir().glob("*.yaml"))] + [
    b"data:\n  name: coco\n  train: {annotations: a.json, images: img}\n  val: {annotations: b.json, images: img}\n",
    b"base: base.yaml\nmodel:\n  activation: {name: leaky, slope: 0.2}\n  backbone: csp_darknet\n"
    b"optimizer: {name: sgd, momentum: 0.9}\nschedule: {name: steps, milestones: [0.5, 0.9]}\n"
    b"input: {size: [320, 640]}\n",
    b"train: {epochs: 3, weights: w.pt, project: ~/runs, run_name: 'x'}\npredict: {classes: [1, 2]}\ndevice: cpu\n",
]
PIECES = [
    *(
        b"1e-3",
        b".nan",
        b"-.inf",
        b"0x" + b"f" * 40,
        b"9" * 5000,
        b"1:30",
        b"2020-01-01",
        b"2020-13-01",
        b"''",
        b"null",
    ),
    *(
        b"on",
        b"no",
        b"~",
        b"~root/x",
        b"[",
        b"]",
        b"{",
        b"}",
        b"- ",
        b"? ",
        b": ",
        b"&a ",
        b"*a",
        b"<<: ",
        b"!!",
        b"!x ",
    ),
    *(b"!!python/name:os.system ", b"!!python/object/apply:os.system ['exit']", b"!!set", b"!!binary ", b"%YAML 1.2\n"),
    *(
        b"---\n",
        b"...\n",
        b"\t",
        b"\0",
        b"\xff",
        b"\xef\xbb\xbf",
        b"\xed\xa0\x80",
        b'"\\0"',
        b'"\\ud800"',
        b"|\n",
        b">-\n",
    ),
    *(
        b"base: ",
        b"base: mish-n\n",
        b"name: ",
        b"name: yolo\n",
        b"model: ",
        b"model.yaml",
        b"../",
        b"/etc/passwd",
        b"x" * 300,
    ),
    *(
        b"  " * 30,
        b"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
        b"\r",
        b"\n",
        b"#",
        b"''''",
        b'"',
        b"@",
        b"`",
        b"\xc2\x85",
    ),
    *(
        b"-1",
        b"0",
        b"1e999",
        b"-0.0",
        b"1_000",
        b"true",
        b"size: ",
        b"lr: ",
        b"train: ",
        b"augment: ",
        b"albumentations: ",
    ),
]


def mutated(random_: random.Random) -> bytes:
    """Return a seed with some of its bytes, lines and tokens changed, dropped, doubled or replaced."""
    content = bytearray(random_.choice(SEEDS))
    for _ in range(random_.randint(1, 6)):
        at = random_.randint(0, len(content))
        change = random_.randrange(7)
        if change == 0:
            content[at:at] = random_.choice(PIECES)
        elif change == 1:
            content[at : at + random_.randint(1, 12)] = random_.choice(PIECES)
        elif change == 2:
            del content[at : at + random_.randint(1, 20)]
        elif change == 3:
            content[at:at] = bytes(random_.randrange(256) for _ in range(random_.randint(1, 4)))
        elif change == 4:
            lines = bytes(content).splitlines(keepends=True) or [b""]
            other = random_.choice(SEEDS).splitlines(keepends=True)
            lines.insert(random_.randint(0, len(lines)), random_.choice([*other, *lines]))
            content = bytearray(b"".join(lines))
        elif change == 5:  # a value of another kind
            lines = bytes(content).splitlines() or [b""]
            line = random_.randrange(len(lines))
            lines[line] = lines[line].partition(b":")[0] + b": " + random_.choice(PIECES)
            content = bytearray(b"\n".join(lines))
        else:
            content = content[:at]
    return bytes(content)


def outcome(name: str, *overrides: str) -> TaskConfig | ConfigError | DatasetError:
    """Return the configuration of a file or its error; `data: FOLDER` may name no data set. Other errors are raised."""
    try:
        return load_experiment(name, overrides)
    except (ConfigError, DatasetError) as error:
        return error


def fuzz(folder: Path, seed: int, num_files: int) -> tuple[int, int]:
    """Load mutated files; return the numbers of files read and rejected."""
    random_ = random.Random(seed)
    path = folder / "fuzzed.yaml"
    (folder / "base.yaml").write_text("train: {epochs: 1}\n", encoding="utf-8")
    num_read = num_refused = 0
    for number in range(num_files):
        content = mutated(random_)
        path.write_bytes(content)
        started_s = time.process_time()
        try:
            found = outcome(str(path))
        except BaseException as error:
            raise AssertionError(f"file {number} of seed {seed} raises {error!r}: {content!r}") from error
        if isinstance(found, (ConfigError, DatasetError)):
            num_refused += 1
            assert 0 < len(str(found).strip()) < 20_000, content
        else:
            num_read += 1
        assert time.process_time() - started_s < 2, content
    return num_read, num_refused


def test_two_thousand_mutated_files_are_read_or_rejected(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    num_read, num_refused = fuzz(tmp_path, seed=0, num_files=2_000)
    assert num_read > 50  # the mutations reach past the parser
    assert num_refused > 500


@pytest.mark.nightly
def test_fifty_thousand_mutated_files_are_read_or_rejected(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed in range(1, 11):
        fuzz(tmp_path, seed, num_files=5_000)


def test_mutated_overrides_are_read_or_rejected():
    random_ = random.Random(1)
    keys = [
        "train.epochs",
        "optimizer.lr",
        "model",
        "model.activation",
        "data",
        "input.size",
        "augment.albumentations",
        "x",
    ]
    num_read = 0
    for _ in range(500):
        value = b"".join(random_.choices(PIECES, k=random_.randint(1, 2))).decode("utf-8", "surrogateescape")
        found = outcome("mish-n", f"{random_.choice(keys)}={value}")
        num_read += isinstance(found, DetectionConfig)
        assert isinstance(found, DetectionConfig) or str(found)
    assert num_read > 5
