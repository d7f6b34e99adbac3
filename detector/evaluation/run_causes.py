"""Causes that hold AP back, from the evidence on a run: each with its numbers and the key to change first.

A cause is named only where a number is far from that of a sound run. `held_back` is a rough estimate of the AP that the
cause costs. It orders the causes and promises nothing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median

from detector.evaluation.run_evidence import RunEvidence, SplitEvidence

_FAR_RATE = 5.0  # times the usual learning rate, up or down
_LEARNT_AP = 0.6  # AP on training images from which on the learning rate is not blamed
_UNMOVED_LOSS = 0.9  # share of the first loss that is left at the end of a run that learns nothing
_MANY_BELOW, _LOW_RECALL = 0.1, 0.8
_ENLARGES = 1.2  # the images are larger than the canvas by this factor
_WRONG_SHARE, _LEARNT_AP50 = 0.08, 0.3
_GAP, _SHIFT = 0.15, 1.2  # in AP; in standard deviations over images
_SIZE_RATIO = 1.6
_RARE_SHARE, _RARE_AP = 0.25, 0.6  # of the median of the other classes
_FEWEST_STEPS = 50  # optimiser steps before which a loss has hardly moved at any learning rate (warm-up alone is 100)
_USUAL_STEPS = 2000  # least number of the default command
_STILL_RISING, _BEFORE_THE_END = 0.04, 0.85  # AP gained at the end of the run, from this share of its steps on


@dataclass(frozen=True)
class Cause:
    """Cause that holds AP back.

    Attributes:
        code: permanent name.
        sentence: the cause in one sentence.
        evidence: the numbers that speak for it, a sentence each.
        change: the key or thing to change first, such as `input.size=640`.
        reason: what to do about it.
        held_back: rough estimate of the AP that it costs.
    """

    code: str
    sentence: str
    evidence: tuple[str, ...]
    change: str
    reason: str
    held_back: float


def causes_of(evidence: RunEvidence) -> tuple[Cause, ...]:
    """Return the causes, that of the largest estimated cost first; none of a sound run."""
    found = [cause for check in _CHECKS for cause in check(evidence)]
    return tuple(sorted(found, key=lambda cause: -cause.held_back))


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _learning_rate(run: RunEvidence) -> Iterator[Cause]:
    """Blame the rate where it is far from the usual one, or nothing was learnt, and training images are not fitted."""
    ratio, reached = run.lr / run.usual_lr, _zero(run.train.ap)
    finite = [loss for loss in run.losses if math.isfinite(loss)]
    is_diverged = len(finite) < len(run.losses)
    is_unmoved = len(finite) > 1 and finite[-1] > _UNMOVED_LOSS * finite[0] and not _is_barely_begun(run)
    if reached >= _LEARNT_AP or not (is_diverged or is_unmoved or not 1 / _FAR_RATE < ratio < _FAR_RATE):
        return
    is_low = ratio <= 1 / _FAR_RATE and not is_diverged
    evidence = [
        f"optimizer.lr is {run.lr:g}, {ratio:g} times the usual {run.usual_lr:g} of {run.optimizer}",
        f"AP on training images is only {reached:.3f}",
    ]
    if is_diverged:
        evidence.append("the training loss was not finite")
    elif len(finite) > 1:
        evidence.append(f"the training loss went from {finite[0]:.3g} to {finite[-1]:.3g}")
    if not is_low and 1 / _FAR_RATE < ratio < _FAR_RATE:
        change = f"optimizer.lr={run.lr / 10:g}"
        reason = "Try a tenth; if the loss then falls smoothly, it was too high."
    else:
        change = f"optimizer.lr={run.usual_lr:g}"
        reason = "Start from the usual rate and change it by factors of 2 or 3."
    yield Cause(
        "rate-low" if is_low else "rate-high",
        f"The learning rate is too {'low' if is_low else 'high'}.",
        tuple(evidence),
        change,
        reason,
        1 - reached,
    )


def finer_levels(stride: int) -> tuple[int, ...]:
    """Return the strides to try where the finest map of a network has this one."""
    return tuple(level for level in (stride // 2, stride, 2 * stride, 4 * stride) if level <= 64)


def _sizes(run: RunEvidence) -> Iterator[Cause]:
    """Blame the canvas or the strides where many objects are smaller than a cell of the finest map."""
    split = run.val or run.train
    share, recall = split.share_below, _zero(split.recall_below)
    others = 1.0 if math.isnan(split.recall_others) else split.recall_others
    if share < _MANY_BELOW or recall >= _LOW_RECALL * others:
        return
    numbers = (
        f"{_percent(share)} of the objects are below {run.stride} px on the canvas of {run.canvas_px} px; their median "
        f"size is {split.canvas_px:.1f} px",
        f"the model finds {_percent(recall)} of the objects below {run.stride} px"
        + ("" if math.isnan(split.recall_others) else f" and {_percent(split.recall_others)} of the others"),
    )
    cost = share * (1 - recall)
    is_reduced = run.source_px > _ENLARGES * run.canvas_px and split.share_below_in_source < share / 2
    if is_reduced:
        size = run.fitting_px or 64 * math.ceil(run.source_px / 64)
        note = f"the images have {run.source_px:.0f} px: at that size {_percent(split.share_below_in_source)} would be"
        yield Cause(
            "canvas-small",
            "The canvas is too small: it reduces the images until objects vanish.",
            (*numbers, f"{note} below {run.stride} px"),
            f"input.size={size}",
            "Train and predict on a larger canvas, or in tiles (views.tile) if it takes too long.",
            cost,
        )
        return
    levels = f"model.levels=[{','.join(map(str, finer_levels(run.stride)))}]"
    change = levels if run.has_levels else f"input.size={2 * run.canvas_px}"
    yield Cause(
        "below-stride",
        "Objects are smaller than the smallest stride of the network.",
        (*numbers, f"the images have {run.source_px:.0f} px, so that a larger canvas only enlarges them"),
        change,
        "Use finer maps or enlarge the images; images with more pixels help most.",
        cost,
    )


def _labels(run: RunEvidence) -> Iterator[Cause]:
    """Blame the labels where the model's most confident detections on training images contradict them."""
    split = run.train
    num_wrong = sum(split.num_wrong.values())
    if not split.num_confident or _zero(split.ap50) < _LEARNT_AP50 or num_wrong < _WRONG_SHARE * split.num_confident:
        return
    words = {
        "classification": "have another class than the label",
        "localisation": "lie beside the label",
        "both": "lie beside a label of another class",
        "duplicate": "are on an object that another detection has",
        "background": "are on no label",
    }
    listed = [f"{n} {words[kind]}" for kind, n in sorted(split.num_wrong.items(), key=lambda item: -item[1]) if n]
    share = num_wrong / split.num_confident
    yield Cause(
        "labels",
        "Labels disagree with one another: the model contradicts training labels where it is most certain.",
        (
            f"of the {split.num_confident} most confident detections on {split.num_measured} training images, "
            f"{num_wrong} ({_percent(share)}) are wrong according to the labels",
            ", ".join(listed),
        ),
        "the labels of data.train",
        "Review the most suspect ones: detector labels suspects RUN --split train.",
        share,
    )


