"""The pictures that a training run draws into its folder."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import numpy as np

from detector.data.coco import CocoAnnotations
from detector.errors import DetectorError
from detector.evaluation.evaluator import annotated_sources
from detector.inference.predictor import Predictor
from detector.io.nouns import plural
from detector.media.charts import COCO_MEDIUM_PX, COCO_SMALL_PX, class_chart, place_chart, size_chart
from detector.media.comparisons import ImageComparison, draw_comparisons
from detector.media.images import write_image
from detector.media.run_charts import results_chart, side_by_side
from detector.structures.canvas import InputConfig
from detector.structures.letterbox import Image
from detector.structures.selection import SelectConfig
from detector.training.events import Evaluated, Event, Noted, Report, Started, StepDone
from detector.training.run_folder import RunFolder

NUM_COMPARED = 8  # validation images on the sheet, evenly spaced over the split
_COMPARED_SIDE_PX = 416
_MOST_DRAWN = 500_000  # objects whose size and centre are drawn


class RunPictures:
    """Reporter that draws `labels.png` after the first step and `results.png` after each evaluation.

    It does not draw before the first step, because loading the plotting library takes a quarter of a second, in which
    the workers load the next batches. A picture that cannot be written is reported, and training continues.
    """

    def __init__(self, folder: RunFolder, annotations: CocoAnnotations, canvas: InputConfig, report: Report) -> None:
        """Set up the pictures of a run in `folder` on a training split; events are passed on to `report` first."""
        self._folder, self._annotations, self._canvas, self._report = folder, annotations, canvas, report
        self._has_labels = False

    def __call__(self, event: Event) -> None:
        """Pass an event on and draw the picture that it makes due."""
        self._report(event)
        if isinstance(event, Started) and event.first_step:
            self._has_labels = (self._folder.path / "labels.png").exists()
        with self._told():
            if isinstance(event, StepDone) and not self._has_labels:
                self._has_labels = True
                self._folder.write_file("labels.png", labels_picture(self._annotations, self._canvas))
            elif isinstance(event, Evaluated):
                self._folder.write_file("results.png", results_chart(self._folder.results()))

    def draw_predictions(self, predictor: Predictor, val: CocoAnnotations, select: SelectConfig) -> None:
        """Write `val_predictions.jpg`: validation images with their ground truth and their predictions."""
        with self._told():
            sheet = predictions_picture(predictor, val, select)
            if sheet is not None:
                write_image(self._folder.path / "val_predictions.jpg", sheet)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except DetectorError as error:
            self._report(Noted(str(error)))


def labels_picture(annotations: CocoAnnotations, canvas: InputConfig) -> bytes:
    """Draw the classes, the sizes on the canvas and the centres of the objects of a training split.

    Crowd regions are left out, and so are sizes and centres in images of unknown size. Of large splits, every n-th
    object has its size and centre drawn, so that the memory is bounded.

    Returns:
        The bytes of a PNG.
    """
    labels, is_crowd, num_classes = annotations.labels, annotations.is_crowd, len(annotations.class_names)
    num_of_class = np.bincount(labels, minlength=num_classes) - np.bincount(labels[is_crowd], minlength=num_classes)
    counts = num_of_class.tolist()
    every = math.ceil(max(annotations.num_boxes, 1) / _MOST_DRAWN)
    rows = np.arange(0, annotations.num_boxes, every)
    rows = rows[~is_crowd[rows]]
    source_hw = annotations.image_hw[np.searchsorted(annotations.offsets, rows, side="right") - 1]
    is_known = (source_hw > 0).all(axis=1)
    boxes_xywh, source_wh = annotations.boxes_xywh[rows[is_known]], source_hw[is_known][:, ::-1]
    scale = np.array(canvas.canvas_hw[::-1]) / source_wh
    if canvas.fit == "letterbox":
        scale = scale.min(axis=1, keepdims=True)
    sides = np.sqrt((boxes_xywh[:, 2:] * scale).prod(axis=1))
    size_label = "side of a box in pixels of the network's input"
    drawn = plural(len(sides), "object") + (f" (one of {every:,})" if every > 1 else "")
    place_title = f"Centres of {drawn}: darker means more"
    return side_by_side(
        {
            f"{plural(sum(counts), 'object')} of each class in {plural(len(annotations), 'image')}": class_chart(
                annotations.class_names, {"train": counts}
            ),
            f"Sizes of {drawn}": size_chart({"train": sides}, size_label, (COCO_SMALL_PX, COCO_MEDIUM_PX)),
            place_title: place_chart((boxes_xywh[:, :2] + boxes_xywh[:, 2:] / 2) / source_wh),
        }
    )


def predictions_picture(predictor: Predictor, val: CocoAnnotations, select: SelectConfig) -> Image | None:
    """Draw some images of a split, ground truth beside predictions; return None if none of them can be read.

    The predictor must know the categories of the split.
    """
    chosen = np.unique(np.linspace(0, len(val) - 1, NUM_COMPARED).round().astype(int)).tolist()
    sources = annotated_sources(val)
    # The split may have fewer classes than the model: equal ids mean the same category.
    label_of = np.array([predictor.category_ids.index(category) for category in val.category_ids], np.int64)
    compared = [
        ImageComparison(
            prediction.source.path.name if prediction.source.path else prediction.source.name,
            prediction.image,
            val.source_xyxy(index),
            label_of[val.labels_of(index)],
            val.is_crowd_of(index),
            prediction.detections,
        )
        for index, prediction in zip(chosen, predictor.stream([sources[i] for i in chosen], select), strict=True)
        if prediction.image is not None and prediction.detections is not None
    ]
    if not compared:
        return None
    aspect = float(np.median([one.image.shape[0] / one.image.shape[1] for one in compared]))
    tile_hw = (
        round(_COMPARED_SIDE_PX * min(1.0, max(aspect, 0.25))),
        round(_COMPARED_SIDE_PX / min(4.0, max(1.0, aspect))),
    )
    return draw_comparisons(compared, predictor.class_names, tile_hw)
