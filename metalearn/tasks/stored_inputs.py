"""The pictures of a data set, or their features, where tasks take them from.

Axes: T tasks, W classes, n pictures of a class in a task, R quarter turns, D features.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["StoredInputs"]

_QUARTER_TURNS = 4
_LARGEST_ON_DEVICE = 2**32
"""Bytes that are kept on a GPU; tiered-ImageNet has four times as many."""


class StoredInputs:
    """What inputs of tasks are made of, moved to a device once.

    Args:
        values: uint8 pictures ``[N, C, H, W]``, or features ``[R, N, D]``.
        described: whether they are features.
    """

    def __init__(self, values: Tensor, *, described: bool = False) -> None:
        self.values, self.described = values, described
        self._on_device: dict[str, Tensor] = {}

    def gather(self, pictures: Tensor, turns: Tensor, device: torch.device) -> Tensor:
        """``[T, W, n, ...]``: pictures float32 in [0, 1], turned, or their features.

        Args:
            pictures: numbers ``[T, W, n]``.
            turns: by quarters, ``[T, W]``.
            device: where they are wanted.
        """
        values = self.on(device)
        pictures = pictures.to(values.device)
        if self.described:
            return values[turns[:, :, None].to(values.device), pictures].to(device)
        inputs = values[pictures].to(device).float().div_(255)
        for turn in range(1, _QUARTER_TURNS):
            chosen = turns == turn
            if chosen.any():
                chosen = chosen.to(device)
                inputs[chosen] = torch.rot90(inputs[chosen], turn, dims=(-2, -1))
        return inputs

    def on(self, device: torch.device) -> Tensor:
        """All of them on a device, kept there, or where they are if they are too many for it."""
        if device.type != "cpu" and self.values.nbytes > _LARGEST_ON_DEVICE:
            return self.values
        key = str(device)
        if key not in self._on_device:
            self._on_device[key] = self.values.to(device)
        return self._on_device[key]
