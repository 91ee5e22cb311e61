"""Supervised classification: samples (not classes) divided into training, validation and test.

Axes: N samples, B samples of a batch, M members, C classes, [channels, height, width] of a picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from metalearn.core.tree import check_tensors
from metalearn.data.samples import check_inputs, check_splits, take_samples
from metalearn.errors import SettingError
from metalearn.random_streams import check_split
from metalearn.reprs import counted, one_line, samples_in_words
from metalearn.signatures import check_fields, checked, known_fields
from metalearn.types import Split

__all__ = ["ClassificationData"]


@known_fields
@dataclass(frozen=True, eq=False)
class ClassificationData:
    """Labelled samples in memory, each in at most one split; tensors are held, not copied.

    Attributes:
        inputs: uint8 pictures ``[N, channels, height, width]``, floats ``[N, ...]``, or numbers of
            tokens ``[N, L]``, int64 or int32.
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
        check_splits(self.splits, len(self.inputs))

    def __repr__(self) -> str:
        return one_line(self, counted(self.outputs, "class", "classes"), samples_in_words(self))

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
            floats are handed on as they are, and tokens as int64.
        """
        return take_samples(self.inputs, self.targets, indices, device, self._on_device)

    @checked
    def part(self, split: Split, *, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """All samples of a split, in the order of ``splits[split]``; see `take`."""
        check_split(split)
        return self.take(self.splits[split], device=device)


def _check_samples(inputs: Tensor, targets: Tensor, classes: int) -> None:
    check_inputs(inputs)
    if targets.dtype != torch.int64 or targets.shape != inputs.shape[:1]:
        raise SettingError(
            "targets",
            f"{targets.dtype} {list(targets.shape)}",
            f"int64 class indices [{len(inputs)}] are needed, one a sample; classification_data "
            "makes them of labels",
        )
    if classes < 2:
        raise SettingError("class_names", classes, "at least two classes are needed")
    if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < classes:
        found = f"{int(targets.min())}..{int(targets.max())}"
        raise SettingError(
            "targets",
            found,
            f"{classes} classes have indices in 0..{classes - 1}; "
            "classification_data takes labels from 1 and with gaps",
        )
