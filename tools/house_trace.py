"""Trace the files of the package that one training image and one predicted image pass.

    python tools/house_trace.py [ROOT]

Trains a tiny network for one step at batch size 1 on the drawn data set, then predicts one image, both through the
command line, and prints the two lists of files as JSON. A file counts when a function in it runs, or waits for one that
runs, during one of these spans:

- training: the reader, from the opening of the annotation file until it returns; the loader, from the opening of the
  last image file before the loss until it returns the image; the forward pass; the loss;
- prediction: from the opening of the image file until the file of the picture is opened for writing.

Not counted are `cli/` (words and options), `config/` (settings) and `ops/` (kernels behind one call). `tools/house.py
--trace` runs this in a process of its own.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

UNCOUNTED_ROOMS = ("cli", "config", "ops")
IMAGE_SUFFIXES = (".jpg", ".png")
TRAIN = ["train", "mish-n", "model.width=0.125", "input.size=64", "device=cpu", "loader.workers=0"]
TRAIN += ["loader.batch_size=1", "train.iterations=1", "train.evaluations=1"]


@dataclass
class Span:
    """A call in progress and the files that run in it.

    Attributes:
        frame: the call, or None once it has returned.
        thread: identifier of the thread that runs it.
        files: files of the package that run in it or wait for it.
    """

    frame: FrameType | None
    thread: int
    files: set[str]


class Trace:
    """Record of the files of a package that run during some spans of training and prediction.

    Attributes:
        training: files that the training image passes, relative to the package.
        prediction: files that the predicted image passes.
    """

    def __init__(self, package: Path) -> None:
        self._prefix = f"{package}{os.sep}"
        self.training: set[str] = set()
        self.prediction: set[str] = set()
        self._spans: dict[str, Span] = {}  # of training, the last of each name
        self._passed: set[str] | None = None  # by the predicted image until now
        self._is_predicting = False

    def __enter__(self) -> Trace:
        sys.addaudithook(self._on_audit)  # stays until the process ends
        threading.setprofile(self._on_call)
        sys.setprofile(self._on_call)
        return self

    def __exit__(self, *error: object) -> None:
        sys.setprofile(None)
        threading.setprofile(None)
        self._spans, self._passed = {}, None

    def start_prediction(self) -> None:
        """Attribute the images that are opened from now on to prediction."""
        self._is_predicting, self._spans = True, {}

    def _file_of(self, frame: FrameType) -> str | None:
        name = frame.f_code.co_filename
        return name.removeprefix(self._prefix) if name.startswith(self._prefix) else None

    def _stack(self, frame: FrameType | None) -> list[tuple[FrameType, str]]:
        """Return the frames of the package from `frame` outwards, each with its file."""
        frames = []
        while frame is not None:
            file = self._file_of(frame)
            if file is not None:
                frames.append((frame, file))
            frame = frame.f_back
        return frames

    def _begin(self, name: str, frame: FrameType, room: str) -> None:
        """Begin a span at the outermost call of a room that is in progress, unless it runs already."""
        stack = self._stack(frame)
        calls = [call for call, file in stack if file.startswith(f"{room}/")]
        if calls and not (name in self._spans and self._spans[name].frame is calls[-1]):
            self._spans[name] = Span(calls[-1], threading.get_ident(), {file for _, file in stack})

    def _on_audit(self, event: str, arguments: tuple[object, ...]) -> None:
        if event != "open" or not isinstance(arguments[0], str):
            return
        path, is_written, frame = arguments[0], "w" in str(arguments[1]), sys._getframe(1)
        if self._is_predicting and path.endswith(IMAGE_SUFFIXES):
            files = {file for _, file in self._stack(frame)}
            if not is_written:
                self._passed = files
            elif self._passed is not None:
                self.prediction = self._passed | files
                self._passed = None
        elif not self._is_predicting and not is_written and not self.training:
            if path.endswith("train.json"):
                self._begin("annotations", frame, "data")
            elif path.endswith(IMAGE_SUFFIXES):
                self._begin("image", frame, "data")

    def _on_call(self, frame: FrameType, event: str, argument: object) -> None:
        file = self._file_of(frame) if event in ("call", "return") else None
        if file is None:
            return
        if event == "return":
            self._end(frame)
            return
        if self._passed is not None:
            self._passed.add(file)
        if self._is_predicting or self.training:
            return
        room, is_called = file.partition("/")[0], frame.f_code.co_name in ("__call__", "forward")
        if room in ("models", "losses") and is_called:
            self._begin(room, frame, room)
        for span in self._spans.values():
            if span.frame is not None and span.thread == threading.get_ident():
                span.files.add(file)

    def _end(self, frame: FrameType) -> None:
        for name, span in self._spans.items():
            if span.frame is frame:
                span.frame = None
                if name == "losses":
                    self.training = set().union(*(each.files for each in self._spans.values()))


def counted(files: set[str]) -> list[str]:
    """Return the files, sorted, without those of rooms that do not count."""
    return sorted(file for file in files if not file.startswith(tuple(f"{room}/" for room in UNCOUNTED_ROOMS)))


def traced_files(root: Path) -> dict[str, list[str]]:
    """Train and predict with the package below `root`; return the files by `training` and `prediction`.

    Raises:
        RuntimeError: a command of the package failed; the message carries what it wrote.
    """
    sys.path.insert(0, str(root))
    from detector.cli.main import run

    def checked(words: list[str]) -> None:
        written = io.StringIO()
        with contextlib.redirect_stdout(written), contextlib.redirect_stderr(written):
            code = run(words)
        if code:
            raise RuntimeError(f"detector {' '.join(words)} ended with {code}: {written.getvalue()}")

    with tempfile.TemporaryDirectory() as folder:
        shapes = Path(folder).resolve() / "shapes"
        data = f"data={{name: shapes, root: {shapes}, num_train: 2, num_val: 1, image_size: 64}}"
        with Trace(root / "detector") as trace:
            checked([*TRAIN, data, f"train.project={folder}/runs"])
            trace.start_prediction()
            image = next((shapes / "images" / "val").glob("*.jpg"))
            model = next((Path(folder) / "runs").glob("*/weights/best.safetensors"))
            words = ["predict", str(model), str(image), "device=cpu", "predict.confidence=0"]
            checked([*words, "--save-dir", f"{folder}/pictures"])
    return {"training": counted(trace.training), "prediction": counted(trace.prediction)}


if __name__ == "__main__":
    print(json.dumps(traced_files(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[1]).resolve())))
