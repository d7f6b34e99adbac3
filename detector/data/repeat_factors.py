"""Repeat factors of images with rare classes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from detector.data.coco import CocoAnnotations


def repeat_factors(
    annotations: CocoAnnotations, threshold: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the repeat factors of classes, float64 (C,), and of images, float64 (N,).

    The factor says how often an image is shown in an epoch. A class in a share f of the images has
    max(1, sqrt(threshold / f)), an image the greatest factor of its classes: A. Gupta, P. Dollar and R. Girshick,
    "LVIS" (CVPR 2019), section 4.2. A class or an image without objects has 1.
    """
    image = np.repeat(np.arange(len(annotations)), np.diff(annotations.offsets))[~annotations.is_crowd]
    labels = annotations.labels[~annotations.is_crowd]
    pairs = np.unique(np.stack([labels, image], axis=1), axis=0)
    num_images = np.bincount(pairs[:, 0], minlength=len(annotations.class_names))
    share = num_images / max(len(annotations), 1)
    of_class = np.ones(len(share))
    of_class[num_images > 0] = np.maximum(1, np.sqrt(threshold / share[num_images > 0]))
    of_image = np.ones(len(annotations))
    np.maximum.at(of_image, pairs[:, 1], of_class[pairs[:, 0]])
    return of_class, of_image
