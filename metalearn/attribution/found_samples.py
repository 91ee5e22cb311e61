"""The samples that an attribution is about, with what a network makes of them.

Axes: R targets, N training examples, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metalearn.core.tree import check_tensors
from metalearn.errors import SettingError
from metalearn.signatures import check_fields

__all__ = ["TargetSamples", "TrainingExamples", "check_shape"]

_FEW_OPERATIONS = (torch.uint16, torch.uint32, torch.uint64)  # torch can hold them, not sort them


@dataclass(frozen=True, eq=False)
class TargetSamples:
    """The samples whose losses are explained.

    Raises:
        SettingError: shapes that do not fit.
    """

    labels: Tensor
    """``[R, ...]``: classes as whole numbers, or numbers to be predicted."""
    losses: Tensor
    """``[R]``, of the network that is explained."""
    rows: Tensor
    """``[R]``: their places in the split, whole numbers."""
    inputs: Tensor | None = None
    """``[R, ...]``; pictures ``[R, channels, height, width]`` are shown, others are numbered."""
    probabilities: Tensor | None = None
    """``[R, C]``, of the network; None in regression."""

    def __post_init__(self) -> None:
        check_fields(self)
        check_shape("targets.labels", self.labels, ("R", ...))
        count = len(self.labels)
        check_shape("targets.losses", self.losses, (count,))
        check_shape("targets.rows", self.rows, (count,), whole=True)
        if self.inputs is not None:
            check_shape("targets.inputs", self.inputs, (count, ...))
        if self.probabilities is not None:
            check_shape("targets.probabilities", self.probabilities, (count, "C"))
            if not self.probabilities.is_floating_point():
                kind = str(self.probabilities.dtype)
                raise SettingError("targets.probabilities", kind, "floats are needed")


@dataclass(frozen=True, eq=False)
class TrainingExamples:
    """The examples that were trained on, in the order of the training part.

    Raises:
        SettingError: shapes that do not fit.
    """

    labels: Tensor
    """``[N, ...]``, as those of the targets."""
    inputs: Tensor | None = None
    """``[N, ...]``, as those of the targets."""

    def __post_init__(self) -> None:
        check_fields(self)
        check_shape("examples.labels", self.labels, ("N", ...))
        if self.inputs is not None:
            check_shape("examples.inputs", self.inputs, (len(self.labels), ...))


def check_shape(name: str, values: Any, shape: tuple[Any, ...], *, whole: bool = False) -> None:
    """Refuse what is no tensor of real numbers of a shape.

    Args:
        name: of the setting.
        values: what it was given.
        shape: lengths; a letter takes any but 0, ``...`` at the end any further axes.
        whole: whole numbers alone.

    Raises:
        SettingError: names the setting and the shape that is needed.
    """
    if not isinstance(values, Tensor):
        raise SettingError(name, type(values).__name__, "a torch.Tensor is needed")
    check_tensors(values, name)
    inexact = values.is_floating_point() or values.dtype is torch.bool
    if values.is_complex() or values.dtype in _FEW_OPERATIONS or (whole and inexact):
        known = "int64" if whole else "float32 or int64"
        accepted = f"{'whole' if whole else 'real'} numbers are needed, such as {known}"
        raise SettingError(name, str(values.dtype), accepted)
    wanted = [length for length in shape if length is not ...]
    open_end = len(wanted) < len(shape)
    fits = values.dim() == len(wanted) or (open_end and values.dim() > len(wanted))
    if not fits or not all(
        found >= 1 if isinstance(length, str) else found == length
        for found, length in zip(values.shape, wanted)
    ):
        text = ", ".join("..." if length is ... else str(length) for length in shape)
        raise SettingError(f"shape of {name}", list(values.shape), f"[{text}] is needed")
