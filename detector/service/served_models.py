"""Models of the service, each with its batcher."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path

import numpy as np

from detector.errors import ConfigError
from detector.inference.predictor import Predictor
from detector.models.published_weights import resolve_weights
from detector.service.batching import Batcher
from detector.service.service_config import ServiceConfig
from detector.structures.letterbox import Image
from detector.structures.selection import SelectConfig
from detector.structures.types import Detections
from detector.tasks.detection_model import LoadedModel, build_predictor, load_model
from detector.tasks.detection_prediction import select_boxes

OnBatch = Callable[[str, int], None]  # name of the model, number of images


class ServedModel:
    """Model that answers requests.

    Attributes:
        name: its name in addresses.
        loaded: the model.
    """

    def __init__(
        self,
        name: str,
        loaded: LoadedModel,
        config: ServiceConfig,
        on_batch: OnBatch = lambda name, num_images: None,
    ) -> None:
        """Make the network ready to run, with one pass of each batch size.

        Args:
            name: its name in addresses.
            loaded: the model.
            config: batch size and waiting time.
            on_batch: called for each pass.
        """
        self.name, self.loaded = name, loaded
        largest = build_predictor(loaded, config.batch_size)
        self._predictors = {config.batch_size: largest, **{n: _smaller(largest, n) for n in _sizes(config.batch_size)}}
        blank = np.zeros((*loaded.config.input.canvas_hw, loaded.config.input.channels), np.uint8)
        for size, predictor in self._predictors.items():
            predictor.detect([blank] * size, loaded.config.predict)
        self._batcher = Batcher(self._predictors, config.max_wait_s, lambda num_images: on_batch(name, num_images))

    @property
    def is_alive(self) -> bool:
        """True while it answers."""
        return self._batcher.is_alive

    @property
    def channels(self) -> int:
        """Channels of its images."""
        return self.loaded.config.input.channels

    def select(self, settings: Mapping[str, object]) -> SelectConfig:
        """Return the selection of the model with other settings, as `select_boxes` does.

        Raises:
            ConfigError: a setting is wrong.
        """
        return select_boxes(self.loaded.config.predict, self.loaded.file, settings, self.name)

    def submit(self, image: Image, select: SelectConfig) -> Future[Detections]:
        """Return the detections to come of an image, uint8 (H, W, C).

        Raises:
            DetectorError: the model is closed.
        """
        return self._batcher.submit(image, select)

    def close(self) -> None:
        """Answer the images that wait, and end."""
        self._batcher.close()

    def described(self) -> dict[str, object]:
        """Return what a client needs to know, as plain data."""
        config, file = self.loaded.config, self.loaded.file
        return {
            "name": self.name,
            "class_names": list(file.class_names),
            "category_ids": list(file.category_ids),
            "canvas_hw": list(config.input.canvas_hw),
            "channels": config.input.channels,
            "confidence": config.predict.confidence,
            "iou": config.predict.iou,
            "precision": self._predictors[1].runtime.precision,
        }


def open_models(
    words: Sequence[str], overrides: Sequence[str], config: ServiceConfig, on_batch: OnBatch
) -> dict[str, ServedModel]:
    """Open models, and make them ready to run.

    Args:
        words: model files, exports or names of published weights; the stem of the file becomes the name.
        overrides: texts such as `predict.confidence=0.4`, for all of them.
        config: the settings of the service.
        on_batch: called for each pass of a network.

    Raises:
        CheckpointError: a file cannot be read.
        ConfigError: two models have the same name, or an override is wrong.
    """
    paths: dict[str, Path] = {}
    for word in words:
        path = resolve_weights(Path(word)).absolute()
        name = path.stem if path.parent.name != "weights" or path.stem not in ("best", "last") else path.parents[1].name
        if name in paths:
            raise ConfigError(f"{word}: expected a model of another name than {name}, got two; rename the file")
        paths[name] = path
    loaded = {name: load_model(path, overrides) for name, path in paths.items()}
    return {name: ServedModel(name, each, config, on_batch) for name, each in loaded.items()}


def _sizes(batch_size: int) -> list[int]:
    """Return the batch sizes below the largest: 1, 2, 4, ..."""
    return [2**power for power in range(batch_size.bit_length()) if 2**power < batch_size]


def _smaller(predictor: Predictor, batch_size: int) -> Predictor:
    """Return a predictor of another batch size with the same network."""
    names, ids = predictor.class_names, predictor.category_ids
    return Predictor(predictor.runtime, predictor.input, names, ids, batch_size=batch_size, views=predictor.views)
