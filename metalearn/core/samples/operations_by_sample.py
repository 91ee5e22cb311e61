"""Single operations on each sample of a batch alone, and what goes into and out of them.

Axes: N samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from metalearn.core.samples.layouts import FRONT, Layout
from metalearn.core.samples.losses_by_sample import reduced_by_sample

__all__ = ["NotBySampleError", "one_by_one_of", "scalars_of", "tensor_arguments", "tensors_in"]


class NotBySampleError(RuntimeError):
    """Something that cannot be done, or was not done, to each sample of a batch alone."""


def one_by_one_of(
    function: Any, args: Any, kwargs: Any, given: Sequence[Layout | None], count: int
) -> Any:
    """An operation on each sample of its arguments alone, by ``vmap`` if need be."""
    tensors = tensor_arguments(args, kwargs)
    if all(layout == FRONT and len(x) == count for x, layout in zip(tensors, given)):
        found = reduced_by_sample(function, args, kwargs)
        if found is not None:
            return found
    shown = [
        x if layout is None else layout.by_sample(x, count) for x, layout in zip(tensors, given)
    ]
    axes = tuple(None if layout is None else 0 for layout in given)
    if not any(axis == 0 for axis in axes):
        raise NotBySampleError(str(function))

    def of_one(*sample: Tensor) -> Any:
        left = iter(sample)
        filled = [_with_tensors(value, left) for value in (*args, *kwargs.values())]
        return function(*filled[: len(args)], **dict(zip(kwargs, filled[len(args) :])))

    return torch.func.vmap(of_one, in_dims=axes)(*shown)


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors that an operation gave."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, tuple | list):
        return [x for part in value for x in tensors_in(part)]
    return []


def tensor_arguments(args: Any, kwargs: Any) -> list[Tensor]:
    """The tensors that an operation is given."""
    return tensors_in((*args, *kwargs.values()))


def scalars_of(args: Any, kwargs: Any) -> list[Any]:
    """Arguments by place, None for what cannot be compared."""
    given = (*args, *kwargs.values())
    return [value if _is_scalar(value) else None for value in given]


def _with_tensors(value: Any, tensors: Iterator[Tensor]) -> Any:
    """An argument with other tensors, in the order of `tensors_in`."""
    if isinstance(value, Tensor):
        return next(tensors)
    if isinstance(value, tuple | list):
        return type(value)([_with_tensors(x, tensors) for x in value])
    return value


_SCALARS = (bool, int, float, str, slice, type(None), type(...))


def _is_scalar(value: Any) -> bool:
    if type(value) in (tuple, list):
        return all(map(_is_scalar, value))
    return isinstance(value, _SCALARS)
