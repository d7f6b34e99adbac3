"""Ends of error messages that say what was probably meant: near spellings, and the words of other programs.

The words are keys and options that users know from the ultralytics family, Darknet, YOLOX and torchvision.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable

MAX_SUGGESTIONS = 5
_FAR = 1000  # more than any distance

# Words of other programs and the keys that have their meaning here. A text with a space is advice instead of keys.
FOREIGN_KEYS: dict[str, str] = {
    # the ultralytics family
    "imgsz": "input.size",
    "img": "input.size",
    "epochs": "train.epochs",
    "batch": "loader.batch_size",
    "lr0": "optimizer.lr",
    "lrf": "schedule.final",
    "warmup_epochs": "schedule.warmup_iterations (counted in steps) and schedule.warmup_share",
    "workers": "loader.workers",
    "patience": "train.patience (counted in evaluations)",
    "fliplr": "augment.flip_horizontal",
    "flipud": "augment.flip_vertical",
    "hsv_h": "augment.hue",
    "hsv_s": "augment.saturation",
    "hsv_v": "augment.value",
    "close_mosaic": "augment.closing_share (a share of the run)",
    "cos_lr": "schedule=cosine",
    "amp": "train.precision (auto, fp32, bf16 or fp16)",
    "half": "runtime.precision=fp16",
    "pretrained": "train.weights=FILE",
    "weights": "train.weights=FILE",
    "cache": "loader.cache_mb or loader.disk_cache",
    "nbs": "train.accumulate",
    "single_cls": "evaluate.class_agnostic for the selection of boxes; the classes come from the data set",
    "conf": "predict.confidence or evaluate.confidence",
    "conf_thres": "predict.confidence or evaluate.confidence",
    "iou": "predict.iou or evaluate.iou",
    "iou_thres": "predict.iou or evaluate.iou",
    "max_det": "predict.max_detections or evaluate.max_detections",
    "agnostic_nms": "predict.class_agnostic",
    "classes": "predict.classes for a choice of detections; the number of classes comes from the data set",
    "nc": "the data set gives the classes; leave it out",
    "names": "the data set gives the names of the classes; leave it out",
    "name": "train.run_name",
    "project": "train.project",
    "exist_ok": "a run never replaces another one; leave it out, or give --continue to continue the run of this name",
    "resume": "the option --resume RUN of detector train",
    "save_period": "train.evaluations (a run keeps its best and last weights)",
    "val": "train.evaluations=0 for a run without evaluations",
    "deterministic": "a run depends on train.seed only; leave it out",
    "rect": "input.size=[HEIGHT,WIDTH] for a canvas that is not square",
    "multi_scale": "input.multi_scale",
    "dropout": "model.dropout",
    "box": "loss.box",
    "cls": "loss.classes",
    "dfl": "loss.distribution",
    "copy_paste": "augment.copy_paste",
    "mosaic": "augment.mosaic",
    "mixup": "augment.mixup",
    "label_smoothing": "loss.label_smoothing",
    "vid_stride": "the option --stride N of detector predict",
    "save_txt": "the option --format txt of detector predict",
    "save_json": "the option --format coco of detector predict",
    "save_crop": "the option --crops of detector predict",
    "source": "the second word of detector predict: detector predict WEIGHTS SOURCE",
    "task": "task=detect or task=classify",
    # Darknet
    "subdivisions": "train.accumulate (batches per step), with a smaller loader.batch_size",
    "max_batches": "train.iterations",
    "burn_in": "schedule.warmup_iterations",
    "learning_rate": "optimizer.lr",
    "decay": "optimizer.weight_decay",
    "policy": "schedule=NAME",
    "angle": "augment.degrees",
    "exposure": "augment.value",
    "random": "input.multi_scale",
    "height": "input.size=[HEIGHT,WIDTH]",
    "thresh": "predict.confidence",
    "anchors": "model.head.anchors",
    # YOLOX
    "max_epoch": "train.epochs",
    "input_size": "input.size",
    "test_size": "input.size",
    "random_size": "input.multi_scale",
    "multiscale_range": "input.multi_scale",
    "data_num_workers": "loader.workers",
    "basic_lr_per_img": "optimizer.lr (not scaled by the batch size)",
    "no_aug_epochs": "augment.closing_share (a share of the run)",
    "eval_interval": "train.evaluations",
    "mosaic_prob": "augment.mosaic",
    "mixup_prob": "augment.mixup",
    "hsv_prob": "augment.hue, augment.saturation and augment.value",
    "flip_prob": "augment.flip_horizontal",
    "mosaic_scale": "augment.scale",
    "mixup_scale": "augment.mixup",
    "test_conf": "evaluate.confidence",
    "nmsthre": "evaluate.iou",
    "num_classes": "the data set gives the number of classes; leave it out",
    "exp_name": "train.run_name",
    "ema": "train.ema_horizon",
    "fp16": "train.precision=fp16",
    # torchvision
    "batch_size": "loader.batch_size",
    "lr_steps": "schedule=steps with schedule.milestones",
    "lr_gamma": "schedule=steps with schedule.gamma",
    "lr_scheduler": "schedule=NAME",
    "opt": "optimizer=NAME",
    "wd": "optimizer.weight_decay",
    "output_dir": "train.project and train.run_name",
    "data_path": "data=FILE.yaml",
    "dataset": "data=FILE.yaml",
    "sync_bn": "train.sync_batch_norm",
    "box_score_thresh": "predict.confidence",
    "box_nms_thresh": "predict.iou",
    "box_detections_per_img": "predict.max_detections",
    "min_size": "input.size",
    "max_size": "input.size",
    "clip_grad_norm": "train.clip_norm",
    "model_ema": "train.ema_horizon",
    "print_freq": "the option --quiet or --verbose",
}
# Words that are keys of a section here too; they count as foreign at the top of an experiment only.
FOREIGN_KEYS_AT_THE_TOP = {
    "width": "input.size=[HEIGHT,WIDTH]",
    "scale": "augment.scale",
    "momentum": "optimizer.momentum",
    "seed": "train.seed",
}

# Names of parts in other programs, by the label of the kind.
FOREIGN_PARTS: dict[str, dict[str, str]] = {
    "optimizer": {"adam": "adamw with optimizer.weight_decay=0", "nadam": "adamw", "adamax": "adamw", "auto": "muon"},
    "schedule": {
        "multistep": "steps",
        "multi_step": "steps",
        "step_lr": "step",
        "multi_step_lr": "steps",
        "cosine_annealing": "cosine",
        "yoloxwarmcos": "cosine",
        "exponential": "exp",
        "polynomial": "poly",
    },
    "activation": {"leaky_relu": "leaky", "lrelu": "leaky", "logistic": "sigmoid", "hardswish": "hard_swish"},
    "dataset": {"ultralytics": "yolo", "yolov5": "yolo", "yolo_txt": "yolo"},
    "image set": {"imagefolder": "folders", "image_folder": "folders", "imagenet": "folders", "cifar10": "cifar"},
}
_READING_PATHS = ("dataset", "image set")  # kinds whose parts read files and folders
_SIZED_MODEL = re.compile(r"yolo[-_]?(?:v?5|v?8|v?9|v?10|v?11|v?12|v?26|x)[-_]?(?:u|p6)?([nsmlx])\b", re.IGNORECASE)


def near_names(name: str, known: Iterable[str]) -> list[str]:
    """Return the known names that a person probably meant, at most five, in alphabetical order; empty if in doubt.

    These are, in this order: the same name in another case or with other hyphens; the names at the least distance,
    counted in inserted, deleted, replaced and exchanged characters, if that is small for their length; the names that
    begin or end with this one, or with which it begins, as whole words; the names that begin with it.
    """
    listed = sorted(set(known))
    plain = _normalised(name)
    if same := [each for each in listed if _normalised(each) == plain]:
        return same[:MAX_SUGGESTIONS]
    most = 1 if len(name) <= 5 else 2 if len(name) <= 8 else 3
    distances = {each: _distance(name.lower(), each.lower(), most) for each in listed}
    least = min(distances.values(), default=_FAR)
    if least <= most and least < len(name):
        close = [each for each, distance in distances.items() if distance == least]
        return close if len(close) <= MAX_SUGGESTIONS else []
    word = name.lower()
    around = [each for each in listed if each.startswith(f"{word}_") or each.endswith(f"_{word}")]
    around = around or [each for each in listed if len(each) > 1 and word.startswith(f"{each}_")]
    around = around or [each for each in listed if len(word) > 4 and each.startswith(word)]
    return around if len(around) <= MAX_SUGGESTIONS else []


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the end of an error message: the nearest known names, or all of them."""
    listed = list(known)
    if close := near_names(name, listed):
        return did_you_mean(close)
    return f"; known: {', '.join(sorted(listed)) or 'none'}"


