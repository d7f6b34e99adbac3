"""Rows of tensors that belong to classes, which a model with other classes can take over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ClassRows:
    """Layout of the rows of a tensor, along its first axis, that belong to classes.

    The rows are `num_groups` groups (such as anchors); each has `num_before` rows that belong to no class, then one row
    for each class.
    """

    num_groups: int = 1
    num_before: int = 0

    def num_rows(self, num_classes: int) -> int:
        """Return the number of rows of a tensor for a number of classes."""
        return self.num_groups * (self.num_before + num_classes)

    def remapped(self, own: Tensor, given: Tensor, class_of: Sequence[int | None]) -> Tensor:
        """Return a copy of `own` with the rows of another tensor, matched by class.

        Args:
            own: (rows, ...) for `len(class_of)` classes; it is not changed.
            given: (rows, ...) for any number of classes, otherwise of the shape of `own`.
            class_of: for each class of `own` the index of the same class in `given`, or None to keep its rows.

        Returns:
            A tensor of the shape and dtype of `own`.
        """
        ours = own.clone().reshape(self.num_groups, -1, *own.shape[1:])
        theirs = given.to(own.dtype).reshape(self.num_groups, -1, *own.shape[1:])
        ours[:, : self.num_before] = theirs[:, : self.num_before]
        for index, other in enumerate(class_of):
            if other is not None:
                ours[:, self.num_before + index] = theirs[:, self.num_before + other]
        return ours.reshape(own.shape)


def is_named(class_names: Sequence[str]) -> bool:
    """Return whether classes have names; without a list of names they are called by their numbers."""
    return list(class_names) != [str(number) for number in range(len(class_names))]
