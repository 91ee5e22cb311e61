"""Data of one's own, in one line: arrays, tensors, lists or a Dataset, divided into three splits.

Axes: N samples, L tokens of a sequence, C classes, D targets of a sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import torch
from torch import Tensor

from metalearn.data.classification import ClassificationData
from metalearn.data.division import divide_samples, shuffled_splits
from metalearn.data.given_arrays import as_floats, as_tensor
from metalearn.data.given_samples import as_inputs, given_samples
from metalearn.data.labels import Classes, as_classes, named_by
from metalearn.data.regression import RegressionData
from metalearn.errors import DataError, SettingError
from metalearn.random_streams import check_seed
from metalearn.signatures import checked
from metalearn.types import Split

__all__ = ["classification_data", "regression_data"]

_SHARES = (0.6, 0.2, 0.2)


@checked
def classification_data(
    x: Any,
    y: Any = None,
    *,
    fractions: Sequence[float] = _SHARES,
    splits: Mapping[Split, Any] | None = None,
    class_names: Sequence[str] | None = None,
    tokens: bool = False,
    seed: int = 0,
) -> ClassificationData:
    """Labelled samples of one's own, for `EnsembleTrainer`, `PerSampleTrainer` and the others.

    Every class is in every split by its share. Nothing is normalised: floats are kept as they are,
    as float32, and uint8 pictures are brought to [0, 1]. What is given is copied: changing it later
    changes nothing here. A folder of pictures is read by `folder_data`.

    Args:
        x: inputs ``[N, ...]``: a tensor, a NumPy array, a data frame or lists of numbers; or a
            torch ``Dataset`` of N pairs (input, label), or a ``DataLoader`` of one, without ``y``.
            uint8 of three or four axes are pictures, ``[N, height, width]`` or ``[N, channels,
            height, width]``.
        y: labels ``[N]``: whole numbers (from 0, from 1, with gaps), strings, or one-hot rows
            ``[N, C]``.
        fractions: shares of the samples for training, validation and test, whose sum is 1.
        splits: ``"train"``, ``"validation"`` and ``"test"``, each to its sample indices, in place
            of ``fractions`` and ``seed``.
        class_names: of the labels in their order; None takes the labels, as text, or the
            ``classes`` of a ``Dataset`` that has them (or whose ``Subset`` is given), by number.
        tokens: whether whole numbers are those of tokens, for an ``nn.Embedding``: they stay whole,
            and lists of different lengths are padded with 0. Otherwise whole numbers become floats.
        seed: of the division; the same splits on any machine.

    Returns:
        Data whose class k is the k-th label in order (numbers by size, strings by alphabet), called
        ``class_names[k]``.

    Raises:
        SettingError: inputs or labels that are none; the sentence says what would be.
        DataError: a class with too few samples to be in every split.
    """
    check_seed(seed)
    inputs, labels, named = given_samples(x, y, classes=True)
    found = as_inputs(inputs, tokens=tokens)
    classes = _named(as_classes(labels, len(found)), class_names, named)
    places = None if splits is None else _indices(splits, len(found))
    if places is None:
        validation, test = _shares(fractions)
        parts = divide_samples(
            classes.targets, names=classes.names, fractions=(test, validation), seed=seed
        )
        places = {"train": parts[2], "validation": parts[1], "test": parts[0]}
    return ClassificationData(found, classes.targets, classes.names, places)


@checked
def regression_data(
    x: Any,
    y: Any = None,
    *,
    fractions: Sequence[float] = _SHARES,
    splits: Mapping[Split, Any] | None = None,
    tokens: bool = False,
    seed: int = 0,
) -> RegressionData:
    """Samples with real targets of one's own, divided at random.

    Nothing is normalised: inputs and targets are best brought to about unit size beforehand. They
    are copied: changing them later changes nothing here.

    Args:
        x: as of `classification_data`; a ``Dataset`` gives pairs (input, target).
        y: targets, ``[N]`` or ``[N, D]``, finite numbers.
        fractions: shares of the samples for training, validation and test, whose sum is 1.
        splits: each split to its sample indices, in place of ``fractions`` and ``seed``.
        tokens: as of `classification_data`.
        seed: of the division; the same splits on any machine.

    Returns:
        Data with targets float32 ``[N, D]``.

    Raises:
        SettingError: inputs or targets that are none; the sentence says what would be.
    """
    check_seed(seed)
    inputs, values, _ = given_samples(x, y, classes=False)
    found = as_inputs(inputs, tokens=tokens)
    targets = as_tensor("y", values)
    if targets.dtype == torch.bool or targets.is_complex():
        raise SettingError("y", str(targets.dtype), "real numbers are needed")
    targets = as_floats("y", targets)
    targets = targets[:, None] if targets.dim() == 1 else targets
    if targets.dim() != 2 or len(targets) != len(found):
        accepted = f"targets [{len(found)}] or [{len(found)}, D] are needed, one row for each input"
        raise SettingError("y", f"shape {list(targets.shape)}", accepted)
    if splits is not None:
        return RegressionData(found, targets, _indices(splits, len(found)))
    validation, test = _shares(fractions)
    shares = {"validation_fraction": validation, "test_fraction": test}
    return RegressionData(found, targets, shuffled_splits(len(found), **shares, seed=seed))


def _shares(fractions: Sequence[float]) -> tuple[float, float]:
    """Those of validation and test.

    Raises:
        SettingError: no three numbers between 0 and 1 whose sum is 1.
    """
    found = [float(share) for share in fractions]
    if len(found) != 3 or not all(0 < s < 1 for s in found) or abs(sum(found) - 1) > 1e-6:
        accepted = (
            "shares of training, validation and test are needed whose sum is 1, 0.6, 0.2, 0.2"
        )
        raise SettingError("fractions", list(fractions), accepted)
    return found[1], found[2]


def _indices(splits: Mapping[Split, Any], samples: int) -> dict[Split, Tensor]:
    """Indices as tensors; a mask of all samples is taken for the indices where it is true.

    Raises:
        SettingError: names the split; `ClassificationData` looks at the indices themselves.
    """
    if set(splits) != set(get_args(Split)):
        raise SettingError(
            "splits", sorted(splits, key=str), "train, validation and test are needed"
        )
    found: dict[Split, Tensor] = {}
    for name, given in splits.items():
        rows = as_tensor(f"splits[{name!r}]", given)
        if rows.dtype == torch.bool and rows.shape == (samples,):
            rows = rows.nonzero().flatten()
        whole = not (rows.is_floating_point() or rows.is_complex() or rows.dtype == torch.bool)
        found[name] = rows.long() if whole else rows
    return found


def _named(
    classes: Classes, class_names: Sequence[str] | None, of_dataset: Sequence[str] | None
) -> Classes:
    """Classes with the names that were given, or that a Dataset has for their numbers.

    Raises:
        SettingError: as many names as there are classes are needed.
        DataError: all samples have one label.
    """
    if len(classes.names) < 2:
        raise DataError(f"y: {classes.names[0]} is the only label; at least two are needed")
    if class_names is not None:
        names = tuple(class_names)
        if len(names) != len(classes.names) or len(set(names)) != len(names):
            shown = ", ".join(classes.names[:8]) + (", …" if len(classes.names) > 8 else "")
            accepted = f"{len(classes.names)} different names are needed, of the labels {shown}"
            raise SettingError("class_names", list(names), accepted)
        return Classes(classes.targets, names)
    return named_by(classes, of_dataset)
