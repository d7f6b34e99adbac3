"""Preview of augmentation: whole training images, and each step of a recipe on its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from detector.config import registry
from detector.data.augment.augment_config import AugmentConfig
from detector.data.augment.augmenter import AugmentationRecipe
from detector.data.loader import SampleKey, TrainingSamples
from detector.structures.canvas import Canvas
from detector.structures.types import Sample

# Strength at which a step is shown that the recipe leaves out; also the list of the steps, in the order they act.
STRENGTH_WHEN_OFF: dict[str, float] = {
    "mosaic": 1.0,
    "mosaic_nine": 1.0,
    "crop": 1.0,
    "scale": 0.5,
    "translate": 0.2,
    "degrees": 15.0,
    "shear": 8.0,
    "flip_horizontal": 1.0,
    "flip_vertical": 1.0,
    "perspective": 0.3,
    "mixup": 1.0,
    "copy_paste": 1.0,
    "hue": 0.05,
    "saturation": 0.5,
    "value": 0.4,
    "grayscale": 1.0,
    "blur": 3.0,
    "noise": 25.0,
    "jpeg": 90.0,
    "cutout": 0.25,
}
PROBABILITIES = frozenset(
    ("mosaic", "mosaic_nine", "crop", "flip_horizontal", "flip_vertical", "mixup", "copy_paste", "grayscale")
)
_OFF: dict[str, Any] = dict.fromkeys(STRENGTH_WHEN_OFF, 0.0)
_STILL = AugmentConfig(**_OFF, degraded_share=1.0)
# The image on which the steps are shown: enough boxes to see them move, few enough to see the image between them.
_IDEAL_NUM_BOXES, _IDEAL_SHARE = 5, 0.3


@dataclass(frozen=True)
class Tile:
    """One picture of a preview and its title."""

    title: str
    sample: Sample


class _FullStrength(np.random.Generator):
    """Generator that draws the strongest effect: the upper end of every range, and yes for every probability."""

    def uniform(self, low: Any = 0.0, high: Any = 1.0, size: Any = None) -> Any:
        """Return the upper end of the range."""
        return high if size is None else np.full(size, high, np.float64)

    def random(self, *arguments: object, **options: object) -> Any:
        """Return 0, which is below every probability above 0."""
        return 0.0


def whole_tiles(samples: TrainingSamples, num: int) -> list[Tile]:
    """Return at most `num` training images of the first epoch, spread over the whole data set."""
    indices = np.linspace(0, len(samples), min(num, len(samples)), endpoint=False).astype(int).tolist()
    return [Tile(f"training image {i + 1}", samples[SampleKey(0, index, False)]) for i, index in enumerate(indices)]


def alone_tiles(samples: TrainingSamples, augment: AugmentConfig, canvas: Canvas, seed: int) -> list[Tile]:
    """Return one image as it is, and after each step of a recipe at full strength.

    A step that the recipe leaves out is shown at the strength that `STRENGTH_WHEN_OFF` gives.
    """
    index = _illustrative_image(samples)
    tiles = []
    for title, config in [("as it is", _STILL), *_single_steps(augment)]:
        by_chance = any(getattr(config, name) for name in PROBABILITIES)
        bits = np.random.PCG64((seed, index))
        rng = np.random.Generator(bits) if by_chance else _FullStrength(bits)
        image, objects = AugmentationRecipe(config, canvas, len(samples)).varied(index, samples.source, rng)
        tiles.append(Tile(title, Sample(image, objects.xyxy, objects.labels, objects.ignore, index)))
    return tiles


def _single_steps(augment: AugmentConfig) -> Iterator[tuple[str, AugmentConfig]]:
    """Yield the title and the recipe of each step on its own."""
    for field in fields(AugmentConfig):
        name = field.name
        if name == "albumentations":
            for listed in augment.albumentations:
                yield (
                    f"{listed.get('name')} (p {listed.get('p', 0.5)})",
                    replace(_STILL, albumentations=({**listed, "p": 1.0},)),
                )
        elif name == "extra":
            for extra in augment.extra:
                yield registry.name_of(extra), replace(_STILL, extra=(extra,))
        elif name in STRENGTH_WHEN_OFF:
            strength = getattr(augment, name)
            title = f"{name} {strength:g}" if strength else f"{name} off, here {STRENGTH_WHEN_OFF[name]:g}"
            shown = 1.0 if name in PROBABILITIES else strength or STRENGTH_WHEN_OFF[name]
            still = replace(_STILL, mosaic=1.0) if name == "mosaic_nine" else _STILL
            changes: dict[str, Any] = {name: shown}
            yield title, replace(still, **changes)


def _illustrative_image(samples: TrainingSamples) -> int:
    """Return the image whose boxes are closest to the ideal number and to the ideal share of the image."""
    annotations = samples.annotations
    counts = np.diff(annotations.offsets)
    area = annotations.boxes_xywh[:, 2:].prod(axis=1)
    totals = np.concatenate([[0.0], np.cumsum(area)])[annotations.offsets]
    shares = np.diff(totals) / np.maximum(annotations.image_hw.prod(axis=1), 1)
    return int((np.abs(counts - _IDEAL_NUM_BOXES) + 10 * np.abs(shares - _IDEAL_SHARE)).argmin())