def did_you_mean(names: Collection[str]) -> str:
    """Return the end of an error message that asks for the names."""
    return f"; did you mean {' or '.join(map(repr, names))}?"


def foreign_part(label: str, name: str) -> str | None:
    """Return the part that has the meaning of a name in another program, or None."""
    return FOREIGN_PARTS.get(label, {}).get(_normalised(name, keep_words=True))


def unknown_name(label: str, name: str, known: Iterable[str]) -> str:
    """Return the message for a part that is not registered."""
    meant = foreign_part(label, name)
    if label in _READING_PATHS and not meant:
        close = near_names(name, {*known, *os.listdir()} - {name})  # a link that leads nowhere has the name itself
        hint = did_you_mean(close) if close else "; check the path (detector parts lists the readers by name)"
        return f"there is no file or folder {name!r}, and no {label} of that name{hint}"
    return f"no {label} is named {name!r}" + (f"; here it is {meant}" if meant else nearest(name, known))


def preset_hint(name: str, presets: Iterable[str]) -> str:
    """Return the end of an error message about a preset; a model of another family leads to the one of its size."""
    listed = list(presets)
    sized = _SIZED_MODEL.match(name)
    is_known = any(_normalised(each) == _normalised(name) for each in listed)
    if sized and not is_known and (meant := f"mish-{sized[1].lower()}") in listed:
        return f"; the preset of that size is {meant!r} here"
    stem, dot, suffix = name.rpartition(".")
    if close := near_names(stem if dot else name, listed):
        return did_you_mean(close)
    if dot and suffix and suffix.lower() not in ("yaml", "yml"):
        return "; check the path"
    return nearest(name, listed)


