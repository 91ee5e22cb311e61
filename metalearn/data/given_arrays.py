"""Numbers as they are handed over: arrays, tensors, lists and frames become tensors of their own.

Axes: N samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metalearn.errors import SettingError

__all__ = ["as_array", "as_floats", "as_tensor", "plain_numbers"]

_UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)  # which torch can hardly calculate with
_NUMBERS = Real | Decimal | np.bool_
_TRUTHS = bool | np.bool_


def as_tensor(setting: str, values: Any) -> Tensor:
    """Numbers as a tensor on the CPU that shares no memory with what was given.

    Raises:
        SettingError: no numbers, or rows of different shapes.
    """
    if isinstance(values, Tensor):
        _check_dense(setting, values)
        if values.dtype not in _UNSIGNED:
            return values.detach().to("cpu", copy=True)
    found = plain_numbers(as_array(setting, values))
    if found.dtype.kind not in "biufc":
        _refuse_words(setting, values, found)
    if found.dtype.kind == "u" and found.dtype != np.uint8:
        if found.size and int(found.max()) > np.iinfo(np.int64).max:
            raise SettingError(setting, int(found.max()), "numbers below 2^63 are needed")
        found = found.astype(np.int64)
    return torch.tensor(np.ascontiguousarray(found))


def as_floats(setting: str, found: Tensor) -> Tensor:
    """Numbers as float32, which has to hold whole ones as they are.

    Raises:
        SettingError: a whole number above 2^24 that float32 would round.
    """
    floats = found.float()
    if not found.is_floating_point() and found.dtype != torch.bool:
        odd = (floats.long() != found.long()).nonzero()
        if len(odd):
            accepted = (
                "float32 rounds this whole number, as many above 2^24: bring it to about unit "
                "size as a float, or leave out what is a mere name of the sample"
            )
            raise SettingError(setting, int(found[tuple(odd[0])]), accepted)
    return floats


def plain_numbers(found: np.ndarray) -> np.ndarray:
    """Numbers in the byte order of this machine, of a kind that torch has, where they are numbers.

    Objects that are all whole numbers become int64, other real numbers float64, as frames with
    columns of several kinds hold them.
    """
    if found.dtype.kind == "O":
        return _of_objects(found)
    if found.dtype.kind in "fc" and found.dtype.itemsize > (8 if found.dtype.kind == "f" else 16):
        with np.errstate(over="ignore"):
            return found.astype(np.float64 if found.dtype.kind == "f" else np.complex128)
    return found.astype(found.dtype.newbyteorder("="), copy=False)


def as_array(setting: str, values: Any) -> np.ndarray:
    """What was given as an array of NumPy.

    Raises:
        SettingError: rows of different shapes, or nothing that holds values.
    """
    if isinstance(values, Tensor):
        _check_dense(setting, values)
        return _numbers(values.cpu())
    accepted = "an array, a tensor or a list of values, one for each sample, is needed"
    if values is None or isinstance(values, str | bytes | dict | set) or callable(values):
        raise SettingError(setting, values, accepted)
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        raise SettingError(setting, "a masked array", "values that are all there are needed")
    if isinstance(values, list | tuple):
        values = [_numbers(value.cpu()) if isinstance(value, Tensor) else value for value in values]
        _check_shapes(setting, values)
    try:
        found = np.asarray(values)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise SettingError(setting, values, accepted) from error
    if found.ndim == 0:
        raise SettingError(setting, values, accepted)
    return found


def _of_objects(found: np.ndarray) -> np.ndarray:
    """The narrowest of truth values, int64 and float64 that takes all, or objects as they are."""
    cells = found.ravel().tolist()
    try:
        for kind, dtype in ((_TRUTHS, bool), (Integral | np.bool_, np.int64), (_NUMBERS, float)):
            if cells and all(isinstance(cell, kind) for cell in cells):
                return found.astype(dtype)
    except (OverflowError, ValueError):
        pass
    return found


def _refuse_words(setting: str, values: Any, found: np.ndarray) -> None:
    """Say what are no numbers: the column of a table, and its first such value.

    Raises:
        SettingError: always.
    """
    if found.dtype.kind == "O" and found.ndim == 2:
        names = list(getattr(values, "columns", range(found.shape[1])))
        for name, column in zip(names, found.T):
            odd = [cell for cell in column if not isinstance(cell, _NUMBERS)]
            if odd:
                accepted = (
                    f"numbers are needed, and the column {name!r} has {len(odd)} others; "
                    "pandas.get_dummies makes columns of numbers of words"
                )
                raise SettingError(setting, odd[0], accepted)
    raise SettingError(setting, f"an array of {found.dtype}", "numbers are needed")


def _check_dense(setting: str, tensor: Tensor) -> None:
    if tensor.layout != torch.strided or tensor.is_meta:
        raise SettingError(setting, str(tensor.layout), "a dense tensor with values is needed")


def _numbers(tensor: Tensor) -> np.ndarray:
    """A tensor as an array, bfloat16 as float32, which NumPy lacks."""
    tensor = tensor.detach()
    found: np.ndarray = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return found


def _check_shapes(setting: str, rows: Sequence[Any]) -> None:
    """Refuse samples that are not of the first one's shape."""
    shapes = [_shape(row) for row in rows]
    for number, shape in enumerate(shapes):
        if shape != shapes[0]:
            accepted = f"shape {list(shapes[0])} is needed, that of {setting}[0]"
            raise SettingError(f"{setting}[{number}]", f"shape {list(shape)}", accepted)


def _shape(row: Any) -> tuple[int, ...]:
    """Of an array or of nested lists, by their first entries."""
    if hasattr(row, "shape"):
        return tuple(row.shape)
    if isinstance(row, list | tuple):
        return (len(row), *(_shape(row[0]) if row else ()))
    return ()
