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
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
    default_collate,
)

from metalearn.data.given_arrays import as_array, as_floats, as_tensor
from metalearn.data.pictures import PictureError, flattened
from metalearn.errors import SettingError

__all__ = ["as_inputs", "given_samples"]

_COLOURS = (1, 3, 4)
_SIDE = 8  # from here on two axes before one of colours are a picture's, not a sequence's


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
    named = _class_names(x)
    if type(x) is TensorDataset and len(x.tensors) == 2:
        return GivenSamples(*x.tensors, named)
    return GivenSamples(*_read(x, what), named)


def _class_names(dataset: Any) -> list[Any] | None:
    """``classes`` of a Dataset, of the one that a Subset is of, or of all that are put together."""
    if type(dataset) is Subset:
        return _class_names(dataset.dataset)
    if type(dataset) is ConcatDataset:
        names = [_class_names(part) for part in dataset.datasets]
        return names[0] if all(name == names[0] for name in names) else None
    found = getattr(dataset, "classes", None)
    return list(found) if isinstance(found, list | tuple) else None


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
    _check_channels(found)
    found = as_floats("x", found)
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
    if not found.numel():
        raise SettingError("x", f"shape {list(found.shape)}", "at least one token is needed")
    if int(found.min()) < 0:
        raise SettingError("x", int(found.min()), "numbers of tokens of at least 0 are needed")
    return found.long()


def _checked_pictures(found: Tensor) -> Tensor:
    if found.shape[1] not in _COLOURS and found.shape[3] in _COLOURS:
        accepted = "[N, channels, height, width] is needed: torch.as_tensor(x).permute(0, 3, 1, 2)"
        raise SettingError("x", f"shape {list(found.shape)}", accepted)
    return found.contiguous()


def _check_channels(found: Tensor) -> None:
    """Refuse pictures of numbers whose colours stand last, which a convolution takes for rows.

    Raises:
        SettingError: that.
    """
    if found.dim() != 4 or found.shape[3] not in _COLOURS or found.shape[1] in _COLOURS:
        return
    low, high = sorted(found.shape[1:3])
    if low >= _SIDE and high <= 2 * low:
        accepted = (
            "[N, channels, height, width] is needed of pictures: torch.as_tensor(x)"
            ".permute(0, 3, 1, 2); ClassificationData or RegressionData takes what are none"
        )
        raise SettingError("x", f"shape {list(found.shape)}", accepted)


def _padded(values: Any) -> Any:
    """Sequences of different lengths with zeros after them; an empty one is zeros alone."""
    if not isinstance(values, list | tuple | Tensor) and hasattr(values, "__array__"):
        values = as_array("x", values)
        values = list(values) if values.dtype.kind == "O" and values.ndim == 1 else values
    if not isinstance(values, list | tuple) or not all(isinstance(v, Iterable) for v in values):
        return values
    rows = [as_tensor("x", list(row) if isinstance(row, range) else row) for row in values]
    if {row.dim() for row in rows} != {1}:
        return rows
    rows = [row if len(row) else row.long() for row in rows]  # what is empty has no type
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
