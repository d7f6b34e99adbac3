from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from string import Template
from typing import Any

import pytest

from detector.cli.main import run
from detector.errors import ConfigError, DetectorError
from detector.io.files import write_whole
from detector.workflows.merged_parts import merge_parts
from detector.workflows.prediction_parts import Manifest, PartCounts, _suitable_size, read_manifest


@pytest.fixture
def predict(random_weights: Path, tiny_shapes: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Return a function that predicts the 12 training images in parts of 2; it returns the exit code."""
    pytest.importorskip("pyarrow")
    annotations = ("--annotations", str(tiny_shapes / "annotations/train.json"), "--format", "coco")

    def predict(folder: Path, *words: str, ids: bool = True, part: int = 2) -> int:
        given = (
            str(random_weights),
            str(tiny_shapes / "images/train"),
            "--out",
            str(folder),
            "--quiet",
            "--confidence",
            "0.00001",
            "--max-detections",
            "20",
        )
        sized = ("--images-per-part", str(part)) if part else ()
        return run(["predict", *given, *(annotations if ids else ()), *sized, *words])

    return predict


def merged(folder: Path, *others: Path, name: str = "merged.json") -> bytes:
    target = folder.parent / name
    assert run(["results", "merge", str(folder), *map(str, others), "--out", str(target), "--quiet"]) == 0
    return target.read_bytes()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("part-*"))


def manifest_of(num_images: int, images_per_part: int) -> Manifest:
    return Manifest("a", {"select": {"iou": 0.5}}, num_images, "b", images_per_part, ["x"], [1], None)


@pytest.mark.parametrize("num_shards", [1, 2, 3, 7])
def test_shards_divide_the_parts(num_shards: int) -> None:
    manifest = manifest_of(11, 2)
    parts = [part for i in range(num_shards) for part in manifest.parts_of((i, num_shards))]
    assert sorted(parts) == list(range(6))
    assert [i for part in range(6) for i in manifest.images_of(part)] == list(range(11))


def test_size_of_a_part_depends_on_the_number_of_images_only() -> None:
    assert [_suitable_size(num) for num in (1, 12, 2048, 2049, 100_000, 10**9)] == [8, 8, 8, 16, 392, 1000]


def test_manifest_of_another_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DetectorError, match=r"expected a folder of prediction parts with manifest\.json"):
        read_manifest(tmp_path)
    for content in ('{"format": "prediction parts 1"}', "[]", '{"format": "x", "num_images": 3}'):
        (tmp_path / "manifest.json").write_text(content)
        with pytest.raises(DetectorError, match="expected a manifest of the format"):
            read_manifest(tmp_path)


def test_counts_add_up() -> None:
    assert PartCounts(1, 2, 3) + PartCounts(10, 20, 30) == PartCounts(11, 22, 33)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--shard", "2/2"], "expected I/N with I from 0 to N - 1"),
        (["--shard", "1"], "expected I/N"),
        (["--workers", "2"], "belong to --engine ray"),
        (["--images-per-part", "2"], "belongs to --shard or --engine"),
        (["--shard", "0/1"], "give --out FOLDER"),
        (["--shard", "0/1", "--engine", "ray", "--out", "x"], "expected --shard or --engine, got both"),
        (["--shard", "0/1", "--format", "csv", "--out", "x"], "expected coco or nothing"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = run(["predict", "photos/", *words])
    except SystemExit as end:
        code = int(end.code or 0)
    assert code == 2
    assert message in capsys.readouterr().err


def test_merge_needs_folders_and_a_known_suffix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        (["mrge", "a", "--out", "b.json"], "did you mean 'merge'"),
        (["merge", "--out", "b.json"], "expected folders of parts"),
        (["merge", "a", "--out", "b.csv"], "ends in .json or .parquet"),
        (["merge", "a"], "ends in .json or .parquet"),
    ):
        assert run(["results", *words]) == 2
        assert message in capsys.readouterr().err


def test_merged_parts_of_any_number_of_shards_equal_the_results_file(
    predict: Callable[..., int], random_weights: Path, tiny_shapes: Path, tmp_path: Path
) -> None:
    whole = tmp_path / "whole"
    words = [
        str(random_weights),
        str(tiny_shapes / "images/train"),
        "--out",
        str(whole),
        "--quiet",
        "--confidence",
        "0.00001",
        "--max-detections",
        "20",
    ]
    assert (
        run(["predict", *words, "--annotations", str(tiny_shapes / "annotations/train.json"), "--format", "coco"]) == 0
    )
    expected = (whole / "results.json").read_bytes()
    assert len(json.loads(expected)) > 12
    for num_shards in (1, 2, 5):
        folder = tmp_path / f"parts{num_shards}"
        assert [predict(folder, "--shard", f"{i}/{num_shards}") for i in range(num_shards)] == [0] * num_shards
        assert merged(folder) == expected
    apart = tmp_path / "a", tmp_path / "b"
    assert [predict(folder, "--shard", f"{i}/2") for i, folder in enumerate(apart)] == [0, 0]
    assert merged(*apart) == expected


def test_job_array_of_the_guide_writes_all_parts_and_a_lost_task_is_repeated(
    predict: Callable[..., int],
    random_weights: Path,
    tiny_shapes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    guide = (Path(__file__).parents[2] / "docs/guides/more-machines.md").read_text(encoding="utf-8")
    script = guide[guide.index("#SBATCH --array=") :].partition("```")[0]
    [line] = [line for line in script.splitlines() if line.startswith("detector predict")]
    own = {
        "best.safetensors": random_weights,
        "photos/": tiny_shapes / "images/train",
        "/shared/parts": tmp_path / "ours",
    }

    def start(task: int, count: int) -> None:
        words = Template(line).substitute(SLURM_ARRAY_TASK_ID=task, SLURM_ARRAY_TASK_COUNT=count).split()[1:]
        settings = ("--confidence", "0.00001", "--max-detections", "20", "--images-per-part", "2", "--quiet")
        assert run([*(str(own.get(word, word)) for word in words), *settings]) == 0

    for task in (0, 2):  # the node of task 1 is lost before it has written anything
        start(task, 3)
    assert run(["results", "merge", str(tmp_path / "ours"), "--out", str(tmp_path / "x.parquet")]) == 1
    assert "missing" in capsys.readouterr().err
    start(1, 3)
    assert predict(tmp_path / "theirs", "--shard", "0/1", ids=False) == 0
    files = [
        (tmp_path / folder / name).read_bytes() for folder in ("ours", "theirs") for name in names(tmp_path / folder)
    ]
    assert len(files) == 12
    assert files[:6] == files[6:]


def test_merged_parquet_file_has_a_row_for_each_image(predict: Callable[..., int], tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    folder = tmp_path / "parts"
    assert predict(folder, "--shard", "0/1", ids=False, part=5) == 0
    merged(folder, name="merged.parquet")
    rows = pq.read_table(tmp_path / "merged.parquet").to_pylist()
    assert [row["index"] for row in rows] == list(range(12))
    assert {(row["height"], row["width"], row["error"], row["image_id"]) for row in rows} == {(64, 64, None, None)}
    best = rows[0]["detections"][0]
    assert list(best) == ["label", "category_id", "name", "score", "x1", "y1", "x2", "y2"]
    assert best["name"] == ("circle", "square", "triangle")[best["label"]]
    assert run(["results", "merge", str(folder), "--out", str(tmp_path / "x.json")]) == 1  # no ids
    assert not (tmp_path / "x.json").exists()


def test_finished_parts_are_kept_and_damaged_ones_written_again(
    predict: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "parts"
    assert predict(folder, "--shard", "0/2") == 0
    assert names(folder) == [f"part-{part:06d}.parquet" for part in (0, 2, 4)]
    assert predict(folder, "--shard", "0/1", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["num_written"], printed["num_kept"], printed["num_parts"]) == (3, 3, 6)
    expected = merged(folder)
    times = {path.name: path.stat().st_mtime_ns for path in folder.glob("part-*")}
    (folder / "part-000001.parquet").write_bytes((folder / "part-000001.parquet").read_bytes()[:-9])
    (folder / "part-000003.parquet").write_bytes((folder / "part-000002.parquet").read_bytes())
    assert run(["results", "merge", str(folder), "--out", str(tmp_path / "x.json")]) == 1
    assert "part-000001.parquet is damaged" in (told := capsys.readouterr().err)
    assert "part-000003.parquet is damaged or of another manifest" in told
    assert predict(folder, "--shard", "0/1") == 0
    assert merged(folder) == expected
    assert all(
        times[f"part-{part:06d}.parquet"] == (folder / f"part-{part:06d}.parquet").stat().st_mtime_ns
        for part in (0, 2, 4, 5)
    )


def test_missing_and_repeated_parts_are_refused(
    predict: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b, target = tmp_path / "a", tmp_path / "b", str(tmp_path / "x.json")
    assert predict(a, "--shard", "0/2") == 0
    assert run(["results", "merge", str(a), "--out", target]) == 1
    assert "part-000001.parquet is missing, part-000003" in capsys.readouterr().err
    assert predict(b, "--shard", "0/1") == 0
    assert run(["results", "merge", str(a), str(b), "--out", target]) == 1
    assert "part-000000.parquet is repeated" in capsys.readouterr().err
    assert predict(c := tmp_path / "c", "--shard", "0/1", "--iou", "0.5") == 0
    assert run(["results", "merge", str(a), str(c), "--out", target]) == 1
    assert "settings.select.iou: 0.7 here, 0.5 there" in capsys.readouterr().err
    assert not Path(target).exists()


def test_merge_does_not_replace_a_part(
    predict: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(tmp_path / "a", "--shard", "0/1") == 0
    contents = {path: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    for name in ("part-000001.parquet", "manifest.json"):
        assert run(["results", "merge", str(tmp_path / "a"), "--out", f"{tmp_path}/b/../a/{name}"]) == 2
        assert "expected a new file, got one of the parts" in capsys.readouterr().err
    assert contents == {path: path.read_bytes() for path in (tmp_path / "a").iterdir()}


def test_folder_of_another_model_set_or_setting_is_refused(
    predict: Callable[..., int],
    random_weights: Path,
    tiny_shapes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "parts"
    assert predict(folder, "--shard", "0/6") == 0
    assert predict(folder, "--shard", "1/6", "--iou", "0.5") == 2
    assert "settings.select.iou: 0.5 here, 0.7 there; choose another folder" in capsys.readouterr().err
    assert predict(folder, "--shard", "1/6", part=3) == 2
    assert "images_per_part: 3 here, 2 there" in capsys.readouterr().err
    other = tmp_path / "other.safetensors"
    other.write_bytes(random_weights.read_bytes())
    common = [
        "--out",
        str(folder),
        "--quiet",
        "--confidence",
        "0.00001",
        "--max-detections",
        "20",
        "--images-per-part",
        "2",
        "--shard",
        "1/6",
    ]
    train = ["--annotations", str(tiny_shapes / "annotations/train.json"), "--format", "coco"]
    assert run(["predict", str(other), str(tiny_shapes / "images/train"), *common, *train]) == 0  # the same bytes
    val = [str(tiny_shapes / "images/val"), "--annotations", str(tiny_shapes / "annotations/val.json")]
    assert run(["predict", str(random_weights), *val, "--format", "coco", *common]) == 2
    assert "num_images: 6 here, 12 there; sources_sha256" in capsys.readouterr().err
    assert len(names(folder)) == 2


def test_unreadable_images_are_counted_and_named(
    predict: Callable[..., int],
    random_weights: Path,
    tiny_shapes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    photos, folder = tmp_path / "photos", tmp_path / "parts"
    photos.mkdir()
    for path in sorted((tiny_shapes / "images/train").iterdir())[:3]:
        (photos / path.name).write_bytes(path.read_bytes())
    (photos / os.fsdecode(b"a\xff.jpg")).write_bytes(b"no image")  # a name that is not UTF-8
    words = ["predict", str(random_weights), str(photos), "--out", str(folder), "--shard", "0/1"]
    assert run(words) == 0
    assert "4 images, 1 skipped: 1 part written, 0 kept, of 1" in (told := capsys.readouterr().err)
    assert "skipped: " in told
    assert run([*words, "--strict"]) == 5  # also where the part is kept
    only = [str(next(photos.glob("a*.jpg"))), "--out", str(tmp_path / "none"), "--shard", "0/1"]
    assert run(["predict", str(random_weights), *only]) == 3
    assert "none of 1 image could be read" in capsys.readouterr().err


def test_old_leftovers_of_killed_processes_are_removed(predict: Callable[..., int], tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    old, new = folder / ".part-000001.parquet.0.tmp", folder / ".part-000002.parquet.1.tmp"
    for path in (old, new):
        path.touch()
    os.utime(old, (1, 1))
    assert predict(folder, "--shard", "5/6") == 0
    assert (old.exists(), new.exists()) == (False, True)


def test_videos_and_pictures_are_refused(
    predict: Callable[..., int],
    random_weights: Path,
    draw_video: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["--out", str(tmp_path / "parts"), "--shard", "0/1"]
    assert run(["predict", str(random_weights), str(draw_video(num_frames=2)), *words]) == 2
    assert "expected images, got a video" in capsys.readouterr().err
    assert predict(tmp_path / "parts", "--shard", "0/1", "--crops") == 2
    assert "--crops: not with --shard or --engine" in capsys.readouterr().err
    assert predict(tmp_path / "parts", "--shard", "0/1", "--backend", "auto") == 2
    assert "--backend: not with --shard or --engine" in capsys.readouterr().err


def test_full_disk_leaves_no_part_and_the_command_continues(
    predict: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from detector.io import arrow_files

    folder = tmp_path / "parts"

    def fail(path: Path, content: Any) -> None:
        if path.name == "part-000002.parquet":
            raise OSError(28, "No space left on device")
        write_whole(path, content)

    monkeypatch.setattr(arrow_files, "write_whole", fail)
    assert predict(folder, "--shard", "0/1") == 1
    assert "part-000002.parquet cannot be written: No space left on device; check the disk" in capsys.readouterr().err
    monkeypatch.undo()
    assert names(folder) == ["part-000000.parquet", "part-000001.parquet"]
    assert predict(folder, "--shard", "0/1") == 0
    assert len(json.loads(merged(folder))) > 12


def killed_and_continued(
    number: int, expected: bytes, words: Callable[[Path], list[str]], fork: Callable[..., Any], root: Path
) -> None:
    """Kill a prediction at a random moment, run it again, and compare the merged parts."""
    folder, chance = root / f"killed{number}", random.Random(number)
    num_parts = chance.randint(0, 5)
    process = fork(*words(folder))
    deadline_s = time.monotonic() + 60
    while process.poll() is None and len(names(folder)) < num_parts and time.monotonic() < deadline_s:
        time.sleep(0.001)
    time.sleep(chance.uniform(0, 0.05))
    process.kill()
    process.communicate(timeout=60)
    again = fork(*words(folder))
    _, error = again.communicate(timeout=120)
    assert again.returncode == 0, error
    assert merged(folder, name=f"merged{number}.json") == expected


@pytest.fixture(scope="module")
def undisturbed(
    random_weights: Path, tiny_shapes: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[bytes, Any, Path]:
    """Return the merged result of an undisturbed run, the words of the command and a folder."""
    pytest.importorskip("pyarrow")
    root = tmp_path_factory.mktemp("killed")

    def words(folder: Path) -> list[str]:
        given = [
            str(random_weights),
            str(tiny_shapes / "images/train"),
            "--out",
            str(folder),
            "--confidence",
            "0.00001",
            "--max-detections",
            "20",
            "--quiet",
        ]
        ids = ["--annotations", str(tiny_shapes / "annotations/train.json"), "--format", "coco"]
        return ["predict", *given, *ids, "--images-per-part", "2", "--shard", "0/1"]

    assert run(words(root / "whole")) == 0
    return merged(root / "whole"), words, root


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="the system has no SIGKILL")
@pytest.mark.parametrize("number", range(2))
def test_killed_prediction_continues_with_every_image_once(
    number: int, undisturbed: tuple[bytes, Any, Path], fork: Callable[..., Any]
) -> None:
    expected, words, root = undisturbed
    killed_and_continued(number, expected, words, fork, root)


@pytest.mark.nightly
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="the system has no SIGKILL")
@pytest.mark.parametrize("number", range(2, 22))
def test_prediction_killed_at_many_moments_continues(
    number: int, undisturbed: tuple[bytes, Any, Path], fork: Callable[..., Any]
) -> None:
    expected, words, root = undisturbed
    killed_and_continued(number, expected, words, fork, root)


def test_without_pyarrow_the_extra_is_named(
    random_weights: Path,
    tiny_shapes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    words = [str(random_weights), str(tiny_shapes / "images/train"), "--out", str(tmp_path / "x"), "--shard", "0/1"]
    assert run(["predict", *words]) == 2
    assert "pip install 'detector-toolkit[arrow]'" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
    with pytest.raises(ConfigError, match="results merge: pyarrow cannot be imported"):
        merge_parts([tmp_path], tmp_path / "x.json")
