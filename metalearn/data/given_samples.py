"""Samples as they are handed over: arrays, lists or a Dataset become tensors.

Axes: N samples, L tokens of a sequence.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    default_collate,
)

from metalearn.data.pictures import PictureError, flattened
from metalearn.errors import SettingError

__all__ = ["as_array", "as_inputs", "as_tensor", "given_samples"]

_COLOURS = (1, 3, 4)


class GivenSamples(NamedTuple):
    """Inputs and targets as they were handed over, one after another."""

    inputs: Any
    targets: Any
    class_names: Sequence[str] | None
    """``classes`` of a Dataset, as those of torchvision have them."""


def given_samples(x: Any, y: Any, *, classes: bool) -> GivenSamples:
    """Inputs and targets, out of a Dataset where one is given.

    Args:
        x: inputs, or a Dataset or DataLoader of pairs.
        y: targets; None beside a Dataset.
        classes: whether targets are labels, for messages.

    Raises:
        SettingError: neither.
    """
    what = "label" if classes else "target"
    if isinstance(x, str | os.PathLike):
        accepted = "inputs are needed, not a path: folder_data(root) reads a folder of pictures"
        raise SettingError("x", os.fspath(x), accepted)
    if isinstance(x, DataLoader):
        _check_loader(x)
        x = x.dataset
    if not isinstance(x, Dataset):
        if y is None and isinstance(x, tuple) and len(x) == 2:
            x, y = x
        if y is None:
            accepted = f"a {what} for each input is needed: (x, y), or a Dataset of pairs"
            raise SettingError("y", None, accepted)
        return GivenSamples(x, y, None)
    if y is not None:
        accepted = f"None is needed beside a Dataset, whose samples are pairs (input, {what})"
        raise SettingError("y", type(y).__name__, accepted)
    named = getattr(x, "classes", None)
    named = list(named) if isinstance(named, list | tuple) else None
    if type(x) is TensorDataset and len(x.tensors) == 2:
        return GivenSamples(*x.tensors, named)
    return GivenSamples(*_read(x, what), named)


def _check_loader(loader: Any) -> None:
    """Refuse a loader that gives other samples than its Dataset, each once.

    Raises:
        SettingError: that.
    """
    if loader.collate_fn is not default_collate:
        accepted = "its Dataset is needed where batches are made by a collate_fn of their own"
        raise SettingError("x", "a DataLoader", accepted)
    sampler = loader.sampler
    whole = type(sampler) is SequentialSampler or (
        type(sampler) is RandomSampler
        and not sampler.replacement
        and sampler.num_samples == len(loader.dataset)
    )
    if not whole or type(loader.batch_sampler) not in (BatchSampler, type(None)):
        accepted = "its Dataset, or a Subset of it, is needed where a sampler chooses samples"
        raise SettingError("x", "a DataLoader", accepted)


def _read(dataset: Any, what: str) -> tuple[list[Any], list[Any]]:
    """All pairs of a Dataset.

    Raises:
        SettingError: it has no length, or no pairs.
    """
    name = type(dataset).__name__
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise SettingError("x", name, "a Dataset with a length and samples by number is needed")
    inputs, targets = [], []
    for number in range(len(dataset)):
        sample = dataset[number]
        if not isinstance(sample, tuple | list) or len(sample) != 2:
            accepted = (
                f"samples that are pairs (input, {what}) are needed, not {type(sample).__name__}"
            )
            raise SettingError("x", f"{name}[{number}]", accepted)
        inputs.append(_as_picture(sample[0]))
        targets.append(sample[1])
    return inputs, targets


def _as_picture(value: Any) -> Any:
    """A picture of Pillow as uint8 ``[channels, height, width]``; all else as it is."""
    if not hasattr(value, "getbands"):
        return value
    grey = value.mode in ("1", "L", "LA") or value.mode.startswith("I;16")
    try:
        pixels = np.array(flattened(value, 1 if grey else 3))
    except PictureError as error:
        raise SettingError("x", f"a picture of mode {value.mode}", str(error)) from error
    return torch.from_numpy(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1).copy())


def as_inputs(values: Any, *, tokens: bool) -> Tensor:
    """Inputs as `metalearn.data.ClassificationData` holds them.

    Args:
        values: arrays, tensors or lists, of all samples or one for each.
        tokens: whether whole numbers are tokens, int64, padded with 0 to one length.

    Raises:
        SettingError: no numbers, samples of different shapes, values that are not finite, pictures
            whose channels stand last.
    """
    if tokens:
        values = _padded(values)
    found = as_tensor("x", values)
    if found.is_complex():
        raise SettingError("x", str(found.dtype), "real numbers are needed")
    if found.dim() == 0 or not len(found):
        raise SettingError("x", f"shape {list(found.shape)}", "at least one sample is needed")
    if tokens:
        return _checked_tokens(found)
    if found.dtype == torch.uint8 and found.dim() in (3, 4):
        return _checked_pictures(found[:, None] if found.dim() == 3 else found)
    found = found.float()
    found = found[:, None] if found.dim() == 1 else found
    lost = (~found.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
    if lost:
        accepted = f"finite numbers are needed; sample {lost[0]} has others"
        raise SettingError("x", f"{len(lost)} samples", accepted)
    return found


def _checked_tokens(found: Tensor) -> Tensor:
    if found.is_floating_point() or found.dtype == torch.bool or found.dim() < 2:
        accepted = "whole numbers [N, L] are needed with tokens=True"
        raise SettingError("x", f"{found.dtype} {list(found.shape)}", accepted)
    if int(found.min()) < 0:
        raise SettingError("x", int(found.min()), "numbers of tokens of at least 0 are needed")
    return found.long()


def _checked_pictures(found: Tensor) -> Tensor:
    if found.shape[1] not in _COLOURS and found.shape[3] in _COLOURS:
        accepted = "[N, channels, height, width] is needed: torch.as_tensor(x).permute(0, 3, 1, 2)"
        raise SettingError("x", f"shape {list(found.shape)}", accepted)
    return found.contiguous()


def _padded(values: Any) -> Any:
    """Sequences of different lengths with zeros after them."""
    if not isinstance(values, list | tuple) or not all(isinstance(v, Iterable) for v in values):
        return values
    rows = [as_tensor("x", list(row) if isinstance(row, range) else row) for row in values]
    if len({row.dim() for row in rows}) == 1 and rows[0].dim() == 1:
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return rows


def as_tensor(setting: str, values: Any) -> Tensor:
    """Numbers as a tensor on the CPU.

    Raises:
        SettingError: no numbers, or rows of different shapes.
    """
    if isinstance(values, Tensor):
        if values.layout != torch.strided or values.is_meta:
            raise SettingError(setting, str(values.layout), "a dense tensor with values is needed")
        return values.detach().cpu()
    found = as_array(setting, values)
    if found.dtype.kind not in "biufc":
        accepted = "numbers are needed"
        raise SettingError(setting, f"an array of {found.dtype}", accepted)
    if found.dtype.kind == "u" and found.dtype != np.uint8:
        found = found.astype(np.int64)
    return torch.tensor(np.ascontiguousarray(found))


def as_array(setting: str, values: Any) -> np.ndarray:
    """What was given as an array of NumPy.

    Raises:
        SettingError: rows of different shapes, or nothing that holds values.
    """
    if isinstance(values, Tensor):
        return _numbers(as_tensor(setting, values))
    accepted = "an array, a tensor or a list of values, one for each sample, is needed"
    if values is None or isinstance(values, str | bytes | dict | set) or callable(values):
        raise SettingError(setting, values, accepted)
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        raise SettingError(setting, "a masked array", "values that are all there are needed")
    if isinstance(values, list | tuple):
        values = [
            _numbers(value.detach().cpu()) if isinstance(value, Tensor) else value
            for value in values
        ]
        _check_shapes(setting, values)
    try:
        found = np.asarray(values)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise SettingError(setting, values, accepted) from error
    if found.ndim == 0:
        raise SettingError(setting, values, accepted)
    return found


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
    return (len(row), *_shape(row[0])) if isinstance(row, list | tuple) and row else ()
