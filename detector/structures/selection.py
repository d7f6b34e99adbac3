"""Selection of detections from boxes and scores: score filter and non-maximum suppression."""

from __future__ import annotations

import functools
import importlib.machinery
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal, TypeVar

import torch
from torch import Tensor

from detector.errors import ConfigError
from detector.structures import transfer

# Candidates beyond this number are never kept in practice, and the time of suppression is quadratic in their number.
MAX_CANDIDATES = 30_000

NmsKind = Literal["plain", "greedy", "diou", "none"]
# The exponent of Darknet's `greedynms`, whose `diounms` has `beta_nms` in its place.
GREEDY_BETA = 0.6
_BLOCK = 256  # boxes compared with one another at once
_LIBRARIES = ("_C_stable", "_C")  # names of the library in newer and older versions of torchvision


@dataclass(frozen=True)
class SelectConfig:
    """Settings of the selection of detections from the boxes of a model.

    Attributes:
        confidence: lowest score kept, 0..1.
        class_confidence: lowest score kept of each class, 0..1, in place of `confidence`, or None.
        iou: overlap above which the lower-scoring box of a class is suppressed, 0..1.
        max_detections: most detections kept per image, best first.
        class_agnostic: whether boxes of different classes suppress each other.
        classes: class indices to keep, or None for all.
        nms: what `iou` bounds. `plain`: the intersection over union of two boxes. `greedy` and `diou`: less
            (d^2 / c^2)^beta, where d is the distance of the centres and c the diagonal of the hull (Zheng et al. 2020,
            section 3.4), so that boxes about different centres stay; beta is 0.6 for `greedy`, `nms_beta` for `diou`,
            as in Darknet. `none`: no box is suppressed, for models that give each object one box by themselves; `iou`
            and `class_agnostic` then have no effect.
        nms_beta: the exponent of `diou`.
        best_class: whether a box counts for its best class only, the first of several that are equally good, as in
            YOLOX; otherwise for every class whose score passes.
    """

    confidence: float = 0.25
    iou: float = 0.7
    max_detections: int = 300
    class_agnostic: bool = False
    classes: tuple[int, ...] | None = None
    nms: NmsKind = "plain"
    nms_beta: float = 0.6
    class_confidence: tuple[float, ...] | None = None
    best_class: bool = False

    def __post_init__(self) -> None:
        if not all(0 <= value <= 1 for value in self.class_confidence or ()):
            raise ValueError(f"class_confidence: expected values within 0..1, got {list(self.class_confidence or ())}")
        if not (0 <= self.confidence <= 1 and 0 <= self.iou <= 1):
            raise ValueError(f"confidence and iou: expected values within 0..1, got {self.confidence} and {self.iou}")
        if self.max_detections < 1:
            raise ValueError(f"max_detections: expected at least 1, got {self.max_detections}")
        if self.classes is not None and not self.classes:
            raise ValueError("classes: expected at least one class, got an empty list; leave it out to keep all")
        if self.classes and min(self.classes) < 0:
            raise ValueError(f"classes: expected indices of at least 0, got {min(self.classes)}")
        if not self.nms_beta > 0:
            raise ValueError(f"nms_beta: expected a value above 0, got {self.nms_beta}")

    @property
    def min_per_class(self) -> int:
        """Number of detections of each class that are kept beyond `max_detections`, best first; 0 in prediction."""
        return 0