def unknown_key(path: str, known: Iterable[str], elsewhere: Iterable[str] | None = None) -> str:
    """Return the end of the message for an unknown key.

    Args:
        path: its dotted path.
        known: the keys of its section.
        elsewhere: the dotted paths of all keys of an experiment; None if the key is not one of an experiment.
    """
    name, listed = path.rpartition(".")[2], list(known)
    if any(_normalised(each) == _normalised(name) for each in listed) or elsewhere is None:
        return nearest(name, listed)
    word = _normalised(name, keep_words=True)
    paths = list(elsewhere)
    if path in paths:
        return f"; it is a key of another part or task; known: {', '.join(sorted(listed))}"
    meant = FOREIGN_KEYS.get(word) or (FOREIGN_KEYS_AT_THE_TOP.get(word) if "." not in path else None)
    if meant:
        section = f"{path.rpartition('.')[0]}."
        meant = next((each for each in meant.split(" or ") if each.startswith(section)), meant)
        return f"; {meant}" if meant.startswith(("a run ", "the data set ")) else f"; here it is {meant}"
    if close := near_names(name, listed):
        return did_you_mean(close)
    if same := _shortest(each for each in paths if each.rpartition(".")[2] == word):
        return did_you_mean(same)
    spelled = near_names(name, {each.rpartition(".")[2] for each in paths})
    if near := _shortest(each for each in paths if each.rpartition(".")[2] in spelled):
        return did_you_mean(near)
    return f"; known: {', '.join(sorted(listed)) or 'none'}; detector config lists all keys"


def value_hint(path: str, value: object, expected: Collection[str]) -> str:
    """Return the end of the message for a value of a wrong type, or an empty text.

    Args:
        path: the dotted path of its key.
        value: the plain value.
        expected: the plain types that are expected, such as `str` or `float`.
    """
    if path.rpartition(".")[2] == "device" and isinstance(value, int):
        return f"; write cuda:{int(value)}" if value is not True and value is not False else ""
    if path.rpartition(".")[2] == "device" and isinstance(value, list):
        return f"; for several GPUs start the command with torchrun --nproc-per-node={len(value)}"
    if isinstance(value, str) and "float" in expected:
        try:
            return f"; YAML reads it as text, write {float(value)!r}"
        except ValueError:
            return ""
    if "str" in expected and not isinstance(value, (str, list, dict)) and value is not None:
        return "; put it in quotes"
    if isinstance(value, list) and any(isinstance(each, bool) for each in value):
        return "; YAML reads on, off, yes and no as bools, put them in quotes"
    return ""


def _shortest(paths: Iterable[str]) -> list[str]:
    """Return the paths with the fewest sections, unless they are too many to help."""
    listed = list(dict.fromkeys(paths))
    least = min((each.count(".") for each in listed), default=0)
    shortest = [each for each in listed if each.count(".") == least]
    return shortest if len(shortest) <= MAX_SUGGESTIONS else []


def _normalised(name: str, keep_words: bool = False) -> str:
    words = name.replace("-", "_").lower()
    return words if keep_words else words.replace("_", "")


def _distance(one: str, two: str, most: int) -> int:
    """Return the optimal string alignment distance of two words, or a large number if it exceeds `most`."""
    if abs(len(one) - len(two)) > most:
        return _FAR
    before: list[int] = []
    above = list(range(len(two) + 1))
    for row, a in enumerate(one, 1):
        current = [row]
        for column, b in enumerate(two, 1):
            cost = min(above[column] + 1, current[-1] + 1, above[column - 1] + (a != b))
            if row > 1 and column > 1 and a == two[column - 2] and one[row - 2] == b:
                cost = min(cost, before[column - 2] + 1)
            current.append(cost)
        before, above = above, current
    return above[-1] if above[-1] <= most else _FAR
