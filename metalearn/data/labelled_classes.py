"""What data sets of few-shot tasks have in common: labels of named classes that splits divide.

Axes: N samples, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from metalearn.errors import SettingError

__all__ = ["check_classes"]


def check_classes(
    labels: Tensor,
    samples: int,
    *,
    class_names: Sequence[str],
    class_groups: Sequence[str],
    splits: Mapping[str, Sequence[int]],
) -> None:
    """Refuse labels ``[N]`` that are no classes, and splits that share one.

    Args:
        labels: int64, in 0..C-1.
        samples: N.
        class_names: C names.
        class_groups: C names of groups.
        splits: split name to its class indices.

    Raises:
        SettingError: names what does not fit.
    """
    count = len(class_names)
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
