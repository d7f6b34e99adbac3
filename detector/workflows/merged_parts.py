"""One COCO results file or one Parquet file from the parts of a prediction, with every image exactly once."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import torch

from detector.config.schema import differences
from detector.errors import ConfigError, DetectorError
from detector.io.arrow_files import detection_schema, read_parquet, require_arrow, write_parquet
from detector.io.files import write_whole
from detector.structures.types import Detections
from detector.workflows.prediction_parts import MANIFEST, Manifest, PartCounts, part_name, read_manifest

SUFFIXES = (".json", ".parquet")
_NUM_LISTED = 10


def merge_parts(folders: Sequence[Path], target: Path) -> PartCounts:
    """Write the predictions of one or more folders of parts as one file, in the order of the images.

    Args:
        folders: folders with parts of one manifest, such as those of machines that share no disk.
        target: a COCO results file (.json), equal to the one that `detector predict --format coco` writes, or a
            Parquet file (.parquet); an existing file is replaced.

    Raises:
        ConfigError: pyarrow is missing, or the suffix is another one.
        DetectorError: the folders have different manifests, a part is missing, damaged or repeated, the images have no
            ids for a COCO file, or the disk refuses.
    """
    require_arrow("results merge")
    if target.suffix not in SUFFIXES:
        raise ConfigError(f"--out: expected a file that ends in {' or '.join(SUFFIXES)}, got {target}; change the name")
    manifest = _common_manifest(folders)
    paths, counts = _whole_parts(folders, manifest)
    if target.resolve() in {path.resolve() for path in (*paths, *(folder / MANIFEST for folder in folders))}:
        raise ConfigError(f"--out {target}: expected a new file, got one of the parts; choose another name")
    if target.suffix == ".parquet":
        metadata = {"manifest": manifest.digest, "num_unread": str(counts.num_unread)}
        write_parquet(
            target, (_checked(path, part, manifest) for part, path in enumerate(paths)), detection_schema(), metadata
        )
        return counts
    if manifest.listed_category_ids is None:
        raise DetectorError(
            f"{folders[0]}: expected images with ids for a COCO results file, got images without; predict with "
            "--annotations FILE and --format coco, or merge into a .parquet file"
        )

    def write(file: BinaryIO) -> None:
        file.write(b"[")
        separator = b""
        for part, path in enumerate(paths):
            for row in _checked(path, part, manifest):
                for record in _coco_records(row, manifest):
                    file.write(separator + json.dumps(record).encode())
                    separator = b", "
        file.write(b"]")

    try:
        write_whole(target, write)
    except OSError as error:
        raise DetectorError(f"{target} cannot be written: {error.strerror or error}; check the disk") from error
    return counts


def _common_manifest(folders: Sequence[Path]) -> Manifest:
    manifests = [read_manifest(folder) for folder in folders]
    for folder, manifest in zip(folders, manifests, strict=True):
        if unequal := differences(asdict(manifests[0]), asdict(manifest)):
            raise DetectorError(
                f"{folder / MANIFEST}: expected the manifest of {folders[0]}, got another with "
                f"{'; '.join(unequal)}; merge parts of one prediction"
            )
    return manifests[0]


def _whole_parts(folders: Sequence[Path], manifest: Manifest) -> tuple[list[Path], PartCounts]:
    """Return the file of each part, each of which must be whole in exactly one folder, and their counts."""
    paths, faults, counts = [], list[str](), PartCounts()
    for part in range(manifest.num_parts):
        found = [folder / part_name(part) for folder in folders if (folder / part_name(part)).exists()]
        own = PartCounts.of_file(found[0], manifest, part) if len(found) == 1 else None
        if own is not None:
            paths.append(found[0])
            counts += own
        else:
            kind = "damaged or of another manifest" if found else "missing"
            faults.append(f"{part_name(part)} is {'repeated' if len(found) > 1 else kind}")
    if faults:
        more = f" and {len(faults) - _NUM_LISTED} more" if len(faults) > _NUM_LISTED else ""
        raise DetectorError(
            f"{', '.join(map(str, folders))}: expected {manifest.num_parts} parts, each once, but "
            f"{', '.join(faults[:_NUM_LISTED])}{more}; name each folder once, and predict again what is missing"
        )
    return paths, counts


def _checked(path: Path, part: int, manifest: Manifest) -> list[dict[str, Any]]:
    """Return the rows of a part after checking that they are its images, in order."""
    rows = [row for group in read_parquet(path) for row in group]
    if [row["index"] for row in rows] != list(manifest.images_of(part)):
        raise DetectorError(f"{path}: expected each of its images once, got others; remove the file and predict again")
    return rows


def _coco_records(row: dict[str, Any], manifest: Manifest) -> Iterator[dict[str, Any]]:
    """Yield the records of an image as `Detections.to_coco` gives them, of the categories that the file lists."""
    found, listed = row["detections"], manifest.listed_category_ids or []
    if row["error"] is not None or row["image_id"] is None:
        return
    corners = torch.tensor([[box[side] for side in ("x1", "y1", "x2", "y2")] for box in found], dtype=torch.float32)
    detections = Detections(
        corners.reshape(-1, 4),
        torch.tensor([box["score"] for box in found], dtype=torch.float32),
        torch.tensor([box["label"] for box in found], dtype=torch.int64),
        (row["height"], row["width"]),
        tuple(manifest.class_names),
        tuple(manifest.category_ids),
    )
    yield from (record for record in detections.to_coco(row["image_id"]) if record["category_id"] in listed)
