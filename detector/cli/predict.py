"""`detector predict`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detector.cli.model_file import add_darknet_options, add_runtime_options, load
from detector.cli.predict_video import add_video_options, run_video
from detector.cli.views import add_view_options, view_overrides
from detector.errors import ConfigError, MediaError

if TYPE_CHECKING:
    from detector.data.coco import CocoAnnotations
    from detector.engine.checkpoint import ModelFile
    from detector.engine.predictor import Prediction
    from detector.media.sources import Source
    from detector.postprocess import SelectConfig


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
        choices=("json", "coco"),
        default="json",
        help="json: one record per image; coco: a results file, with the thresholds of evaluate and nothing rounded",
    )
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
    if len(words) < 2:
        raise ConfigError(f"a model file and a source are wanted, found {words}; give best.safetensors IMAGES")

    from detector.cli.progress import say
    from detector.data.problems import num_accepted, num_skipped
    from detector.experiment import build_predictor, results_folder, with_category_ids_of
    from detector.media.drawing import draw_detections
    from detector.media.images import write_image
    from detector.media.sources import ImageSource

    loaded = load(arguments, Path(words[0]), [*overrides, *view_overrides(arguments)])
    is_coco = arguments.format == "coco"
    sources, annotations = _sources(arguments, words[1:])
    if annotations is not None:
        loaded = with_category_ids_of(loaded, annotations)
    problems = annotations.problems if annotations else ()
    for problem in problems:
        say(f"{arguments.annotations}: {problem}", arguments.quiet)
    batch_size = 8 if not loaded.config.views.is_plain else min(len(sources), 8)
    batch_size = loaded.config.evaluate.batch_size if is_coco else batch_size
    select = _select(arguments, loaded.config.evaluate if is_coco else loaded.config.predict, loaded.file, words[0])
    folder = results_folder(arguments.save_dir, "predict")
    if len(images := [source for source in sources if isinstance(source, ImageSource)]) < len(sources):
        return run_video(arguments, loaded, sources, select, folder, _record)

    records: list[dict[str, Any]] = []
    # A source in the folder of results is never written over.
    pictures = {s.path.name for s in sources if s.path and s.path.parent.resolve() == folder.resolve()}
    num_unread = num_warnings = 0
    for prediction in build_predictor(loaded, batch_size).stream(images, select):
        detections, image = prediction.detections, prediction.image
        num_warnings += len(prediction.warnings)
        for warning in prediction.warnings:
            say(f"warning: {warning}", arguments.quiet)
        if detections is None or image is None:
            num_unread += 1
            say(f"skipped: {prediction.error}", arguments.quiet)
        elif not (arguments.no_pictures or is_coco):
            write_image(_free_path(folder, prediction.source.name, pictures), draw_detections(image, detections))
        new = _coco_records(prediction, annotations) if is_coco else [_record(prediction)]
        records.extend(new)
        if not is_coco:
            print(json.dumps(new[0]) if arguments.json else _line(new[0]))
    path = folder / ("results.json" if is_coco else "predictions.json")
    path.write_text(json.dumps(records, indent=None if is_coco else 1), encoding="utf-8")
    if arguments.json and is_coco:
        print(json.dumps(records))
    say(f"{len(sources) - num_unread} images, {num_unread} skipped: {path}", arguments.quiet)
    if num_unread == len(sources):
        raise MediaError(f"none of {num_unread} images could be read; check {', '.join(words[1:])}")
    num_faults = num_unread + num_warnings + num_skipped(problems) + num_accepted(problems)
    return 5 if arguments.strict and num_faults else 0


def _sources(arguments: argparse.Namespace, words: Sequence[str]) -> tuple[Sequence[Source], CocoAnnotations | None]:
    from detector.media.sources import as_sources

    if arguments.annotations is None:
        if arguments.format == "coco":
            raise ConfigError("--format coco wants --annotations FILE, which gives each image its id")
        given = words[0] if len(words) == 1 else list(words)
        return as_sources(given, arguments.allow_url)[0], None
    if len(words) != 1:
        raise ConfigError(f"with --annotations one SOURCE is wanted, the folder of its images, found {list(words)}")
    from detector.data.coco import read_coco
    from detector.evaluation.evaluate import annotated_sources

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
    from detector.registry import nearest

    if word in class_names:
        return class_names.index(word)
    if word.isdecimal() and int(word) < len(class_names):
        return int(word)
    raise ConfigError(f"--classes: the model knows no class {word!r}{nearest(word, class_names)}")


def _free_path(folder: Path, name: str, taken: set[str]) -> Path:
    """A picture's path: two sources of one name, in different folders, do not overwrite each other."""
    stem = Path(name).stem or "image"
    number = 1
    while (file_name := f"{stem}{'' if number == 1 else f'_{number}'}.jpg") in taken:
        number += 1
    taken.add(file_name)
    return folder / file_name


def _record(prediction: Prediction) -> dict[str, Any]:
    detections = prediction.detections
    if detections is None:
        return {"source": prediction.source.name, "error": prediction.error, "detections": []}
    return {
        "source": prediction.source.name,
        **({"warnings": list(prediction.warnings)} if prediction.warnings else {}),
        "height": detections.image_hw[0],
        "width": detections.image_hw[1],
        "detections": [
            {
                "class": name,
                "category_id": detections.category_ids[label],
                "score": round(score, 5),
                "box_xyxy": [round(v, 2) for v in box],
            }
            for name, label, score, box in zip(
                detections.names,
                detections.labels.tolist(),
                detections.scores.tolist(),
                detections.source_xyxy.tolist(),
                strict=True,
            )
        ],
    }


def _coco_records(prediction: Prediction, annotations: CocoAnnotations | None) -> list[dict[str, Any]]:
    """The records that evaluation scores: of categories that the annotation file lists."""
    if prediction.detections is None or prediction.source.image_id is None or annotations is None:
        return []
    records = prediction.detections.to_coco(prediction.source.image_id)
    return [record for record in records if record["category_id"] in annotations.category_ids]


def _line(record: dict[str, Any]) -> str:
    name = record["source"].encode("utf-8", "backslashreplace").decode()  # a file's name may be no UTF-8
    if "error" in record:
        return f"{name}: not read"
    counts: dict[str, int] = {}
    for found in record["detections"]:
        counts[found["class"]] = counts.get(found["class"], 0) + 1
    listed = ", ".join(f"{count} {name}" for name, count in counts.items())
    return f"{name}: {listed or 'nothing'}"
