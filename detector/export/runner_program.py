"""The program `run.py` of `detector export --runner`: detections of an exported file without torch.

`runner_text.py` writes the program from this file and from all definitions that it uses, so that the program computes
what this package computes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

import cv2
import numpy as np
import numpy.typing as npt

from detector.errors import CheckpointError, ConfigError, DetectorError, MediaError
from detector.export.array_selection import Floats, select_arrays
from detector.export.export_runtime import NOT_SELECTED
from detector.export.graph import INPUT
from detector.export.metadata import DOCUMENT_KEY
from detector.export.onnx import DIGEST_KEY, LENGTH_KEY
from detector.export.openvino import SEAL
from detector.export.private_import import import_privately
from detector.media.drawing import class_colours
from detector.media.images import IMAGE_SUFFIXES, picture_suffix
from detector.media.sources import VIDEO_SUFFIXES
from detector.media.writers import fields_of
from detector.structures.canvas import InputConfig
from detector.structures.letterbox import Image
from detector.structures.selection import SelectConfig, require_within
from detector.structures.types import Detection

_encoded: Callable[[Path], Any] = os.fsencode  # OpenCV ends the process at a text that is not UTF-8
Network = Callable[[npt.NDArray[Any]], "list[npt.NDArray[Any]]"]  # canvases (B, H, W, C) -> outputs of the file


def open_onnx(path: Path, num_threads: int) -> tuple[str, Network]:
    """Return the metadata and the network of an ONNX file.

    Raises:
        CheckpointError: the file is missing, damaged, changed or from another program.
    """
    import_privately("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised, so they need no log
    options.intra_op_num_threads = num_threads
    try:
        content = path.read_bytes()
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        metadata = session.get_modelmeta().custom_metadata_map
        document: str = metadata[DOCUMENT_KEY]
        digest = hashlib.sha256(content[: int(metadata[LENGTH_KEY])] + document.encode()).hexdigest()
    except Exception as error:  # the exceptions of ONNX Runtime have no common base class
        raise CheckpointError(f"{path}: expected a file of detector export, got {type(error).__name__}") from error
    if digest != metadata.get(DIGEST_KEY):
        raise CheckpointError(f"{path} was damaged or changed after its export; export the model again")

    def run(canvases: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        return list(session.run(None, {INPUT: canvases}))

    return document, run


def open_openvino(path: Path, num_threads: int) -> tuple[str, Network]:
    """Return the metadata and the network of OpenVINO's files NAME.xml and NAME.bin.

    Raises:
        CheckpointError: a file is missing, damaged, changed or from another program.
    """
    import_privately("openvino")
    import openvino

    # Without the first setting, processors with bfloat16 compute in it.
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": num_threads}
    try:
        graph, weights = path.read_bytes(), path.with_suffix(".bin").read_bytes()
        model = openvino.Core().read_model(graph, weights)
        document: str = model.get_rt_info([DOCUMENT_KEY]).astype(str)
        request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: expected a file of detector export, got {type(error).__name__}") from error
    seal = SEAL.search(graph[-200:])
    bare = graph[: len(graph) - len(seal[0])] if seal else graph
    digests = tuple(hashlib.sha256(content).hexdigest().encode() for content in (bare, weights))
    if seal is None or digests != seal.groups():
        raise CheckpointError(f"{path} was damaged or changed after its export; export the model again")

    def run(canvases: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        outputs = request.infer([canvases])
        return [np.array(outputs[index]) for index in range(len(outputs))]

    return document, run


class Runner:
    """Exported model, ready to run.

    Attributes:
        class_names: name of each class.
        category_ids: category id of each class in the annotation file the model learned from.
        input: the canvas of the network.
        select: the selection of boxes.
    """

    def __init__(
        self, path: Path, confidence: float | None = None, iou: float | None = None, num_threads: int = 0
    ) -> None:
        """Open a file that `detector export` wrote, NAME.onnx or NAME.xml.

        Args:
            path: the file.
            confidence: lowest score kept, 0..1; by default that of the file.
            iou: overlap above which the lower-scoring box is suppressed, 0..1; by default that of the file.
            num_threads: threads of the runtime; 0 for its own choice.

        Raises:
            CheckpointError: the file is missing, damaged, changed or from another program.
            ConfigError: the file does not give boxes for these settings.
        """
        text, self._run = (open_openvino if path.suffix.lower() == ".xml" else open_onnx)(path, num_threads)
        about = json.loads(text)
        config, export = about["config"], about["export"]
        self.class_names, self.category_ids = tuple(about["class_names"]), tuple(about["category_ids"])
        self.input = InputConfig(**_settings(config["input"]))
        self._inner = None if export["nms"] is None else SelectConfig(**_settings(export["nms"]))
        self.select = SelectConfig(**_settings(config["predict"]))
        try:
            if confidence is not None:
                self.select = replace(self.select, confidence=confidence, class_confidence=None)
            if iou is not None:
                if self.select.nms == "none":
                    raise ConfigError("--iou: the model gives each object one box and suppresses none; leave it out")
                self.select = replace(self.select, iou=iou)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        if self._inner is not None:
            require_within(self._inner, self.select)

    def predict(self, image: Image) -> list[Detection]:
        """Return the detections of an image, uint8 (H, W, C), RGB if C is 3, the highest score first."""
        letterbox = self.input.letterbox(image)
        canvas_xyxy, scores = self._boxes(letterbox.apply(image)[None])
        kept_xyxy, kept_scores, labels = select_arrays(canvas_xyxy, scores, self.select, letterbox.resized_hw)
        source_xyxy = letterbox.boxes_to_source(kept_xyxy)
        source_xyxy[:, 0::2] = source_xyxy[:, 0::2].clip(0, image.shape[1])
        source_xyxy[:, 1::2] = source_xyxy[:, 1::2].clip(0, image.shape[0])
        rows = zip(labels.tolist(), kept_scores.tolist(), source_xyxy.tolist(), strict=True)
        return [
            Detection(self.class_names[label], label, self.category_ids[label], score, *corners)
            for label, score, corners in rows
        ]

    def _boxes(self, canvases: npt.NDArray[Any]) -> tuple[Floats, Floats]:
        """Return all boxes (A, 4) of one canvas, and their scores (A, classes)."""
        outputs = self._run(canvases)
        boxes, scores = outputs[0][0].astype(np.float32), outputs[1][0].astype(np.float32)
        if self._inner is None:
            return boxes, scores
        dense = np.full((len(scores), len(self.class_names)), NOT_SELECTED, np.float32)
        np.put_along_axis(dense, outputs[2][0].astype(np.int64)[:, None], scores[:, None], axis=1)
        return boxes, dense

    def read(self, path: Path) -> Image:
        """Read an image file, upright, as uint8 (H, W, C), RGB if C is 3.

        Raises:
            MediaError: the file cannot be read.
        """
        try:
            encoded = np.frombuffer(path.read_bytes(), np.uint8)
            is_grey = self.input.channels == 1
            pixels = cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE if is_grey else cv2.IMREAD_COLOR)
        except (OSError, cv2.error) as error:
            raise MediaError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
        if pixels is None:
            raise MediaError(f"{path} cannot be decoded: it is damaged or no image")
        return np.asarray(pixels[..., None] if is_grey else np.ascontiguousarray(pixels[..., ::-1]), np.uint8)

    def drawn(self, image: Image, found: Sequence[Detection]) -> Image:
        """Return a copy of an image, uint8 (H, W, 3), BGR as OpenCV writes it, with boxes and captions."""
        picture = np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image[..., ::-1].copy()
        line_px = max(1, round((image.shape[0] * image.shape[1]) ** 0.5 / 300))
        for box in reversed(found):  # the highest score is drawn last, on top
            colour = class_colours(self.class_names)[box.label][::-1]
            left, top, right, bottom = (round(side) for side in (box.x1, box.y1, box.x2, box.y2))
            cv2.rectangle(picture, (left, top), (right, bottom), colour, line_px, cv2.LINE_AA)
            place, text = (left, max(top - 2 * line_px, 12)), f"{box.name} {box.score:.2f}"
            cv2.putText(picture, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.3 + 0.15 * line_px, colour, line_px)
        return picture


def _settings(plain: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in plain.items()}


@dataclass(frozen=True)
class Shown:
    """Image or frame of a source.

    Attributes:
        path: the file.
        image: its pixels, or None if they cannot be read.
        error: the reason.
        frame: number of the frame of a video, or None for an image.
        fps: frames per second of the video.
    """

    path: Path
    image: Image | None
    error: str | None = None
    frame: int | None = None
    fps: float = 30.0

    def record(self, found: Sequence[Detection]) -> dict[str, Any]:
        """Return the detections as a record, as `detector predict` writes them."""
        record: dict[str, Any] = {"source": str(self.path)}
        if self.frame is not None:
            record |= {"frame": self.frame, "time_s": round(self.frame / self.fps, 6)}
        if self.image is None:
            return {**record, "error": self.error, "detections": []}
        size = {"height": self.image.shape[0], "width": self.image.shape[1]}
        return {**record, **size, "detections": [fields_of(box) for box in found]}


def shown_of(runner: Runner, source: Path) -> Iterator[Shown]:
    """Yield the images and frames of an image, a video or all below a folder, in the order of the names.

    Raises:
        MediaError: there is no such file, or a folder without images.
    """
    paths = [source]
    if source.is_dir():  # without the pictures that this program has drawn, unless their folder is named
        found = (p for p in source.rglob("*") if p.parent == source or not (p.parent / "predictions.jsonl").exists())
        paths = sorted(path for path in found if path.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES)
    if not paths or not source.exists():
        raise MediaError(f"{source}: expected an image, a video or a folder of these; check the path")
    for path in paths:
        if path.suffix.lower() in VIDEO_SUFFIXES:
            yield from _frames(runner, path)
            continue
        try:
            yield Shown(path, runner.read(path))
        except MediaError as error:
            yield Shown(path, None, str(error))


def _frames(runner: Runner, path: Path) -> Iterator[Shown]:
    video = cv2.VideoCapture(_encoded(path))
    fps, number = video.get(cv2.CAP_PROP_FPS) or 30.0, 0
    while True:
        is_read, pixels = video.read()
        if not is_read:
            break
        grey = runner.input.channels == 1
        image = cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY)[..., None] if grey else np.ascontiguousarray(pixels[..., ::-1])
        yield Shown(path, np.asarray(image, np.uint8), None, number, fps)
        number += 1
    video.release()
    if not number:
        yield Shown(path, None, f"{path} cannot be read: it is damaged or no video")


class Folder:
    """Folder of results: predictions.jsonl, an annotated picture of each image, an annotated video of each video."""

    def __init__(self, path: Path) -> None:
        """Make the folder.

        Raises:
            ConfigError: it is not empty, or cannot be made.
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
            is_empty = not any(path.iterdir())
        except OSError as error:
            raise ConfigError(f"--out {path}: {error.strerror}; choose another folder") from error
        if not is_empty:
            raise ConfigError(f"--out {path}: expected an empty or new folder, got one with files; choose another one")
        self.path, self._videos = path, dict[Path, cv2.VideoWriter]()

    def write(self, shown: Shown, picture: Image) -> None:
        """Write an annotated picture, or add a frame to its video.

        Raises:
            MediaError: OpenCV cannot write it.
        """
        if shown.frame is None:
            if not cv2.imwrite(_encoded(self._free(shown.path.stem, picture_suffix(picture))), picture):
                raise MediaError(f"{self.path}: the picture of {shown.path} cannot be written; check the disk")
            return
        if shown.path not in self._videos:
            target, size_wh = self._free(shown.path.stem, ".mp4"), (picture.shape[1], picture.shape[0])
            codec = cv2.VideoWriter.fourcc(*"mp4v")
            self._videos[shown.path] = cv2.VideoWriter(_encoded(target), codec, shown.fps, size_wh)
        self._videos[shown.path].write(picture)

    def _free(self, stem: str, suffix: str) -> Path:
        number, path = 1, self.path / f"{stem}{suffix}"
        while path.exists():
            number += 1
            path = self.path / f"{stem}_{number}{suffix}"
        return path

    def close(self) -> None:
        """Finish the videos."""
        for video in self._videos.values():
            video.release()


