"""Supervised regression: samples with real targets, divided into training, validation and test.

Axes: N samples, B samples of a batch, M members, D targets of a sample.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from metalearn.core.tree import check_tensors
from metalearn.data.classification import ClassificationData
from metalearn.data.samples import check_inputs, check_splits, take_samples
from metalearn.errors import SettingError
from metalearn.misfits import advise
from metalearn.random_streams import check_split
from metalearn.reprs import counted, one_line, samples_in_words
from metalearn.signatures import check_fields, checked, known_fields
from metalearn.types import Split, TaskDistribution, offers

__all__ = ["RegressionData", "SupervisedData"]


@known_fields
@dataclass(frozen=True, eq=False)
class RegressionData:
    """Samples with real targets in memory, each in at most one split; tensors are held, not copied.

    Nothing is standardised: inputs and targets are best brought to about unit size beforehand.

    Attributes:
        inputs: uint8 pictures ``[N, channels, height, width]``, floats ``[N, ...]``, or numbers of
            tokens ``[N, L]``, int64 or int32.
        targets: finite floats ``[N, D]``, D at least 1.
        splits: ``"train"``, ``"validation"`` and ``"test"``, each to its sample indices, int64
            ``[n]``; none is empty and no sample stands twice.

    Raises:
        SettingError: shapes, types or splits that contradict one another.
    """

    kind: ClassVar[Literal["regression"]] = "regression"

    inputs: Tensor
    targets: Tensor
    splits: Mapping[Split, Tensor]
    _on_device: dict[str, tuple[Tensor, Tensor]] = field(
        default_factory=dict, init=False, repr=False
    )

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("inputs", "targets", "splits"):
            check_tensors(getattr(self, name), name)
        check_inputs(self.inputs)
        _check_targets(self.targets, len(self.inputs))
        check_splits(self.splits, len(self.inputs))

    def __repr__(self) -> str:
        return one_line(self, counted(self.outputs, "target"), samples_in_words(self))

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input, ``(channels, height, width)`` of a picture."""
        return tuple(self.inputs.shape[1:])

    @property
    def outputs(self) -> int:
        """Number of targets of a sample, D."""
        return self.targets.shape[1]

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
            ``(x, y)``, both float32: x ``[B, ...]`` or ``[M, B, ...]``, y ``[B, D]`` or
            ``[M, B, D]``. uint8 pictures are divided by 255; tokens are int64.
        """
        x, y = take_samples(self.inputs, self.targets, indices, device, self._on_device)
        return x, y.float()

    @checked
    def part(self, split: Split, *, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """All samples of a split, in the order of ``splits[split]``; see `take`."""
        check_split(split)
        return self.take(self.splits[split], device=device)


SupervisedData: TypeAlias = ClassificationData | RegressionData
"""What a network is trained on sample by sample."""


def _advice(value: Any) -> str | None:
    if offers(value, TaskDistribution):
        return "data with samples are needed; MetaTrainer trains on tasks"
    if isinstance(value, str | os.PathLike):
        return "data are needed, not a path: metalearn.data.folder_data(root) reads a folder"
    if isinstance(value, Tensor | Dataset | DataLoader) or hasattr(value, "__len__"):
        makes = "classification_data or regression_data of metalearn.data"
        return f"a ClassificationData or a RegressionData is needed: {makes} makes it of these"
    return None


advise(ClassificationData, _advice)
advise(RegressionData, _advice)


def _check_targets(targets: Tensor, count: int) -> None:
    if not targets.is_floating_point() or targets.ndim != 2 or len(targets) != count:
        raise SettingError(
            "targets",
            f"{targets.dtype} {list(targets.shape)}",
            f"floats [{count}, D] are needed, D numbers for each sample",
        )
    if not targets.shape[1]:
        raise SettingError("targets", list(targets.shape), "at least one for each sample is needed")
    lost = (~targets.float().isfinite()).any(1).nonzero().flatten().tolist()
    if lost:
        accepted = f"finite numbers are needed; sample {lost[0]} has others"
        raise SettingError("targets", f"{len(lost)} samples", accepted)
