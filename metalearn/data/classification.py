"""Supervised classification: samples (not classes) divided into training, validation and test.

Axes: N samples, B samples of a batch, M members, C classes, [channels, height, width] of a picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from metalearn.core.checks import as_device, check_range
from metalearn.core.tree import check_tensors
from metalearn.errors import SettingError
from metalearn.random_streams import check_split
from metalearn.signatures import check_fields, checked
from metalearn.types import Split

__all__ = ["ClassificationData"]


@dataclass(frozen=True, eq=False)
class ClassificationData:
    """Labelled samples in memory, each in at most one split.

    Attributes:
        inputs: uint8 pictures ``[N, channels, height, width]``, or floats ``[N, ...]``.
        targets: ``[N]``, int64, the class of each sample, in 0..C-1.
        class_names: C names, at least two.
        splits: ``"train"``, ``"validation"`` and ``"test"``, each to its sample indices, int64
            ``[n]``; none is empty and no sample stands twice.

    Raises:
        SettingError: shapes, types or splits that contradict one another.
    """

    kind: ClassVar[Literal["classification"]] = "classification"

    inputs: Tensor
    targets: Tensor
    class_names: tuple[str, ...]
    splits: Mapping[Split, Tensor]
    _on_device: dict[str, tuple[Tensor, Tensor]] = field(
        default_factory=dict, init=False, repr=False
    )

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("inputs", "targets", "splits"):
            check_tensors(getattr(self, name), name)
        _check_samples(self.inputs, self.targets, len(self.class_names))
        _check_splits(self.splits, len(self.inputs))

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input, ``(channels, height, width)`` of a picture."""
        return tuple(self.inputs.shape[1:])

    @property
    def outputs(self) -> int:
        """Number of classes C."""
        return len(self.class_names)

    @checked
    def size(self, split: Split) -> int:
        """Number of samples of a split."""
        check_split(split)
        return len(self.splits[split])

    @checked
    def take(self, indices: Tensor, *, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Samples by their index, of any split: ``(x, y)`` on ``device``.

        The data are moved to a device once and stay there.

        Args:
            indices: int64 ``[B]`` or ``[M, B]``, in 0..N-1.
            device: where the samples are wanted.

        Returns:
            ``(x, y)``, x float32 ``[B, ...]`` or ``[M, B, ...]``, y int64, shaped as ``indices``.
            uint8 pictures are divided by 255, so that they lie in [0, 1], and are not standardised;
            floats are handed on as they are.
        """
        check_tensors(indices, "indices")
        if indices.dtype not in (torch.int64, torch.int32):
            accepted = "whole numbers, the indices of samples, are needed"
            raise SettingError("indices", str(indices.dtype), accepted)
        if indices.device.type == "cpu" and indices.numel():  # a device is not waited for
            check_range("indices", indices, len(self.inputs))
        inputs, targets = self._moved(as_device(device))
        flat = indices.to(inputs.device).reshape(-1)
        x = inputs.index_select(0, flat).reshape(*indices.shape, *self.input_shape)
        y = targets.index_select(0, flat).reshape(indices.shape)
        return (x.float().div_(255) if x.dtype == torch.uint8 else x.float()), y

    @checked
    def part(self, split: Split, *, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """All samples of a split, in the order of ``splits[split]``; see `take`."""
        check_split(split)
        return self.take(self.splits[split], device=device)

    def _moved(self, device: torch.device) -> tuple[Tensor, Tensor]:
        key = str(device)
        if key not in self._on_device:
            self._on_device[key] = self.inputs.to(device), self.targets.to(device)
        return self._on_device[key]


def _check_samples(inputs: Tensor, targets: Tensor, classes: int) -> None:
    pictures = inputs.dtype == torch.uint8 and inputs.ndim == 4
    if not pictures and not (inputs.is_floating_point() and inputs.ndim >= 2):
        raise SettingError(
            "inputs",
            f"{inputs.dtype} {list(inputs.shape)}",
            "uint8 pictures [N, channels, height, width] or floats [N, ...] are needed",
        )
    if targets.dtype != torch.int64 or targets.shape != inputs.shape[:1]:
        raise SettingError(
            "targets",
            f"{targets.dtype} {list(targets.shape)}",
            f"int64 class indices [{len(inputs)}] are needed, one a sample",
        )
    if classes < 2:
        raise SettingError("class_names", classes, "at least two classes are needed")
    if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < classes:
        found = f"{int(targets.min())}..{int(targets.max())}"
        raise SettingError("targets", found, f"{classes} classes have indices in 0..{classes - 1}")


def _check_splits(splits: Mapping[Split, Tensor], count: int) -> None:
    if set(splits) != set(get_args(Split)):
        raise SettingError("splits", sorted(splits), "train, validation and test are needed")
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
