"""Labels of any kind as class indices: numbers, strings, one-hot rows.

Axes: N samples, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from metalearn.data.given_arrays import as_array, plain_numbers
from metalearn.errors import SettingError

__all__ = ["Classes", "as_classes", "named_by", "without_empty"]

_EXACT = 2**53  # from here on floats are no whole numbers of their own


class Classes(NamedTuple):
    """The class of each sample."""

    targets: Tensor
    """``[N]``, int64, in 0..C-1."""
    names: tuple[str, ...]
    """C names."""


def as_classes(labels: Any, samples: int) -> Classes:
    """Labels in their order become classes: numbers by size, strings by alphabet.

    Args:
        labels: ``[N]`` or ``[N, 1]``, whole numbers (floats without a fraction too), truth values
            or strings; or one-hot rows ``[N, C]``, whose columns are the classes 0..C-1.
        samples: N.

    Raises:
        SettingError: anything else.
    """
    if isinstance(labels, list | tuple):
        _check_kinds(labels)
    found = plain_numbers(as_array("y", labels))
    found = found[:, 0] if found.ndim == 2 and found.shape[1] == 1 else found
    if found.shape[:1] != (samples,) or found.ndim not in (1, 2):
        accepted = f"labels [{samples}] are needed, one for each input"
        raise SettingError("y", f"shape {list(found.shape)}", accepted)
    if found.ndim == 2:
        return _of_one_hot(found)
    if found.dtype.kind == "O" and all(isinstance(label, str) for label in found):
        found = found.astype(str)
    if found.dtype.kind not in "iubfU":
        accepted = "labels of one kind are needed, whole numbers or strings"
        raise SettingError("y", f"an array of {found.dtype}", accepted)
    if found.dtype.kind == "f":
        found = found.astype(np.float64)
        if not np.isfinite(found).all() or (found != np.floor(found)).any():
            odd = found[~(np.isfinite(found) & (found == np.floor(found)))][0]
            accepted = "labels are whole numbers or strings; regression_data takes real targets"
            raise SettingError("y", float(odd), accepted)
        if len(found) and abs(found).max() >= _EXACT:
            raise SettingError("y", float(abs(found).max()), "labels below 2^53 are needed")
        found = found.astype(np.int64)
    values, targets = np.unique(found, return_inverse=True)
    return Classes(torch.from_numpy(targets.astype(np.int64)), tuple(map(str, values.tolist())))


def named_by(classes: Classes, names: Sequence[str] | None) -> Classes:
    """Classes by the names that a Dataset has for their numbers, if each has one of its own."""
    every = {str(number): str(name) for number, name in enumerate(names or ())}
    found = tuple(every.get(label, "") for label in classes.names)
    own = all(found) and len(set(found)) == len(found)
    return Classes(classes.targets, found) if own else classes


def without_empty(classes: Classes) -> Classes:
    """Without classes that no sample has, such as empty columns of one-hot rows."""
    there = torch.bincount(classes.targets, minlength=len(classes.names)) > 0
    names = tuple(name for name, has in zip(classes.names, there.tolist()) if has)
    return Classes((there.cumsum(0) - 1)[classes.targets], names)


def _of_one_hot(rows: np.ndarray) -> Classes:
    if (
        rows.dtype.kind not in "iubf"
        or not ((rows == 1).sum(1) == 1).all()
        or ((rows != 0).sum(1) != 1).any()
    ):
        accepted = "labels [N] are needed, or one-hot rows [N, C] with a single 1 in each"
        raise SettingError("y", f"shape {list(rows.shape)}", accepted)
    targets = torch.from_numpy(rows.argmax(1).astype(np.int64))
    return Classes(targets, tuple(map(str, range(rows.shape[1]))))


def _check_kinds(labels: Any) -> None:
    """Refuse words beside other values, which NumPy would take for words too.

    Raises:
        SettingError: that.
    """
    words = sum(isinstance(label, str) for label in labels)
    if 0 < words < len(labels):
        other = next(label for label in labels if not isinstance(label, str))
        raise SettingError("y", other, "labels of one kind are needed, whole numbers or strings")
