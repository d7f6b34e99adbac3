"""The task `detect`: boxes and classes of the objects in an image."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from detector.config import registry
from detector.config.registry import register
from detector.data.canvas_sizes import training_canvases
from detector.data.class_matching import match_classes
from detector.data.coco import CocoAnnotations
from detector.data.coco_extras import no_extras
from detector.data.dataset_editing import Portion, take
from detector.data.image_cache import stated_cost
from detector.data.loader import BatchRange, StreamSampler, TrainingSamples, training_batches
from detector.data.repeat_factors import repeat_factors
from detector.data.unlabelled import with_unlabelled
from detector.data.worker_processes import require_main_guard
from detector.errors import ConfigError, DatasetError
from detector.evaluation.coco_metrics import CocoMetrics
from detector.evaluation.evaluator import annotated_sources, evaluate
from detector.inference.prediction_run import OnPicture
from detector.inference.predictor import Predictor
from detector.inference.runtime import TorchRuntime
from detector.losses.distillation import DistillationLoss
from detector.media.drawing import draw_batch
from detector.media.images import write_image
from detector.models.contracts import DetectionModel
from detector.structures.canvas import Canvas
from detector.structures.types import Batch
from detector.tasks.detection_config import DetectionConfig
from detector.tasks.detection_evaluation import evaluate_detector
from detector.tasks.detection_model import build_model, read_split, read_train
from detector.tasks.detection_prediction import predict_with_detector
from detector.tasks.memory_batch_size import with_batch_size
from detector.tasks.requests import EvaluationOutcome, ModelRequest, Observer, PredictionRequest, TaskRun
from detector.tasks.run_pictures import RunPictures
from detector.tasks.task import Headline, Task
from detector.tasks.teacher import Teacher
from detector.training.distributed import World
from detector.training.events import Noted, Report
from detector.training.run_folder import RunFolder

NUM_DRAWN_BATCHES = 3  # the first training batches, drawn into the run folder


@register("detect")
class DetectionTask(Task[DetectionConfig, DetectionModel]):
    """A detector on a data set with boxes."""

    Config = DetectionConfig
    product = "detector"
    headline = Headline("AP", "best_ap")

    def __init__(self, config: DetectionConfig, report: Report) -> None:
        """Read the splits and match the classes of `val` with those of `train`; report what was skipped and left out.

        Raises:
            DatasetError: a split cannot be used, `train` has no object, or no category of `val` is a class of `train`.
            ConfigError: workers of the loader would run the script again, or the teacher cannot be used.
            CheckpointError: the teacher cannot be read.
        """
        require_main_guard(config.loader.workers)
        self._config = config
        self._annotations, held_out = read_train(config, report)
        self.has_val = held_out is not None or config.has_val
        _require_objects(self._annotations)
        self.class_names, self.category_ids = self._annotations.class_names, self._annotations.category_ids
        self._val, self._val_ids = None, self.category_ids
        if self.has_val:
            val = held_out if held_out is not None else read_split(config, "val", report, with_notes=False)
            if config.train.val_share != (0.0, 1.0):
                val = take(Portion(val, no_extras(val)), config.train.val_images(len(val))).annotations
            match = match_classes(self.class_names, self.category_ids, val, "the training split")
            for text in match.notes:
                report(Noted(text))
            if match.warning:
                report(Noted(match.warning, is_warning=True))
            self._val, self._val_ids = match.matched_part(val), match.category_ids
            if not (~self._val.is_crowd).any():
                report(Noted(f"{val.annotations}: has no object to measure AP on, the last weights count as the best"))
        self._shown = self._with_unlabelled(report)
        self._teacher = Teacher(config, self._annotations, report) if config.train.teacher is not None else None
        self.provenance = self._teacher.identity if self._teacher is not None else {}
        self.num_images, self.batch_size = len(self._shown), config.loader.batch_size
        self.num_objects = self._annotations.num_boxes
        self.num_val_images = len(self._val) if self._val is not None else 0
        self.num_val_objects = self._val.num_boxes if self._val is not None else 0
        self.problems = (*self._shown.problems, *(self._val.problems if self._val is not None else ()))
        self.data_digest = " ".join(part.digest() for part in (self._shown, self._val) if part is not None)
        self._pictures: RunPictures | None = None

    def _with_unlabelled(self, report: Report) -> CocoAnnotations:
        """Return the training split with the images of `data.unlabelled`, if there are any; report their number.

        Raises:
            ConfigError: there is no teacher to label them.
        """
        place = self._config.data.unlabelled if self._config.data is not None else None
        if place is None:
            return self._annotations
        if self._config.train.teacher is None:
            raise ConfigError(
                f"data.unlabelled={place}: expected a teacher that labels these images, got none; give train.teacher, "
                f"or label them once with detector labels pseudo"
            )
        joined = with_unlabelled(self._annotations, place, () if self._val is None else (self._val,))
        for problem in joined.problems[len(self._annotations.problems) :]:
            report(Noted(str(problem), is_of_data=True))
        num_added = len(joined) - len(self._annotations)
        report(Noted(f"data.unlabelled: {num_added} images of {place} are shown too, labelled by the teacher alone"))
        return joined

    @classmethod
    def choose_batch_size(cls, config: DetectionConfig, world: World, report: Report) -> DetectionConfig:
        """Return the config with a batch size measured from memory if it asks for one, else unchanged."""
        return with_batch_size(config, world, report)

    @classmethod
    def evaluate_file(cls, request: ModelRequest, observer: Observer) -> EvaluationOutcome:
        """Evaluate a detector on a split and write its results."""
        return evaluate_detector(request, observer)

    @classmethod
    def predict_file(cls, request: PredictionRequest, observer: Observer, on_picture: OnPicture | None) -> TaskRun:
        """Open a detector and sources and return the run over them."""
        return predict_with_detector(request, observer, on_picture)

    def model(self) -> DetectionModel:
        """Return the network with random weights."""
        return build_model(self._config, len(self.class_names))

    def loss(self, model: DetectionModel) -> Any:
        """Return the function from raw maps and boxes to `LossParts`.

        Raises:
            ConfigError: the loss cannot be joined with that of a teacher.
        """
        loss = registry.build(self._config.loss, model)
        if self._teacher is None:
            return loss
        return DistillationLoss(loss, model, self._teacher.is_taught, self._config.train.teacher_weight)

    def _predictor(self, model: DetectionModel, device: torch.device) -> Predictor:
        config, runtime = self._config, TorchRuntime(model, device)
        names, ids = self.class_names, self._val_ids
        return Predictor(runtime, config.input, names, ids, batch_size=config.evaluate.batch_size, views=config.views)

    def measure(self, model: DetectionModel, device: torch.device, world: World) -> CocoMetrics:
        """Return the COCO metrics on the validation split."""
        assert self._val is not None  # called only with a validation split
        return evaluate(self._predictor(model, device), self._val, self._config.evaluate, world=world).metrics

    def seconds_per_val_image(self, model: DetectionModel, device: torch.device) -> float:
        """Return the time per image of a warm batch of validation images, scoring excluded.

        A random network gives far more boxes than a trained one, so they are filtered as in prediction.
        """
        assert self._val is not None  # called only with a validation split
        sources = list(itertools.islice(annotated_sources(self._val), self._config.evaluate.batch_size))
        predictor, took_s = self._predictor(model, device), 0.0
        for _ in range(2):
            started_s = time.monotonic()
            for _ in predictor.stream(sources, self._config.predict):
                pass
            took_s = time.monotonic() - started_s
        return took_s / max(1, len(sources))

    def batches(
        self, model: DetectionModel, first_step: int, num_steps: int, folder: RunFolder, world: World, report: Report
    ) -> Iterator[Batch]:
        """Yield augmented batches; draw the first ones at the start of a run.

        Raises:
            ConfigError: a listed transform or the cache folder cannot be used.
        """
        config, annotations = self._config, self._shown
        threshold = config.loader.repeat_factor
        factors = repeat_factors(self._annotations, threshold)[1] if threshold else None
        if factors is not None:  # images without labels are shown once
            factors = np.concatenate([factors, np.ones(len(annotations) - len(factors))])
        samples = TrainingSamples(
            annotations,
            Canvas(config.input.canvas_hw, config.input.channels, config.input.fit),
            config.augment,
            config.train.seed,
            config.loader.cache_mb,
            factors=factors,
            disk_cache=config.loader.disk_cache,
            reduced_decode=config.loader.reduced_decode,
        )
        if config.loader.disk_cache is not None:
            report(Noted(stated_cost(annotations, config.input.channels, config.loader.disk_cache)))
        num_batches = num_steps * config.train.accumulate
        sampler = StreamSampler(
            len(annotations),
            config.loader.batch_size,
            config.train.seed,
            BatchRange(
                start=first_step * config.train.accumulate,
                stop=num_batches,
                closing_from=num_batches - int(config.augment.closing_share * num_batches),
                rank=world.rank,
                world_size=world.size,
            ),
            factors=factors,
            canvases=training_canvases(config.input.canvas_hw, config.input.multi_scale, model.max_stride),
        )
        if first_step == 0 and world.is_main:
            for note in (*_notes_on_objects(model, annotations, config), *_notes_on_tiles(config)):
                report(Noted(note))
            _draw_first_batches(samples, sampler, annotations.class_names, folder)
        batches = training_batches(samples, sampler, config.loader)
        if self._teacher is None:
            return batches
        return self._teacher.taught(batches, next(model.parameters()).device)

    def drawn_reports(self, folder: RunFolder, report: Report) -> Report:
        """Return a reporter that draws labels and results into the folder."""
        self._pictures = RunPictures(folder, self._annotations, self._config.input, report)
        return self._pictures

    def draw_end(self, model: DetectionModel, device: torch.device) -> None:
        """Draw validation images with their predictions."""
        if self._pictures and self._val is not None:
            self._pictures.draw_predictions(self._predictor(model, device), self._val, self._config.predict)


def _require_objects(annotations: CocoAnnotations) -> None:
    """Refuse a training split in which nothing can be learnt.

    Raises:
        DatasetError: it has no object, or crowd regions only.
    """
    if (~annotations.is_crowd).any():
        return
    found = f"{annotations.num_boxes} crowd regions, which are ignored" if annotations.num_boxes else "no annotation"
    raise DatasetError(
        f"{annotations.annotations}: expected objects to train on, got {len(annotations)} images with {found}; check "
        f"that annotations and images belong together"
    )


def _draw_first_batches(
    samples: TrainingSamples, sampler: StreamSampler, class_names: Sequence[str], folder: RunFolder
) -> None:
    for number, keys in zip(range(NUM_DRAWN_BATCHES), sampler, strict=False):
        picture = draw_batch([samples[key] for key in keys[:16]], class_names)
        write_image(folder.path / f"train_batch{number}.jpg", picture)


def _notes_on_objects(model: DetectionModel, annotations: CocoAnnotations, config: DetectionConfig) -> Iterator[str]:
    """Yield a note on objects that a model with anchors cannot express, and on objects that its loss leaves out."""
    levels = model.anchor_levels
    if not levels:
        return
    # A size is at most four times that of the anchor if it is a square (new_coords), else it has no bound.
    sides = [4 * max(level.anchors_wh[n]) if level.new_coords else np.inf for level in levels for n in level.mask]
    if max(sides) < max(config.input.canvas_hw):
        yield (
            f"the anchors of the model express sides of up to {max(sides):.0f} px, the canvas has "
            f"{max(config.input.canvas_hw)} px: larger objects cannot be detected; add a larger anchor"
        )
    most = min(level.training.max_truths for level in levels)
    image = np.repeat(np.arange(len(annotations)), np.diff(annotations.offsets))[~annotations.is_crowd]
    num_objects = np.bincount(image, minlength=len(annotations))
    fullest, num_over = int(num_objects.max(initial=0)), int((num_objects > most).sum())
    has_mosaic = config.augment.mosaic > 0
    if num_over or (has_mosaic and 2 * fullest > most):  # a mosaic shows about as many objects as two images
        yield (
            f"loss: anchor: only the first {most} objects of a training image are trained on: {num_over} images have "
            f"more, the fullest {fullest}{', and a mosaic joins several' if has_mosaic else ''}; raise max in the "
            f"[yolo] sections, or model.head.training.max_truths"
        )


def _notes_on_tiles(config: DetectionConfig) -> Iterator[str]:
    """Yield a note where training and evaluation show objects at different scales."""
    trained, shown = config.augment.tile, config.views.tile
    if trained is not None and trained != shown:
        seen = "whole images" if shown is None else f"tiles of {shown} px"
        yield (
            f"training shows tiles of {trained} px, evaluation {seen}: objects have another size there; give "
            f"views.tile={trained}"
        )
