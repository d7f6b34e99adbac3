"""Changes of the colour and the sharpness of an image; they move no pixel."""

from __future__ import annotations

import cv2
import numpy as np

from detector.data.augment.augment_config import AugmentConfig
from detector.data.augment.augmentation import Augmentation
from detector.structures.letterbox import Image
from detector.structures.types import ImageObjects

_STRIP_BYTES = 2**16  # size of a strip: three of them fit into the second-level cache of a core


class ColourShift(Augmentation):
    """Shift of the hue and gains of saturation and brightness, drawn for each canvas."""

    def __init__(self, config: AugmentConfig) -> None:
        self._config = config

    def __call__(self, image: Image, objects: ImageObjects, rng: np.random.Generator) -> tuple[Image, ImageObjects]:
        """Recolour the canvas in place as `random_hsv` does; boxes stay as they are."""
        return random_hsv(image, self._config, rng), objects


class Degradation(Augmentation):
    """Loss of colour, sharpness or quality, each drawn for itself."""

    def __init__(self, config: AugmentConfig) -> None:
        self._config = config

    def __call__(self, image: Image, objects: ImageObjects, rng: np.random.Generator) -> tuple[Image, ImageObjects]:
        """Degrade the canvas as `degrade` does; boxes stay as they are."""
        return degrade(image, self._config, rng), objects


def random_hsv(image: Image, config: AugmentConfig, rng: np.random.Generator) -> Image:
    """Shift the hue and scale saturation and brightness of an RGB image, by lookup tables over the 256 levels.

    The image is changed in place, strip by strip, and returned; an image without three channels stays as it is.
    """
    shift, gain_s, gain_v = rng.uniform(-1, 1, 3)
    if image.shape[2] != 3 or not (config.hue or config.saturation or config.value):
        return image
    levels = np.arange(256, dtype=np.float64)
    tables = np.stack(
        [
            (levels + shift * config.hue * 180) % 180,  # OpenCV's 8-bit hue is in units of 2 degrees
            np.clip(levels * (1 + gain_s * config.saturation), 0, 255),
            np.clip(levels * (1 + gain_v * config.value), 0, 255),
        ],
        axis=-1,
    ).astype(np.uint8)[None]
    rows = max(1, _STRIP_BYTES // (image.shape[1] * 3))
    scratch = np.empty((rows, *image.shape[1:]), np.uint8)
    for top in range(0, image.shape[0], rows):
        strip = image[top : top + rows]
        hsv = scratch[: len(strip)]
        cv2.cvtColor(strip, cv2.COLOR_RGB2HSV, dst=hsv)
        cv2.LUT(hsv, tables, dst=hsv)
        cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB, dst=strip)
    return image


def degrade(image: Image, config: AugmentConfig, rng: np.random.Generator) -> Image:
    """Return an image made grey, blurred, noisy or compressed, each at random; a strength of 0 switches one off."""
    if config.grayscale and rng.random() < config.grayscale:
        image = _without_colour(image)
    if config.blur and rng.random() < config.degraded_share:
        image = blurred(image, rng.uniform(0, config.blur))
    if config.noise and rng.random() < config.degraded_share:
        image = noisy(image, rng.uniform(0, config.noise), int(rng.integers(2**31)))
    if config.jpeg and rng.random() < config.degraded_share:
        image = compressed(image, round(100 - rng.uniform(0, config.jpeg)))
    return image


def _without_colour(image: Image) -> Image:
    if image.shape[2] != 3:
        return image
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)  # ITU-R BT.601 luma
    return np.asarray(cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB), np.uint8)


def blurred(image: Image, deviation_px: float) -> Image:
    """Return an image after a Gaussian blur, mirrored at the border; below a tenth of a pixel it stays as it is."""
    if deviation_px < 0.1:
        return image
    return np.asarray(cv2.GaussianBlur(image, (0, 0), deviation_px), np.uint8).reshape(image.shape)


def noisy(image: Image, deviation: float, seed: int) -> Image:
    """Return an image with Gaussian noise of a standard deviation in grey levels, independent per pixel and channel."""
    cv2.setRNGSeed(seed)  # OpenCV has a generator per thread, which is four times as fast as NumPy's
    noise = np.empty((image.shape[0], image.shape[1] * image.shape[2]), np.int16)
    cv2.randn(noise, np.zeros(1), np.array([deviation]))
    return np.asarray(cv2.add(image.reshape(noise.shape), noise, dtype=cv2.CV_8U), np.uint8).reshape(image.shape)


def compressed(image: Image, quality: int) -> Image:
    """Return an image after JPEG compression; one without one or three channels stays as it is."""
    if image.shape[2] not in (1, 3):
        return image
    ordered = (
        image if image.shape[2] == 1 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    )  # the order that the encoder expects
    _, encoded = cv2.imencode(".jpg", ordered, [cv2.IMWRITE_JPEG_QUALITY, max(1, quality)])
    flags = cv2.IMREAD_GRAYSCALE if image.shape[2] == 1 else cv2.IMREAD_COLOR_RGB
    return np.asarray(cv2.imdecode(encoded, flags), np.uint8).reshape(image.shape)
