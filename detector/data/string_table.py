"""Texts in one block of memory, without a Python object for each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np
import numpy.typing as npt


class Names(Sequence[str]):
    """Sequence of texts without a Python object for each; it is equal to a tuple of the same texts.

    Forked worker processes share its memory: reading a text changes nothing in the block, while reading a text of a
    list changes its reference count and thereby copies a page of memory into the process. It is pickled in one piece.

    Args:
        names: the texts; a slice of the sequence is a tuple of them.
    """

    def __init__(self, names: Iterable[str]) -> None:
        # Names of files may not be valid UTF-8; Python represents the invalid bytes as surrogates.
        encoded = [name.encode("utf-8", "surrogatepass") for name in names]
        self._bytes = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        self._bounds = np.concatenate([[0], np.cumsum([len(name) for name in encoded], dtype=np.int64)])

    @classmethod
    def of_arrays(cls, block: npt.NDArray[np.uint8], bounds: npt.NDArray[np.int64]) -> Names:
        """Return texts whose bytes lie in a block, text i from `bounds[i]` to `bounds[i + 1]`; nothing is copied."""
        table = cls(())
        table._bytes, table._bounds = block, bounds
        return table

    @property
    def arrays(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """The block and the bounds that `of_arrays` takes."""
        return self._bytes, self._bounds

    def __eq__(self, other: object) -> bool:
        return tuple(self) == tuple(other) if isinstance(other, (Names, tuple)) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # as for a list: it is compared, but never a key

    def __len__(self) -> int:
        return len(self._bounds) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...

    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        position = range(len(self))[index]  # rejects an index past the end, counts a negative one from the end
        return (
            self._bytes[self._bounds[position] : self._bounds[position + 1]].tobytes().decode("utf-8", "surrogatepass")
        )
