"""What data sets of few-shot tasks have in common: labels of named classes that splits divide.

Axes: N samples, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from typing import Protocol

import torch
from torch import Tensor

from metalearn.errors import SettingError

__all__ = ["InClasses", "check_classes"]


class InClasses(Protocol):
    """A data set whose samples are of classes that are named, grouped and divided into splits."""

    @property
    def inputs(self) -> Sized:
        """N samples."""

    @property
    def labels(self) -> Tensor:
        """``[N]``, int64, in 0..C-1."""

    @property
    def class_names(self) -> Sequence[str]:
        """C names."""

    @property
    def class_groups(self) -> Sequence[str]:
        """C names of groups."""

    @property
    def splits(self) -> Mapping[str, Sequence[int]]:
        """Split name to its class indices."""


def check_classes(data: InClasses) -> None:
    """Refuse labels that are no classes, and splits that share one.

    Raises:
        SettingError: names what does not fit.
    """
    labels, samples, splits = data.labels, len(data.inputs), data.splits
    class_groups, count = data.class_groups, len(data.class_names)
    if labels.dtype != torch.int64 or labels.shape != (samples,):
        needed = f"an int64 tensor [{samples}] is needed"
        raise SettingError("labels", f"{labels.dtype} {list(labels.shape)}", needed)
    if len(class_groups) != count:
        needed = f"{count} names are needed, one a class"
        raise SettingError("class_groups", len(class_groups), needed)
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < count:
        found = f"{int(labels.min())}..{int(labels.max())}"
        raise SettingError("labels", found, f"classes lie in 0..{count - 1}")
    if not splits:
        raise SettingError("splits", splits, "at least one is needed, such as test")
    seen: set[int] = set()
    for name, classes in splits.items():
        where = f"splits[{name!r}]"
        if seen & set(classes) or len(set(classes)) != len(classes):
            raise SettingError(where, classes, "a class stands twice; once is accepted")
        if not all(0 <= c < count for c in classes):
            raise SettingError(where, classes, f"classes lie in 0..{count - 1}")
        seen |= set(classes)
