"""Rows of tensors that belong to classes: what a model hands to one that tells other classes apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ClassRows:
    """Which rows of a tensor, along its first axis, belong to classes.

    The rows are `num_groups` groups (anchors, for instance), each of `num_before` rows that belong to no class and then
    one row for each class.
    """

    num_groups: int = 1
    num_before: int = 0

    def num_rows(self, num_classes: int) -> int:
        """Rows of a tensor for a number of classes."""
        return self.num_groups * (self.num_before + num_classes)

    def remapped(self, own: Tensor, given: Tensor, class_of: Sequence[int | None]) -> Tensor:
        """`own` with the rows of another tensor, each class's from the class it has there.

        Args:
            own: (rows, ...) for `len(class_of)` classes; it is not changed.
            given: (rows, ...) for any number of classes, otherwise of the shape of `own`.
            class_of: for each class of `own` the index of the same class in `given`, or None: its rows stay `own`'s.

        Returns:
            The shape and dtype of `own`.
        """
        ours = own.clone().reshape(self.num_groups, -1, *own.shape[1:])
        theirs = given.to(own.dtype).reshape(self.num_groups, -1, *own.shape[1:])
        ours[:, : self.num_before] = theirs[:, : self.num_before]
        for index, other in enumerate(class_of):
            if other is not None:
                ours[:, self.num_before + index] = theirs[:, self.num_before + other]
        return ours.reshape(own.shape)


def is_named(class_names: Sequence[str]) -> bool:
    """Whether classes have names: a network without a list of them has numbers."""
    return list(class_names) != [str(number) for number in range(len(class_names))]
