"""What a training run asks of its task."""

from __future__ import annotations

import abc
from collections.abc import Iterator
from typing import Any

import torch

from detector.data.problems import Problem
from detector.structures.metrics import Metrics
from detector.structures.types import Batch, ClassBatch
from detector.training.distributed import World
from detector.training.events import Report
from detector.training.run_folder import RunFolder


class Task(abc.ABC):
    """The data, the network, the loss and the measure of one experiment.

    Attributes:
        class_names: name of each class.
        category_ids: the data set's own id of each class.
        num_images: training images.
        num_objects: their boxes; None where images are told apart as a whole.
        num_val_images: validation images; 0 where there are none.
        num_val_objects: their boxes; None where images are told apart as a whole.
        batch_size: images of a batch of one process.
        has_val: whether there is something to measure on.
        problems: what was left out of the splits, and what is odd in them.
    """

    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    num_images: int
    num_objects: int | None
    num_val_images: int
    num_val_objects: int | None
    batch_size: int
    has_val: bool
    problems: tuple[Problem, ...]

    @abc.abstractmethod
    def model(self) -> Any:
        """The network with random weights, a `TrainableModel`."""

    @abc.abstractmethod
    def loss(self, model: Any) -> Any:
        """What maps the network's outputs and a batch's targets to `LossParts`."""

    @abc.abstractmethod
    def measure(self, model: Any, device: torch.device, world: World) -> Metrics:
        """The numbers of a network on the validation split."""

    @abc.abstractmethod
    def seconds_per_val_image(self, model: Any, device: torch.device) -> float:
        """Of a batch of validation images, the second time it is asked for; the numbers are not computed."""

    @abc.abstractmethod
    def batches(
        self, model: Any, first_step: int, num_steps: int, folder: RunFolder, world: World, report: Report
    ) -> Iterator[Batch | ClassBatch]:
        """The batches of the steps from `first_step` on; of the first ones a picture is left in the folder."""

    @abc.abstractmethod
    def drawn_reports(self, folder: RunFolder, report: Report) -> Report:
        """A reporter that draws into the folder what an event makes due, and hands the event on."""

    @abc.abstractmethod
    def draw_end(self, model: Any, device: torch.device) -> None:
        """Leaves a last picture, of what the best weights find in validation images."""
