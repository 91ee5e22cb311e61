"""Samples whose losses are to be explained, checked against the data of a run."""

from __future__ import annotations

from torch import Tensor

from metalearn.core.checks import check_pair
from metalearn.core.tree import check_tensors
from metalearn.data.regression import SupervisedData
from metalearn.errors import SettingError
from metalearn.evaluation.targets import check_sample_targets

__all__ = ["checked_targets"]


def checked_targets(targets: tuple[Tensor, Tensor], data: SupervisedData) -> tuple[Tensor, Tensor]:
    """Inputs and targets of R samples like those of the data.

    Raises:
        SettingError: others.
    """
    x, y = check_pair(targets, "targets")
    check_tensors((x, y), "targets")
    if not x.is_floating_point() or x.dim() < 1 or not len(x) or x.shape[1:] != data.input_shape:
        accepted = f"floats [R, {', '.join(map(str, data.input_shape))}] are needed, R at least 1"
        raise SettingError("inputs of targets", f"{x.dtype} {list(x.shape)}", accepted)
    if data.kind == "classification":
        check_sample_targets(y, samples=len(x), classes=data.outputs)
        return x, y.long()
    if not y.is_floating_point() or list(y.shape) != [len(x), data.outputs]:
        accepted = f"floats [{len(x)}, {data.outputs}] are needed"
        raise SettingError("targets", f"{y.dtype} {list(y.shape)}", accepted)
    return x, y
