"""Annotations of a large file on disk, in chunks that fit into memory."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from detector.data.coco_rows import Rows
from detector.data.problems import Findings
from detector.errors import DatasetError

CHUNK_ROWS = 2**18
_COLUMNS = ("image_ranks", "category_ranks", "boxes", "areas", "flags", "_ids", "_positions")


class ChunkRows(Rows):
    """Rows of one chunk, whose duplicate ids are looked for in all chunks together."""

    def repeated(self) -> npt.NDArray[np.int64]:
        """Return no rows."""
        return np.zeros(0, np.int64)


class SpilledRows(Rows):
    """Rows that are written to a folder chunk by chunk; only the last chunk is in memory."""

    def __init__(self, folder: Path) -> None:
        """Begin without rows; chunks of earlier rows in the folder are overwritten."""
        super().__init__()
        self._folder, self._num_chunks, self._num_spilled = folder, 0, 0

    def __len__(self) -> int:
        return self._num_spilled + super().__len__()

    def add(self, position: int, entry: object, findings: Findings) -> None:
        """Add the annotation at a position of the list in the file."""
        super().add(position, entry, findings)
        if super().__len__() >= CHUNK_ROWS:
            self._spill()

    def _path(self, chunk: int) -> Path:
        return self._folder / f"chunk-{chunk}.npz"

    def _spill(self) -> None:
        if self._large_ids:
            raise DatasetError("ids of more than 64 bits cannot be indexed; leave data.index out")
        try:
            content: dict[str, Any] = {
                name: np.array(list(getattr(self, name)), np.int64) for name in ("image_ids", "category_ids")
            }
        except OverflowError as error:
            raise DatasetError("ids of more than 64 bits cannot be indexed; leave data.index out") from error
        content |= {name: np.array(getattr(self, name)) for name in _COLUMNS}
        np.savez(self._path(self._num_chunks), allow_pickle=False, **content)
        num_chunks, num_spilled = self._num_chunks + 1, len(self)
        super().__init__()
        self._num_chunks, self._num_spilled = num_chunks, num_spilled

    def chunks(self) -> Iterator[ChunkRows]:
        """Yield all rows, chunk by chunk; nothing can be added afterwards."""
        if super().__len__():
            self._spill()
        for number in range(self._num_chunks):
            rows = ChunkRows()
            with np.load(self._path(number), allow_pickle=False) as columns:
                for name in ("image_ids", "category_ids"):
                    setattr(rows, name, {identifier: rank for rank, identifier in enumerate(columns[name].tolist())})
                for name in _COLUMNS:
                    content: array[float] = array(getattr(rows, name).typecode)
                    content.frombytes(columns[name].tobytes())
                    setattr(rows, name, content)
            yield rows

    def repeated_ids(self) -> list[int]:
        """Return the ids that more than one row has, once for each further row, after `chunks`."""
        parts = []
        for number in range(self._num_chunks):
            with np.load(self._path(number), allow_pickle=False) as columns:
                parts.append(columns["_ids"])
        ids = np.sort(np.concatenate([np.zeros(0, np.int64), *parts]))
        known = ids[1:][(ids[1:] == ids[:-1]) & (ids[1:] != np.iinfo(np.int64).min)]
        return [int(each) for each in known.tolist()]