def parsed(words: Sequence[str]) -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description="Detect objects with a file that `detector export` wrote.")
    parser.add_argument("model", type=Path, help="the exported file, NAME.onnx or NAME.xml")
    parser.add_argument("source", type=Path, help="an image, a video, or a folder of these")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="write annotated pictures and predictions.jsonl there"
    )
    parser.add_argument("--confidence", type=float, metavar="X", help="lowest score, 0..1 (default: that of the file)")
    parser.add_argument("--iou", type=float, metavar="X", help="most overlap, 0..1 (default: that of the file)")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="threads (default: the runtime's choice)")
    return parser.parse_args(words)


def detect(arguments: argparse.Namespace, lines: TextIO, folder: Folder | None) -> int:
    """Write a line of JSON for each image and frame; return the number of those that could not be read or drawn."""
    runner, num_failed = Runner(arguments.model, arguments.confidence, arguments.iou, arguments.threads), 0
    for shown in shown_of(runner, arguments.source):
        found = [] if shown.image is None else runner.predict(shown.image)
        lines.write(json.dumps(shown.record(found)) + "\n")
        try:
            if shown.image is None:
                raise MediaError(shown.error or "")
            if folder is not None:
                folder.write(shown, runner.drawn(shown.image, found))
        except MediaError as error:
            sys.stderr.write(f"{error}\n")
            num_failed += 1
    return num_failed


def main(words: Sequence[str]) -> int:
    """Run the program and return its exit code: 0, or that of an error, 3 if an image cannot be read or drawn."""
    arguments = parsed(words)
    try:
        if arguments.out is None:
            return 3 if detect(arguments, sys.stdout, None) else 0
        folder = Folder(arguments.out)
        with (folder.path / "predictions.jsonl").open("w", encoding="utf-8") as lines:
            num_failed = detect(arguments, lines, folder)
        folder.close()
        return 3 if num_failed else 0
    except (DetectorError, ImportError, OSError) as error:
        sys.stderr.write(f"run.py: {error}\n")
        return int(getattr(error, "exit_code", 1))
