"""Options of `detector predict`; importing them loads no library."""

from __future__ import annotations

import argparse
from pathlib import Path

from detector.cli.common_options import add_out, number, whole_number
from detector.cli.model_file_options import add_darknet_options, add_runtime_options
from detector.cli.predict_parts_options import add_parts_options, check_parts
from detector.cli.predict_tracks_options import add_track_options
from detector.cli.predict_video_options import add_video_options
from detector.cli.usage import check_keys, split_words
from detector.cli.views_options import add_view_options
from detector.errors import ConfigError

# BEST and BEST_OVERALL of evaluation/operating_point.py, which loads torch.
_WORDS_FOR_CONFIDENCE = ("best", "best-overall")
_MODEL_SUFFIXES = (".safetensors", ".pt", ".pth", ".weights")
EXAMPLES = (
    "detector predict street.jpg",
    "detector predict yolox-s street.jpg",
    "detector predict runs/detect/train photos/",
    "detector predict best.safetensors clip.mp4 --track --out results",
    "detector predict best.safetensors photos/ --out parts --shard 0/4",
    "detector predict best.safetensors image.jpg --confidence 0.4 --classes person,car --format csv",
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "words",
        nargs="*",
        metavar="[WEIGHTS] SOURCE key=value",
        help="a model file or the name of published weights (default yolox-nano: COCO's 80 classes); images, "
        "videos, folders, globs or .txt lists; overrides such as predict.confidence=0.4",
    )
    _add_model_options(parser)
    parser.add_argument(
        "--confidence",
        type=_confidence,
        metavar="0..1|best",
        help="lowest score kept; best: the model's own thresholds, one for each class; best-overall: its one "
        "for all (default: predict.confidence, 0.25)",
    )
    parser.add_argument(
        "--iou",
        type=number,
        metavar="0..1",
        help="overlap above which the lower-scoring box is dropped (default: predict.iou, 0.7)",
    )
    parser.add_argument(
        "--max-detections",
        type=whole_number,
        metavar="N",
        help="most detections per image (default: predict.max_detections, 300)",
    )
    parser.add_argument("--classes", metavar="A,B", help="keep these classes, by name or index (default: all)")
    parser.add_argument(
        "--class-agnostic",
        action="store_true",
        help="boxes of different classes suppress each other; with --track, a track takes boxes of any class",
    )
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
        help="COCO file with the images and their ids; SOURCE is its folder (default: images without ids)",
    )
    add_out(parser, "folder of results (default runs/detect/predict)", aliases=("--save-dir",))
    parser.add_argument("--no-pictures", action="store_true", help="write no annotated pictures")
    parser.add_argument("--strict", action="store_true", help="exit with 5 after skipped images or boxes, or warnings")
    parser.add_argument("--json", action="store_true", help="print the records as JSON, one a line")
    add_video_options(parser)
    add_track_options(parser)
    add_parts_options(parser)


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", type=Path, metavar="FILE", help="the model file (default: the first word)")
    add_darknet_options(parser)
    add_runtime_options(parser)
    parser.add_argument(
        "--backend",
        choices=("torch", "auto"),
        default="torch",
        help="auto: the fastest of torch, ONNX Runtime and OpenVINO on this machine, as far as they are installed; "
        "measured at the first call for a model and remembered (default: torch)",
    )


def _confidence(text: str) -> float | str:
    """Return a number or one of two words; argparse refuses anything else."""
    if text in _WORDS_FOR_CONFIDENCE:
        return text
    try:
        return number(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"expected a number of 0..1, best or best-overall, got {text!r}") from error


def check(arguments: argparse.Namespace) -> None:
    """Reject a command line without a source, or with a model file alone, and unknown keys.

    Raises:
        ConfigError: a mistake.
    """
    names, overrides = split_words(arguments)
    has_model = arguments.weights is not None or (names and Path(names[0]).suffix in _MODEL_SUFFIXES)
    if not names or (has_model and len(names) + (arguments.weights is not None) < 2):
        raise ConfigError(
            f"expected a source, or a model file and a source, got {names}; give IMAGES, or best.safetensors IMAGES"
        )
    check_parts(arguments)
    check_keys(arguments, overrides)
