"""`detector predict`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detector.cli import classify
from detector.cli.model_file import add_darknet_options, add_runtime_options, load
from detector.cli.predict_video import add_video_options, refuse_video_options, run_video
from detector.cli.views import add_view_options, view_overrides
from detector.errors import ConfigError, MediaError

if TYPE_CHECKING:
    from detector.data.coco import CocoAnnotations
    from detector.media.sources import Source
    from detector.media.writers import Writer
    from detector.models.checkpoint import ModelFile
    from detector.structures.selection import SelectConfig


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument(
        "words",
        nargs="*",
        metavar="WEIGHTS SOURCE key=value",
        help="a model file; images, videos, folders, globs or .txt lists; overrides such as predict.confidence=0.4",
    )
    parser.add_argument("--weights", type=Path, metavar="FILE", help="the model file, instead of the first word")
    add_darknet_options(parser)
    add_runtime_options(parser)
    parser.add_argument(
        "--confidence",
        type=_confidence,
        metavar="0..1|best",
        help="lowest score kept; best: the model's own thresholds, one for each class; best-overall: its one for all",
    )
    parser.add_argument("--iou", type=float, metavar="0..1", help="overlap above which the lower-scoring box goes")
    parser.add_argument("--max-detections", type=int, metavar="N", help="most detections per image")
    parser.add_argument("--classes", metavar="A,B", help="keep these classes only, by name or index")
    parser.add_argument("--class-agnostic", action="store_true", help="boxes of different classes suppress each other")
    add_view_options(parser)
    parser.add_argument(
        "--format",
        action="append",
        metavar="A,B",
        help="json (default), jsonl (videos), csv, txt (the YOLO family's labels); coco: a results file, with the "
        "thresholds of evaluate and nothing rounded, without pictures",
    )
    parser.add_argument("--crops", action="store_true", help="write each detection as a picture of its own")
    parser.add_argument(
        "--annotations",
        type=Path,
        metavar="FILE",
        help="COCO file with the images and their ids; SOURCE is its folder",
    )
    parser.add_argument("--save-dir", type=Path, metavar="DIR", help="where results go (default runs/detect/predict)")
    parser.add_argument("--no-pictures", action="store_true", help="write no annotated pictures")
    parser.add_argument(
        "--strict", action="store_true", help="exit with 5 when images or boxes were skipped or warned of"
    )
    parser.add_argument("--json", action="store_true", help="print the records as JSON, one a line")
    add_video_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Predicts; returns the exit code."""
    words = [w for w in arguments.words if "=" not in w or "://" in w.partition("=")[0] or Path(w).exists()]
    overrides = [word for word in arguments.words if word not in words]
    if arguments.weights is not None:
        words.insert(0, str(arguments.weights))
    formats = _formats(arguments.format)
    if len(words) < 2:
        raise ConfigError(f"a model file and a source are wanted, found {words}; give best.safetensors IMAGES")
    if classify.is_classifier_file(Path(words[0])):
        return classify.predict(arguments, Path(words[0]), words[1:], overrides)

    from detector.cli.progress import say
    from detector.data.problems import num_accepted, num_skipped
    from detector.media.file_names import FileNames
    from detector.media.sources import ImageSource
    from detector.media.writers import CocoWriter, PictureWriter, record_of
    from detector.tasks.detection_model import build_predictor, with_category_ids_of
    from detector.training.run_folder import results_folder

    is_coco = "coco" in formats
    loaded = load(arguments, Path(words[0]), [*overrides, *view_overrides(arguments)])
    sources, annotations = _sources(arguments, words[1:], is_coco)
    if arguments.line or arguments.zone:
        arguments.track = True
    if arguments.track:
        from detector.inference.tracking import require_videos

        require_videos(sources)
    if annotations is not None:
        loaded = with_category_ids_of(loaded, annotations)
    problems = annotations.problems if annotations else ()
    for problem in problems:
        say(f"{arguments.annotations}: {problem}", arguments.quiet)
    batch_size = 8 if not loaded.config.views.is_plain else min(len(sources), 8)
    batch_size = loaded.config.evaluate.batch_size if is_coco else batch_size
    select = _select(arguments, loaded.config.evaluate if is_coco else loaded.config.predict, loaded.file, words[0])
    images = [source for source in sources if isinstance(source, ImageSource)]
    has_frames = len(images) < len(sources)
    if not has_frames:
        refuse_video_options(arguments)
    folder = results_folder(arguments.save_dir, "predict")
    known = loaded.file.category_ids if annotations is None else annotations.category_ids
    writers = _writers(arguments, formats, folder, loaded.file.class_names, known, has_frames)
    names = FileNames(folder, [source.path for source in sources if source.path])
    if has_frames:
        return run_video(arguments, loaded, sources, select, folder, writers, names)
    drawn = [] if arguments.no_pictures or is_coco else [PictureWriter(folder)]

    num_unread = num_warnings = 0
    for prediction in build_predictor(loaded, batch_size).stream(images, select):
        num_warnings += len(prediction.warnings)
        for warning in prediction.warnings:
            say(f"warning: {warning}", arguments.quiet)
        if prediction.error is not None:
            num_unread += 1
            say(f"skipped: {prediction.error}", arguments.quiet)
        stem = names.of(prediction.source) if prediction.detections is not None else ""
        for writer in (*drawn, *writers):
            writer.add(prediction, stem)
        if formats != ["coco"]:
            record = record_of(prediction)
            print(json.dumps(record) if arguments.json else _line(record))
    for writer in writers:
        writer.close()
        if arguments.json and formats == ["coco"] and isinstance(writer, CocoWriter):
            print(json.dumps(writer.records))
    paths = ", ".join(str(writer.path) for writer in writers)
    say(f"{len(sources) - num_unread} images, {num_unread} skipped: {paths}", arguments.quiet)
    if num_unread == len(sources):
        raise MediaError(f"none of {num_unread} images could be read; check {', '.join(words[1:])}")
    num_faults = num_unread + num_warnings + num_skipped(problems) + num_accepted(problems)
    return 5 if arguments.strict and num_faults else 0