def _generalisation(run: RunEvidence) -> Iterator[Cause]:
    """Blame a difference of the splits, or overfitting, where training images give a far better AP than others."""
    if run.val is None:
        return
    rare = set(_rare_classes(run))
    shared = [name for name, ap in run.val.class_ap.items() if name not in rare and not math.isnan(ap)]
    pairs = [(run.train.class_ap.get(name, math.nan), run.val.class_ap[name]) for name in shared]
    pairs = [pair for pair in pairs if not math.isnan(pair[0])]
    if not pairs:
        return
    learnt, others = (sum(column) / len(pairs) for column in zip(*pairs, strict=True))
    gap = learnt - others
    if gap < _GAP:
        return
    numbers = f"AP is {learnt:.3f} on training images and {others:.3f} on validation images"
    if differences := _differences(run.train, run.val):
        yield Cause(
            "mismatch",
            "Training and validation images are of different kinds.",
            (numbers, *differences),
            "data.train and data.val",
            "Add images of the other kind to data.train, or divide all of them again: detector dataset split --again.",
            gap,
        )
        return
    peak = max(run.aps, default=math.nan)
    evidence = [numbers, f"there are {run.train.num_images} training images with {run.train.num_objects} objects"]
    if run.aps and run.aps[-1] < peak - _STILL_RISING:
        evidence.append(f"AP fell from {peak:.3f} to {run.aps[-1]:.3f} by the end")
    yield Cause(
        "overfitting",
        "The model has learnt the training images by heart.",
        tuple(evidence),
        "augment.mosaic=1.0" if run.mosaic < 1 else "more images in data.train",
        "More images help most; stronger augmentation and starting weights (train.weights) help where there are none.",
        gap,
    )


