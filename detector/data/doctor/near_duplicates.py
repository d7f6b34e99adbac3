"""Images that look the same though their files differ: difference hashes, compared by their bits and then by pixels.

The hash says for each place of an 8 x 8 grid whether it is darker than its right neighbour, and than the one below: 128
bits that survive another size, compression and brightness. (The horizontal half is the dHash of N. Krawetz, 2013.) Two
images are near duplicates when at most `MAX_BITS` differ and their 16 x 16 thumbnails correlate by `MIN_CORRELATION`.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from detector.structures.letterbox import Image

MAX_BITS = 11
MIN_CORRELATION = 0.99
MIN_DEVIATION = 4.0  # grey levels: what is flatter has no look to compare
_GRID, _THUMBNAIL = 9, 16
_NUM_BITS = 2 * (_GRID - 1) ** 2
# More bands than bits that may differ: two near duplicates agree in at least one whole band.
_NUM_BANDS = MAX_BITS + 1
# Bits of one band come from all over the image: neighbours say nearly the same.
_SHUFFLED = np.random.default_rng(0).permutation(_NUM_BITS)
# Of the images that share a band each is compared with so many in the order of their bits: frames of a still scene all
# share it, and to find one that looks the same is enough.
_MAX_NEIGHBOURS = 64


@dataclass(frozen=True, eq=False)
class Look:
    """What an image looks like from afar.

    Attributes:
        bits: bool (128,), the difference hash.
        thumbnail: uint8 (16, 16), grey.
    """

    bits: npt.NDArray[np.bool_]
    thumbnail: npt.NDArray[np.uint8]


def look_at(image: Image) -> Look:
    """The look of an image, uint8 (H, W, C); all channels count alike."""
    small = cv2.resize(image, (_THUMBNAIL, _THUMBNAIL), interpolation=cv2.INTER_AREA)
    thumbnail = small.reshape(_THUMBNAIL, _THUMBNAIL, -1).mean(axis=2)
    smaller = cv2.resize(image, (_GRID, _GRID), interpolation=cv2.INTER_AREA).reshape(_GRID, _GRID, -1)
    grid = smaller.astype(np.float32).mean(axis=2)
    across, down = grid[:-1, :-1] < grid[:-1, 1:], grid[:-1, :-1] < grid[1:, :-1]
    return Look(np.concatenate([across.ravel(), down.ravel()]), np.rint(thumbnail).astype(np.uint8))


def near_duplicates(looks: list[Look]) -> list[tuple[int, int]]:
    """Pairs of positions, the earlier one first, of images that look the same; sorted.

    They are all such pairs, unless more than `_MAX_NEIGHBOURS` images share a band of their bits.
    """
    if len(looks) < 2:
        return []
    thumbnails = np.stack([look.thumbnail for look in looks]).reshape(len(looks), -1).astype(np.float32)
    deviations = thumbnails.std(axis=1)
    kept = np.flatnonzero(deviations >= MIN_DEVIATION)
    normal = (thumbnails[kept] - thumbnails[kept].mean(axis=1, keepdims=True)) / deviations[kept, None]
    bits = np.array([looks[i].bits for i in kept.tolist()], dtype=np.bool_).reshape(-1, _NUM_BITS)[:, _SHUFFLED]
    packed = np.packbits(np.ascontiguousarray(bits), axis=1).view(np.uint64)
    found: set[tuple[int, int]] = set()
    for band in np.array_split(bits, _NUM_BANDS, axis=1):
        keys = band @ (1 << np.arange(band.shape[1]))
        order = np.lexsort((packed[:, 1], packed[:, 0], keys))
        active = np.arange(len(order) - 1)
        for step in range(1, _MAX_NEIGHBOURS + 1):  # each with the one so many places later, if it shares the band
            active = active[active + step < len(order)]
            active = active[keys[order[active]] == keys[order[active + step]]]
            a, b = order[active], order[active + step]
            is_near = np.bitwise_count(packed[a] ^ packed[b]).sum(axis=1) <= MAX_BITS
            a, b = a[is_near], b[is_near]
            is_alike = (normal[a] * normal[b]).mean(axis=1) >= MIN_CORRELATION
            pairs = np.sort(np.stack([kept[a[is_alike]], kept[b[is_alike]]], axis=1), axis=1)
            found.update(map(tuple, pairs.tolist()))
    return sorted(found)