def _formats(given: Sequence[str] | None) -> list[str]:
    """The formats asked for, each once; `json` without any."""
    from detector.config.registry import nearest
    from detector.media.writers import FORMATS

    asked = [word.strip() for text in given or ("json",) for word in text.split(",")]
    for word in asked:
        if word not in FORMATS:
            raise ConfigError(f"--format: no format is named {word!r}{nearest(word, FORMATS)}")
    return list(dict.fromkeys(asked))


def _writers(
    arguments: argparse.Namespace,
    formats: Sequence[str],
    folder: Path,
    class_names: Sequence[str],
    category_ids: Sequence[int],
    has_frames: bool,
) -> list[Writer]:
    """What writes the formats; the records of frames, which may be endless, are lines, not one document."""
    from detector.media.writers import FORMATS, CropWriter, CsvWriter, MotWriter

    names = dict.fromkeys("jsonl" if has_frames and name == "json" else name for name in formats)
    writers: list[Writer] = [
        CsvWriter(folder, has_frames, arguments.track)
        if name == "csv"
        else FORMATS[name](folder, class_names, category_ids)
        for name in names
    ]
    writers += [MotWriter(folder)] if arguments.track else []
    return [*writers, CropWriter(folder, class_names)] if arguments.crops else writers


def _sources(
    arguments: argparse.Namespace, words: Sequence[str], is_coco: bool
) -> tuple[Sequence[Source], CocoAnnotations | None]:
    from detector.media.sources import as_sources

    if arguments.annotations is None:
        if is_coco:
            raise ConfigError("--format coco wants --annotations FILE, which gives each image its id")
        given = words[0] if len(words) == 1 else list(words)
        return as_sources(given, arguments.allow_url)[0], None
    if len(words) != 1:
        raise ConfigError(f"with --annotations one SOURCE is wanted, the folder of its images, found {list(words)}")
    from detector.data.coco import read_coco
    from detector.evaluation.evaluator import annotated_sources

    annotations = read_coco(arguments.annotations, Path(words[0]), require_annotations=False)
    return annotated_sources(annotations), annotations


def _confidence(text: str) -> float | str:
    """A number or one of the two words; argparse refuses the rest."""
    if text in ("best", "best-overall"):
        return text
    try:
        return float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"a number of 0..1, best or best-overall is wanted, found {text!r}") from error


def _select(arguments: argparse.Namespace, config: SelectConfig, file: ModelFile, who: str) -> SelectConfig:
    from detector.evaluation.operating_point import OperatingPoint

    names, class_names = ("confidence", "iou", "max_detections"), file.class_names
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    if isinstance(arguments.confidence, str):
        config = OperatingPoint.of_file(file, who).applied(config, given.pop("confidence"))
    elif arguments.confidence is not None:
        given["class_confidence"] = None
    if arguments.class_agnostic:
        given["class_agnostic"] = True
    if arguments.classes is not None:
        given["classes"] = tuple(_class_index(word.strip(), class_names) for word in arguments.classes.split(","))
    try:
        return replace(config, **given)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _class_index(word: str, class_names: Sequence[str]) -> int:
    from detector.config.registry import nearest

    if word in class_names:
        return class_names.index(word)
    if word.isdecimal() and int(word) < len(class_names):
        return int(word)
    raise ConfigError(f"--classes: the model knows no class {word!r}{nearest(word, class_names)}")


def _line(record: dict[str, Any]) -> str:
    name = record["source"].encode("utf-8", "backslashreplace").decode()  # a file's name may be no UTF-8
    if "error" in record:
        return f"{name}: not read"
    counts: dict[str, int] = {}
    for found in record["detections"]:
        counts[found["class"]] = counts.get(found["class"], 0) + 1
    listed = ", ".join(f"{count} {name}" for name, count in counts.items())
    return f"{name}: {listed or 'nothing'}"