def select(
    canvas_xyxy: Tensor, scores: Tensor, config: SelectConfig, image_hw: tuple[int, int] = (1, 1)
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the detections of one image: filtered by score, suppressed by overlap, best first.

    A box counts once for every class whose score passes, or with `best_class` for its best class only. Boxes or scores
    that are not finite are never detections.

    Args:
        canvas_xyxy: float32 (A, 4), any frame.
        scores: float32 (A, classes), 0..1.
        config: settings of the selection.
        image_hw: height and width of the image in that frame; `greedy` and `diou` measure distances relative to it, as
            Darknet does, and in the frame's own unit without it.

    Returns:
        boxes float32 (N, 4) in the frame given, scores float32 (N,) descending, labels int64 (N,).

    Raises:
        ConfigError: `config.classes` names a class that the scores do not have, or `config.class_confidence` has
            another number of classes.
    """
    row, label = select_rows(canvas_xyxy, scores, config, image_hw)
    return canvas_xyxy[row], scores[row, label], label


def taken_to_host(canvas_xyxy: Tensor, scores: Tensor, configs: Sequence[SelectConfig]) -> list[tuple[Tensor, Tensor]]:
    """Return the boxes and scores of each image on the CPU, from a GPU only those that can pass `select`, in order.

    This is where the CPU waits for a GPU, once for a batch. Suppression needs counts after every class of every image,
    which would make it wait for each of them, so it follows on the CPU.

    Args:
        canvas_xyxy: float32 (B, A, 4), any frame.
        scores: float32 (B, A, classes).
        configs: settings of the selection of the images, of the first ones of the batch.
    """
    num = len(configs)
    if scores.device.type == "cpu" and not transfer.runs_ahead(scores):
        return list(zip(canvas_xyxy[:num], scores[:num], strict=True))
    lowest = min(min(config.class_confidence or (config.confidence,)) for config in configs)
    image, row = (scores[:num] >= lowest).any(dim=2).nonzero(as_tuple=True)
    rows = torch.cat([image[:, None].float(), canvas_xyxy[image, row], scores[image, row]], dim=1).cpu()
    counts = torch.bincount(rows[:, 0].long(), minlength=num).tolist()
    return [(part[:, 1:5], part[:, 5:]) for part in torch.split(rows, counts)]


def select_rows(
    canvas_xyxy: Tensor, scores: Tensor, config: SelectConfig, image_hw: tuple[int, int] = (1, 1)
) -> tuple[Tensor, Tensor]:
    """Return the detections of `select` as rows of the boxes and labels, int64 (N,) each.

    Raises:
        ConfigError: `config.classes` names a class that the scores do not have, or `config.class_confidence` has
            another number of classes.
    """
    passing = scores >= _lowest(scores, config)
    if config.best_class:
        finite = torch.where(torch.isfinite(scores), scores, -1)  # argmax would take a NaN for the best
        passing &= torch.zeros_like(passing).scatter_(1, finite.argmax(dim=1, keepdim=True), True)
    passing &= torch.isfinite(canvas_xyxy).all(dim=1)[:, None]  # a NaN score compares false anyway
    passing &= torch.isfinite(scores)
    if config.classes is not None:
        num_classes = scores.shape[1]
        if config.classes and max(config.classes) >= num_classes:
            raise ConfigError(
                f"select: expected classes of 0 to {num_classes - 1}, got {max(config.classes)}; "
                "name classes of this model"
            )
        allowed = torch.zeros(num_classes, dtype=torch.bool, device=scores.device)
        allowed[list(config.classes)] = True
        passing &= allowed
    row, label = passing.nonzero(as_tuple=True)
    kept = select_labelled(canvas_xyxy[row], scores[row, label], label, config, image_hw)
    return row[kept], label[kept]


def select_labelled(
    xyxy: Tensor, scores: Tensor, labels: Tensor, config: SelectConfig, image_hw: tuple[int, int] = (1, 1)
) -> Tensor:
    """Return the rows of the boxes that suppression keeps, best first: `select` without its filters, one class a box.

    Args:
        xyxy: float32 (K, 4), any frame, finite.
        scores: float32 (K,), finite.
        labels: int64 (K,).
        config: settings of suppression and the numbers of boxes to keep.
        image_hw: as in `select`.

    Returns:
        Rows, int64 (N,).
    """
    # A stable sort keeps the order of equal scores the same on every run.
    order = scores.sort(descending=True, stable=True).indices[:MAX_CANDIDATES]
    if config.nms == "none":
        return order[_is_within(labels[order], config)]
    boxes = xyxy[order]
    if config.nms == "plain":
        measured = boxes
    else:
        height, width = image_hw
        measured = boxes / boxes.new_tensor([width, height, width, height])
    kept = _suppress(measured, scores[order], None if config.class_agnostic else labels[order], config)
    kept = order[kept]
    return kept[_is_within(labels[kept], config)]


def _is_within(labels: Tensor, config: SelectConfig) -> Tensor:
    """Return which boxes (K,), best first, are among the best of the image or of their class: bool (K,)."""
    is_kept = torch.arange(len(labels), device=labels.device) < config.max_detections
    if config.min_per_class and not is_kept.all():
        by_class = labels.sort(stable=True)
        starts = torch.searchsorted(by_class.values, by_class.values)
        turns = torch.empty_like(labels)
        turns[by_class.indices] = torch.arange(len(labels), device=labels.device) - starts
        is_kept |= turns < config.min_per_class
    return is_kept


def with_one_limit(config: SelectConfig) -> SelectConfig:
    """Return a selection that keeps `max_detections` boxes and no more, for a number that the user asks for."""
    return SelectConfig(**{field.name: getattr(config, field.name) for field in fields(SelectConfig)})


SelectionT = TypeVar("SelectionT", bound=SelectConfig)


def with_selection(config: SelectionT, selected: SelectConfig, default: SelectConfig) -> SelectionT:
    """Return a configuration with the settings that boxes were selected with, where it has not been changed.

    Args:
        config: the configuration.
        selected: the settings that the boxes were selected with.
        default: the configuration before changes; a setting that differs from it was asked for and stays.
    """
    names = [field.name for field in fields(SelectConfig)]
    own = {name: getattr(selected, name) for name in names if getattr(config, name) == getattr(default, name)}
    return replace(config, **own)


def require_within(selected: SelectConfig, asked: SelectConfig) -> None:
    """Reject a selection whose result cannot be computed from boxes that were selected before.

    The same settings are accepted, and so are higher scores, fewer detections and fewer classes.

    Args:
        selected: the settings that the boxes were selected with.
        asked: the settings that are requested.

    Raises:
        ConfigError: the boxes lack some of the requested result; the message gives every reason.
    """
    num_classes = len(selected.class_confidence or asked.class_confidence or (0.0,))
    before = selected.class_confidence or (selected.confidence,) * num_classes
    now = asked.class_confidence or (asked.confidence,) * num_classes
    # Classes that do not suppress each other can be selected afterwards.
    is_part = asked.classes is not None and set(asked.classes) <= set(selected.classes or asked.classes)
    is_part = is_part and not selected.class_agnostic
    fits = {
        f"confidence of at least {_listed(before)}": all(a >= b for a, b in zip(now, before, strict=False)),
        f"iou={selected.iou:g}": asked.iou == selected.iou or selected.nms == "none",
        f"nms={selected.nms}": asked.nms == selected.nms,
        f"best_class={selected.best_class}": asked.best_class == selected.best_class,
        f"class_agnostic={selected.class_agnostic}": (
            asked.class_agnostic == selected.class_agnostic or selected.nms == "none"
        ),
        f"max_detections of at most {selected.max_detections}": asked.max_detections <= selected.max_detections,
        f"classes={selected.classes}": asked.classes == selected.classes or is_part,
    }
    if not all(fits.values()):
        required = ", ".join(what for what, is_met in fits.items() if not is_met)
        raise ConfigError(
            f"the file suppresses by itself and gives boxes for {required} only; ask for that, or export without --nms"
        )


def _listed(values: tuple[float, ...]) -> str:
    return f"{values[0]:g}" if len(set(values)) == 1 else f"{[round(value, 4) for value in values]}"


def _lowest(scores: Tensor, config: SelectConfig) -> float | Tensor:
    """Return the lowest score kept, one for each class if they differ."""
    if config.class_confidence is None:
        return config.confidence
    if len(config.class_confidence) != scores.shape[1]:
        raise ConfigError(
            f"class_confidence: expected a value for each of {scores.shape[1]} classes, got "
            f"{len(config.class_confidence)}; give one for each"
        )
    return scores.new_tensor(config.class_confidence)


def _suppress(boxes: Tensor, scores: Tensor, labels: Tensor | None, config: SelectConfig) -> Tensor:
    """Return the indices of the boxes that no better one (of the same label) overlaps too much, ascending.

    Labels are treated one at a time. torchvision's `batched_nms` shifts the labels apart instead, which rounds the
    coordinates and lets boxes beyond the canvas overlap those of another label; it also orders equal scores at random.

    Args:
        boxes: float32 (K, 4), best first.
        scores: float32 (K,), descending.
        labels: int64 (K,), or None for one label.
        config: the kind of suppression and its bounds.
    """
    if labels is None:
        labels = torch.zeros_like(scores, dtype=torch.int64)
    kept = [torch.zeros(0, dtype=torch.int64, device=boxes.device)]
    for label in sorted(set(labels.tolist())):
        members = (labels == label).nonzero().squeeze(1)
        if config.nms == "plain":
            chosen = _plain_nms(boxes[members], scores[members], config.iou)
        else:
            beta = GREEDY_BETA if config.nms == "greedy" else config.nms_beta
            most = max(config.max_detections, config.min_per_class)
            chosen = _distance_nms(boxes[members], config.iou, beta, most)
        kept.append(members[chosen])
    return torch.cat(kept).sort().values


def _distance_nms(boxes: Tensor, threshold: float, beta: float, most: int) -> Tensor:
    """Return the indices of the first `most` boxes (K, 4), best first, that no better kept one suppresses.

    A block of boxes is compared with all boxes that were kept before it. Within the block, the sequential rule is the
    fixed point of suppressing all boxes at once (Zheng et al. 2021, "Cluster-NMS"). The number of rounds is that of the
    links in the longest chain of boxes that suppress each other.
    """
    chosen = [torch.zeros(0, dtype=torch.int64, device=boxes.device)]
    num_kept = 0
    for start in range(0, len(boxes), _BLOCK):
        block = boxes[start : start + _BLOCK]
        free = (~_suppresses(boxes[torch.cat(chosen)], block, threshold, beta).any(dim=0)).nonzero().squeeze(1)
        pairs = _suppresses(block[free], block[free], threshold, beta).triu(diagonal=1).float()
        keeps, last = torch.ones(len(free), device=boxes.device), None
        while last is None or not torch.equal(keeps, last):
            keeps, last = (keeps @ pairs == 0).float(), keeps
        chosen.append(free[keeps > 0] + start)
        num_kept += len(chosen[-1])
        if num_kept >= most:
            break
    return torch.cat(chosen)


def _suppresses(better: Tensor, others: Tensor, threshold: float, beta: float) -> Tensor:
    """Return where the IoU of boxes (K, 4) and (L, 4) less (d^2 / c^2)^beta exceeds the threshold: bool (K, L)."""
    left, top, right, bottom = (side[:, None] for side in better.unbind(1))
    other_left, other_top, other_right, other_bottom = others.unbind(1)
    shared = (torch.minimum(right, other_right) - torch.maximum(left, other_left)).clamp_(min=0)
    shared *= (torch.minimum(bottom, other_bottom) - torch.maximum(top, other_top)).clamp_(min=0)
    area, other_area = (right - left) * (bottom - top), (other_right - other_left) * (other_bottom - other_top)
    iou = shared / (area + other_area - shared)  # NaN, which never passes, if neither box has an area
    passing = iou > threshold
    row, column = passing.nonzero(as_tuple=True)  # the term only lowers the overlap: no other pair can pass
    first, second = better[row], others[column]
    hull = torch.maximum(first[:, 2:], second[:, 2:]) - torch.minimum(first[:, :2], second[:, :2])
    centres = (first[:, :2] + first[:, 2:] - second[:, :2] - second[:, 2:]) / 2
    share = centres.square().sum(dim=1) / hull.square().sum(dim=1)
    passing[row, column] = iou[row, column] - share.pow_(beta) > threshold
    return passing


def _plain_nms(boxes: Tensor, scores: Tensor, iou: float) -> Tensor:
    """Return the indices of the boxes that no better one overlaps by more than `iou`, best first.

    Args:
        boxes: float32 (K, 4) xyxy.
        scores: float32 (K,).
        iou: the bound.
    """
    return _operator()(boxes, scores, iou)


@functools.cache
def _operator() -> Callable[[Tensor, Tensor, float], Tensor]:
    """Return torchvision's operator; `import torchvision` loads every model that it has, longer than torch takes."""
    specification = importlib.util.find_spec("torchvision")
    folders = (specification.submodule_search_locations if specification else None) or []
    names = [f"{name}{suffix}" for name in _LIBRARIES for suffix in importlib.machinery.EXTENSION_SUFFIXES]
    for path in (Path(folder) / name for folder in folders for name in names):
        if path.is_file():
            try:
                torch.ops.load_library(path)  # type: ignore[no-untyped-call]  # torch has no types for it
                operator: Callable[[Tensor, Tensor, float], Tensor] = torch.ops.torchvision.nms
                return operator
            except (OSError, AttributeError):  # the import below says what is wrong with the installation
                break
    import torchvision.ops

    imported: Callable[[Tensor, Tensor, float], Tensor] = torchvision.ops.nms
    return imported