def _differences(train: SplitEvidence, val: SplitEvidence) -> list[str]:
    """Return what is different in the images of the splits, in sentences, the largest difference first."""
    found = []
    for name, (mean, deviation) in train.looks.items():
        other, other_deviation = val.looks.get(name, (math.nan, math.nan))
        spread = math.sqrt((deviation**2 + other_deviation**2) / 2)
        shift = abs(mean - other) / max(spread, 1e-9)
        if shift >= _SHIFT:
            text = f"{name} is {mean:.3g} on average in training images and {other:.3g} in validation images"
            found.append((shift, f"{text}, {shift:.1f} standard deviations apart"))
    ratio = train.canvas_px / val.canvas_px
    if ratio > _SIZE_RATIO or ratio < 1 / _SIZE_RATIO:
        sizes = f"{train.canvas_px:.0f} px in training images and {val.canvas_px:.0f} px in validation images"
        found.append((abs(math.log(ratio)), f"the median size of objects on the canvas is {sizes}"))
    return [text for _, text in sorted(found, reverse=True)]


def _rare_classes(run: RunEvidence) -> Iterator[str]:
    """Yield classes in far fewer training images than the others, with a far lower AP."""
    if run.val is None:
        return
    for name, num in run.num_images_of.items():
        ap = run.val.class_ap.get(name, math.nan)
        others = [n for other, n in run.num_images_of.items() if other != name]
        aps = [a for other, a in run.val.class_ap.items() if other != name and not math.isnan(a)]
        if others and aps and num < _RARE_SHARE * median(others) and ap < _RARE_AP * median(aps):
            yield name


def _few_images(run: RunEvidence) -> Iterator[Cause]:
    rare = sorted(_rare_classes(run), key=lambda name: run.num_images_of[name])
    if not rare or run.val is None:
        return
    known = {name: ap for name, ap in run.val.class_ap.items() if not math.isnan(ap)}
    usual_ap = median([ap for name, ap in known.items() if name not in rare] or [0.0])
    usual = median([n for name, n in run.num_images_of.items() if name not in rare] or [0])
    numbers = [f"{name}: {run.num_images_of[name]} training images, AP {known[name]:.3f}" for name in rare]
    yield Cause(
        "few-images",
        f"There are too few training images of {', '.join(rare)}.",
        (*numbers, f"the other classes have {usual:g} images and AP {usual_ap:.3f} (medians)"),
        "loader.repeat_factor=0.1",
        "It shows these images more often; more of them help most.",
        sum(usual_ap - known[name] for name in rare) / len(known),
    )


def _length(run: RunEvidence) -> Iterator[Cause]:
    """Blame the length where a run had too few steps to learn anything, or AP still rose fast at the end."""
    if _is_barely_begun(run):
        num_steps = run.steps[-1]
        yield Cause(
            "short",
            "Training ended before a network can learn anything.",
            (f"the last evaluation is after {num_steps} optimiser steps of {run.num_steps}",),
            "train --resume" if num_steps < run.num_steps else f"train.iterations={_USUAL_STEPS}",
            "Continue the run." if num_steps < run.num_steps else "Train longer; nothing else can be judged so early.",
            1 - _zero(run.train.ap),
        )
        return
    last = run.steps[-1] if run.steps else 0
    before = [ap for step, ap in zip(run.steps, run.aps, strict=True) if step <= _BEFORE_THE_END * last]
    is_short = last < run.num_steps
    # AP rises at the end of every schedule; a model that fits its training images does not lack steps.
    if not before or run.aps[-1] - before[-1] < _STILL_RISING or (run.train.ap >= _LEARNT_AP and not is_short):
        return
    gain = run.aps[-1] - before[-1]
    done = f"after {run.steps[-1]} of {run.num_steps} steps" if is_short else f"after {run.num_steps} steps"
    yield Cause(
        "short",
        "Training ended while AP was still rising.",
        (f"AP rose from {before[-1]:.3f} to {run.aps[-1]:.3f} at the end, {done}",),
        "train --resume" if is_short else f"train.iterations={2 * run.num_steps}",
        "Continue the run." if is_short else "Train twice as long.",
        gain,
    )


def _is_barely_begun(run: RunEvidence) -> bool:
    return bool(run.steps) and run.steps[-1] < _FEWEST_STEPS


def _zero(value: float) -> float:
    return 0.0 if math.isnan(value) else value


_CHECKS: tuple[Callable[[RunEvidence], Iterator[Cause]], ...] = (
    _learning_rate,
    _sizes,
    _labels,
    _generalisation,
    _few_images,
    _length,
)


def to_plain(cause: Cause) -> dict[str, object]:
    """Return a cause as plain data for JSON."""
    return {**dataclasses.asdict(cause), "held_back": round(cause.held_back, 3)}
