"""What labelled samples in memory have in common, whatever their targets are.

Axes: N samples, B samples of a batch, M members.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

import torch
from torch import Tensor

from metalearn.core.checks import as_device, check_range
from metalearn.core.tree import check_tensors
from metalearn.errors import SettingError
from metalearn.types import Split

__all__ = ["check_inputs", "check_splits", "take_samples"]

_TOKENS = (torch.int64, torch.int32)


def take_samples(
    inputs: Tensor,
    targets: Tensor,
    indices: Tensor,
    device: torch.device | str,
    moved: dict[str, tuple[Tensor, Tensor]],
) -> tuple[Tensor, Tensor]:
    """Samples by their index: x float32 and y, both with the axes of ``indices`` in front.

    Args:
        inputs: ``[N, ...]``; uint8 pictures are divided by 255, tokens become int64.
        targets: ``[N, ...]``, handed on as they are.
        indices: whole numbers ``[B]`` or ``[M, B]``, in 0..N-1.
        device: where the samples are wanted.
        moved: inputs and targets by device, filled here.

    Raises:
        SettingError: indices that are no indices of samples.
    """
    check_tensors(indices, "indices")
    if indices.dtype not in (torch.int64, torch.int32):
        accepted = "whole numbers, the indices of samples, are needed"
        raise SettingError("indices", str(indices.dtype), accepted)
    if indices.device.type == "cpu" and indices.numel():  # a device is not waited for
        check_range("indices", indices, len(inputs))
    place = as_device(device)
    if str(place) not in moved:
        moved[str(place)] = inputs.to(place), targets.to(place)
    inputs, targets = moved[str(place)]
    flat = indices.to(inputs.device).reshape(-1)
    x = inputs.index_select(0, flat).reshape((*indices.shape, *inputs.shape[1:]))
    y = targets.index_select(0, flat).reshape((*indices.shape, *targets.shape[1:]))
    if x.dtype in _TOKENS:
        return x.long(), y
    return (x.float().div_(255) if x.dtype == torch.uint8 else x.float()), y


def check_inputs(inputs: Tensor) -> None:
    """Refuse what is neither pictures nor floats nor numbers of tokens.

    Raises:
        SettingError: says what is needed.
    """
    pictures = inputs.dtype == torch.uint8 and inputs.ndim == 4
    numbers = inputs.is_floating_point() or inputs.dtype in _TOKENS
    if not pictures and not (numbers and inputs.ndim >= 2):
        raise SettingError(
            "inputs",
            f"{inputs.dtype} {list(inputs.shape)}",
            "uint8 pictures [N, channels, height, width], floats [N, ...] or tokens [N, L], int64, "
            "are needed",
        )


def check_splits(splits: Mapping[Split, Tensor], count: int) -> None:
    """Refuse splits that are not three, empty, out of range or not disjoint.

    Raises:
        SettingError: names the split.
    """
    if set(splits) != set(get_args(Split)):
        raise SettingError(
            "splits", sorted(splits, key=str), "train, validation and test are needed"
        )
    for name, indices in splits.items():
        if indices.dtype != torch.int64 or indices.ndim != 1 or not len(indices):
            raise SettingError(
                f"splits[{name!r}]",
                f"{indices.dtype} {list(indices.shape)}",
                "int64 sample indices [n] are needed, at least one",
            )
        if not 0 <= int(indices.min()) <= int(indices.max()) < count:
            found = f"{int(indices.min())}..{int(indices.max())}"
            raise SettingError(f"splits[{name!r}]", found, f"samples lie in 0..{count - 1}")
    times = torch.bincount(torch.cat(list(splits.values())), minlength=count)
    if int(times.max()) > 1:
        twice = int(times.argmax())
        where = [name for name, indices in splits.items() if (indices == twice).any()]
        raise SettingError("splits", where, f"sample {twice} stands twice; once is accepted")
