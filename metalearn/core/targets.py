"""What targets a task has: class labels, of which some may be padding, probabilities or values.

A label of −100 (``IGNORED``, as in ``torch.nn.functional.cross_entropy``) is padding: it counts
nowhere.
Axes: T tasks, N samples, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from metalearn.core._functorch import is_functorch_wrapped_tensor
from metalearn.core.tracing import is_traced
from metalearn.errors import SettingError

__all__ = [
    "IGNORED",
    "check_form",
    "check_labels",
    "check_values",
    "is_label",
    "labels_of",
    "mean_without_padding",
    "not_padding",
    "real_samples",
]

IGNORED = -100
_SUM = 1e-3  # how far probabilities may be from adding up to 1


def check_form(classification: bool, outputs: Sequence[int], targets: Any) -> None:
    """Refuse targets whose shape or type does not fit the outputs; reads no values.

    Args:
        classification: outputs ``[N, C]`` take int64 class indices ``[N]`` or probabilities
            ``[N, C]``; else targets are floating-point, of the shape of the outputs.
        outputs: the shape of those of one task.
        targets: of one task.

    Raises:
        SettingError: names both shapes.
    """
    got = f"{targets.dtype} {list(targets.shape)}" if isinstance(targets, Tensor) else targets
    shape = list(outputs)
    if not isinstance(targets, Tensor):
        raise SettingError("targets", type(got).__name__, "a tensor is needed")
    if not classification:
        if list(targets.shape) != shape or not targets.is_floating_point():
            accepted = f"floating-point {shape} is needed, the shape of the outputs"
            raise SettingError("targets", got, accepted)
        return
    if len(shape) != 2:
        raise SettingError("outputs", shape, "[N, C] is needed for classification")
    soft = targets.is_floating_point() and list(targets.shape) == shape
    if not soft and (targets.dtype != torch.int64 or list(targets.shape) != shape[:1]):
        accepted = f"int64 class indices {shape[:1]} or probabilities {shape} are needed"
        raise SettingError("targets", got, accepted)


def check_values(targets: Tensor, classes: int, setting: str) -> None:
    """Refuse class targets that are out of range, and sets without any.

    Values are read on concrete tensors alone: inside a transform of torch.func nothing is checked.

    Args:
        targets: labels ``[..., N]``, or probabilities ``[..., N, C]``.
        classes: C.
        setting: names them in the error.

    Raises:
        SettingError: a label that is neither in 0..C−1 nor −100, a set of padding alone,
            probabilities that are negative or do not add up to 1.
    """
    if not is_label(targets):
        if targets.numel() and not _unreadable(targets):
            found = targets.detach()
            gap = (found.sum(-1) - 1).abs()
            bad = ~((found >= 0).all(-1) & (gap <= _SUM))
            if bool(bad.any()):
                row = found[bad][0].tolist()
                raise SettingError(setting, row, "probabilities that add up to 1 are needed")
        return
    check_labels(targets, classes, setting)
    if _unreadable(targets) or not targets.numel():
        return
    if int(targets.min()) == IGNORED and not bool(not_padding(targets).any(-1).all()):
        raise SettingError(setting, f"{IGNORED} alone", "every set needs a target that counts")


def check_labels(
    targets: Tensor, classes: int, setting: str = "targets", *, padded: bool = True
) -> None:
    """Refuse labels that are no whole numbers in 0..C−1 or, where ``padded``, −100.

    Values are read as in `check_values`.
    """
    if not is_label(targets):
        raise SettingError(setting, str(targets.dtype), "class indices, whole numbers, are needed")
    if not targets.numel() or _unreadable(targets):
        return
    least, largest = (int(end) for end in targets.aminmax())
    if least >= 0 and largest < classes:
        return
    outside = (targets < 0) | (targets >= classes)
    wrong = targets[outside & (targets != IGNORED) if padded else outside]
    if len(wrong):
        accepted = f"a class in 0..{classes - 1} is needed"
        accepted += f", or {IGNORED} for padding" if padded else ""
        raise SettingError(setting, int(wrong[0]), accepted)


def is_label(targets: Tensor) -> bool:
    """Whether targets are whole numbers."""
    kind = targets.dtype
    return not (kind.is_floating_point or kind.is_complex or kind == torch.bool)


def labels_of(targets: Tensor) -> Tensor:
    """Class indices: the targets, or of probabilities the most probable class."""
    return targets if is_label(targets) else targets.argmax(-1)


def not_padding(targets: Tensor) -> Tensor:
    """Which class targets ``[..., N]`` (or ``[..., N, C]``) are no padding, ``[..., N]``."""
    if is_label(targets):
        return targets != IGNORED
    return torch.ones_like(targets[..., 0], dtype=torch.bool)


def real_samples(targets: Tensor) -> Tensor:
    """Which samples of T tasks are no padding, ``[T, N]``, of targets ``[T, N, ...]`` of any kind.

    All of those that are values or probabilities.
    """
    if is_label(targets):
        return not_padding(targets)
    return torch.ones(targets.shape[:2], dtype=torch.bool, device=targets.device)


def mean_without_padding(values: Tensor, real: Tensor) -> Tensor:
    """Mean of ``values`` ``[..., N]`` where ``real``, which broadcasts to them, is true."""
    kept = torch.where(real, values, torch.zeros_like(values))
    return kept.sum(-1) / real.sum(-1).to(values.dtype)


def _unreadable(targets: Tensor) -> bool:
    return is_functorch_wrapped_tensor(targets) or targets.is_meta or is_traced()
