"""Near duplicates: images that look the same in different files, compared by difference hash and then by thumbnail.

The hash tells for each cell of an 8 x 8 grid whether it is darker than its right neighbour and than the one below. Its
128 bits are robust to changes of size, compression and brightness. (The horizontal half is the dHash of N. Krawetz,
2013.) Two images are near duplicates if at most `MAX_BITS` bits differ and their 16 x 16 thumbnails correlate by at
least `MIN_CORRELATION`.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from detector.structures.letterbox import Image

MAX_BITS = 11
MIN_CORRELATION = 0.99
MIN_DEVIATION = 4.0  # in grey levels; flatter images are not compared
_GRID, _THUMBNAIL = 9, 16
_NUM_BITS = 2 * (_GRID - 1) ** 2
# With more bands than bits that may differ, two near duplicates agree in at least one complete band.
_NUM_BANDS = MAX_BITS + 1
# The bits of a band come from the whole image, because neighbouring bits are correlated.
_SHUFFLED = np.random.default_rng(0).permutation(_NUM_BITS)
# Each image is compared with at most so many images that share a band, in the order of their bits. All frames of a
# still scene share a band, and one near duplicate of each is enough.
_MAX_NEIGHBOURS = 64


@dataclass(frozen=True, eq=False)
class Look:
    """Appearance of an image, reduced.

    Attributes:
        bits: bool (128,), the difference hash.
        thumbnail: uint8 (16, 16), grey.
    """

    bits: npt.NDArray[np.bool_]
    thumbnail: npt.NDArray[np.uint8]


def look_at(image: Image) -> Look:
    """Compute the look of an image, uint8 (H, W, C), with equal weights for all channels."""
    small = cv2.resize(image, (_THUMBNAIL, _THUMBNAIL), interpolation=cv2.INTER_AREA)
    thumbnail = small.reshape(_THUMBNAIL, _THUMBNAIL, -1).mean(axis=2)
    smaller = cv2.resize(image, (_GRID, _GRID), interpolation=cv2.INTER_AREA).reshape(_GRID, _GRID, -1)
    grid = smaller.astype(np.float32).mean(axis=2)
    across, down = grid[:-1, :-1] < grid[:-1, 1:], grid[:-1, :-1] < grid[1:, :-1]
    return Look(np.concatenate([across.ravel(), down.ravel()]), np.rint(thumbnail).astype(np.uint8))


def near_duplicates(looks: list[Look]) -> list[tuple[int, int]]:
    """Return pairs of positions of images that look the same, the earlier one first; sorted.

    All such pairs are returned unless more than `_MAX_NEIGHBOURS` images share a band of bits.
    """
    if len(looks) < 2:
        return []
    thumbnails = np.stack([look.thumbnail for look in looks]).reshape(len(looks), -1).astype(np.float32)
    deviations = thumbnails.std(axis=1)
    kept = np.flatnonzero(deviations >= MIN_DEVIATION)
    normal = (thumbnails[kept] - thumbnails[kept].mean(axis=1, keepdims=True)) / deviations[kept, None]
    bits = np.array([looks[i].bits for i in kept.tolist()], dtype=np.bool_).reshape(-1, _NUM_BITS)[:, _SHUFFLED]
    packed = np.packbits(np.ascontiguousarray(bits), axis=1).view(np.uint64)
    duplicates: set[tuple[int, int]] = set()
    for band in np.array_split(bits, _NUM_BANDS, axis=1):
        keys = band @ (1 << np.arange(band.shape[1]))
        order = np.lexsort((packed[:, 1], packed[:, 0], keys))
        active = np.arange(len(order) - 1)
        for step in range(1, _MAX_NEIGHBOURS + 1):  # compare images `step` places apart if they share the band
            active = active[active + step < len(order)]
            active = active[keys[order[active]] == keys[order[active + step]]]
            a, b = order[active], order[active + step]
            is_near = np.bitwise_count(packed[a] ^ packed[b]).sum(axis=1) <= MAX_BITS
            a, b = a[is_near], b[is_near]
            is_alike = (normal[a] * normal[b]).mean(axis=1) >= MIN_CORRELATION
            pairs = np.sort(np.stack([kept[a[is_alike]], kept[b[is_alike]]], axis=1), axis=1)
            duplicates.update(map(tuple, pairs.tolist()))
    return sorted(duplicates)
