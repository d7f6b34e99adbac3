"""What a recipe makes of a data set, for people to look at: whole training images, and each part of it by itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from detector.data.augment.augment_config import AugmentConfig
from detector.data.augment.augmenter import Recipe
from detector.data.loader import SampleKey, TrainingSamples
from detector.structures.types import Sample

# At which strength a part is shown that the recipe leaves out; also the list of the parts, in the order they act.
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
_STILL = replace(AugmentConfig(), **dict.fromkeys(STRENGTH_WHEN_OFF, 0.0), albumentations=(), degraded_share=1.0)
# Of the image that the parts are shown on: boxes enough to see them move, few enough to see between them.
_NUM_BOXES_WANTED, _SHARE_WANTED = 5, 0.3


@dataclass(frozen=True)
class Tile:
    """One picture of a preview and what stands above it."""

    title: str
    sample: Sample


class _FullStrength(np.random.Generator):
    """Draws what lies farthest from nothing: the upper end of every range, and yes to every probability above 0."""

    def uniform(self, low: Any = 0.0, high: Any = 1.0, size: Any = None) -> Any:
        """The upper end."""
        return high if size is None else np.full(size, high, np.float64)

    def random(self, *arguments: Any, **options: Any) -> Any:
        """0, which is below every probability."""
        return 0.0


def whole_tiles(samples: TrainingSamples, num: int) -> list[Tile]:
    """Training images of the first epoch, from all over the data set."""
    indices = np.linspace(0, len(samples), num, endpoint=False).astype(int).tolist()
    return [Tile(f"training image {i + 1}", samples[SampleKey(0, index, False)]) for i, index in enumerate(indices)]


def alone_tiles(
    samples: TrainingSamples, augment: AugmentConfig, canvas_hw: tuple[int, int], channels: int, fit: str, seed: int
) -> list[Tile]:
    """One image, and the same under each part of a recipe at its full strength; a part that is off at some strength."""
    index = _telling_image(samples)
    tiles = []
    for title, config in [("as it is", _STILL), *_parts(augment)]:
        by_chance = any(getattr(config, name) for name in PROBABILITIES)
        bits = np.random.PCG64((seed, index))
        rng = np.random.Generator(bits) if by_chance else _FullStrength(bits)
        image, objects = Recipe(config, canvas_hw, channels, fit, len(samples)).varied(index, samples.source, rng)
        tiles.append(Tile(title, Sample(image, objects.xyxy, objects.labels, objects.ignore, index)))
    return tiles


def _parts(augment: AugmentConfig) -> Iterator[tuple[str, AugmentConfig]]:
    """The title and the recipe of each part by itself."""
    for field in fields(AugmentConfig):
        name = field.name
        if name == "albumentations":
            for listed in augment.albumentations:
                yield (
                    f"{listed.get('name')} (p {listed.get('p', 0.5)})",
                    replace(_STILL, albumentations=({**listed, "p": 1.0},)),
                )
        elif name in STRENGTH_WHEN_OFF:
            strength = getattr(augment, name)
            title = f"{name} {strength:g}" if strength else f"{name} off, here {STRENGTH_WHEN_OFF[name]:g}"
            shown = 1.0 if name in PROBABILITIES else strength or STRENGTH_WHEN_OFF[name]
            still = replace(_STILL, mosaic=1.0) if name == "mosaic_nine" else _STILL
            changes: dict[str, Any] = {name: shown}
            yield title, replace(still, **changes)


def _telling_image(samples: TrainingSamples) -> int:
    """The image whose boxes come nearest to what is wanted in number and in the share of the image they cover."""
    annotations = samples.annotations
    counts = np.diff(annotations.offsets)
    area = annotations.boxes_xywh[:, 2:].prod(axis=1)
    totals = np.concatenate([[0.0], np.cumsum(area)])[annotations.offsets]
    shares = np.diff(totals) / np.maximum(annotations.image_hw.prod(axis=1), 1)
    return int((np.abs(counts - _NUM_BOXES_WANTED) + 10 * np.abs(shares - _SHARE_WANTED)).argmin())
