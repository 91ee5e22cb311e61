"""The pictures of a data set, their features, or texts, where tasks take them from.

Axes: T tasks, W classes, n samples of a class in a task, R quarter turns, D features, L tokens.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from metalearn.data.picture_files import PictureFiles

__all__ = ["StoredInputs", "as_stored"]

_QUARTER_TURNS = 4
_LARGEST_ON_DEVICE = 2**32
"""Bytes that are kept on a GPU; tiered-ImageNet has four times as many."""
_one_mover = threading.Lock()


class StoredInputs:
    """What inputs of tasks are made of, moved to a device once; threads may ask at once.

    Args:
        values: uint8 pictures ``[N, C, H, W]``, also in files, int32 tokens ``[N, L]``, or
            features or arrays, floats ``[R, N, ...]``.
    """

    def __init__(self, values: Tensor | PictureFiles) -> None:
        self.values = values
        self._on_device: dict[str, Tensor] = {}

    def gather(self, samples: Tensor, turns: Tensor, device: torch.device) -> Tensor:
        """``[T, W, n, ...]``: pictures float32 in [0, 1], turned, features, or tokens int64.

        Args:
            samples: numbers ``[T, W, n]``.
            turns: by quarters, ``[T, W]``.
            device: where they are wanted.
        """
        values = self.on(device)
        samples = samples.to(values.device)
        if values.is_floating_point():
            assert isinstance(values, Tensor)
            return _sent(values[turns[:, :, None].to(values.device), samples], device)
        if values.dtype == torch.int32:
            return _sent(values[samples], device).long()
        inputs = _sent(values[samples], device).float().div_(255)
        for turn in range(1, _QUARTER_TURNS):
            chosen = turns == turn
            if chosen.any():
                chosen = chosen.to(device)
                inputs[chosen] = torch.rot90(inputs[chosen], turn, dims=(-2, -1))
        return inputs

    def on(self, device: torch.device) -> Tensor | PictureFiles:
        """All of them on a device, kept there, or where they are if they are too many for it."""
        large = device.type != "cpu" and self.values.nbytes > _LARGEST_ON_DEVICE
        if large or isinstance(self.values, PictureFiles):
            return self.values
        key = str(device)
        with _one_mover:
            if key not in self._on_device:
                self._on_device[key] = self.values.to(device)
            return self._on_device[key]


def as_stored(inputs: Tensor | PictureFiles) -> Tensor | PictureFiles:
    """Inputs ``[N, ...]`` of a data set, arrays with the axis of quarter turns, which is 1."""
    if isinstance(inputs, Tensor) and inputs.is_floating_point():
        return inputs[None]
    return inputs


def _sent(values: Tensor, device: torch.device) -> Tensor:
    """Values on a device, to which the host does not wait for their copy, if there is one."""
    if device.type == "cuda" and values.device.type == "cpu":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)
