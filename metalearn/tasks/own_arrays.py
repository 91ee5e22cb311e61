"""Few-shot tasks of one's own arrays, tensors, lists or Dataset, in one line.

Axes: N samples, C classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

import torch
from torch import Tensor

from metalearn.data.arrays import LabelledArrays
from metalearn.data.division import check_class_fractions, divide_classes
from metalearn.data.given_samples import as_inputs, given_samples
from metalearn.data.images import LabelledImages
from metalearn.data.labels import as_classes, named_by, without_empty
from metalearn.errors import SettingError
from metalearn.signatures import checked
from metalearn.tasks.episodes import FewShotTasks
from metalearn.types import Split

__all__ = ["array_tasks"]

_SHARE = 0.2  # of the classes, for validation and for test


@checked
def array_tasks(
    x: Any,
    y: Any = None,
    *,
    splits: Mapping[str, Sequence[Any]] | None = None,
    validation_fraction: float | None = None,
    test_fraction: float | None = None,
    **episodes: Annotated[Any, FewShotTasks],
) -> FewShotTasks:
    """Few-shot tasks of labelled samples: classes are divided, so that test classes are new ones.

    Args:
        x: inputs ``[N, ...]``, as of `metalearn.data.classification_data`: a tensor, a NumPy array,
            a data frame or lists of numbers; or a torch ``Dataset`` or ``DataLoader``, without
            ``y``. uint8 of three or four axes are pictures, which may be turned and changed.
        y: labels ``[N]``: whole numbers, strings, or one-hot rows.
        splits: ``"train"``, ``"validation"`` and ``"test"``, each to its labels, or to names that
            the ``Dataset`` has for them (its ``classes``); a split may be left out, and labels
            that none names are in no task. None divides the classes.
        validation_fraction: share of the classes for validation, at least two; 0: none; None: 0.2.
        test_fraction: share of the classes for test, at least two; 1: all of them; None: 0.2.
            Beside ``splits`` neither is accepted.
        episodes: settings of `FewShotTasks`: way, shot, query, seed and others.

    Raises:
        SettingError: inputs, labels, splits or sizes that cannot work.
        DataError: too few classes for all splits.
    """
    given = {"validation_fraction": validation_fraction, "test_fraction": test_fraction}
    for name, value in given.items() if splits is not None else ():
        if value is not None:
            raise SettingError(name, value, "splits divide the classes: one of the two is needed")
    shares = {n.removesuffix("_fraction"): _SHARE if v is None else v for n, v in given.items()}
    check_class_fractions(shares["validation"], shares["test"])
    inputs, labels, of_dataset = given_samples(x, y, classes=True)
    found = as_inputs(inputs, tokens=False)
    labelled = without_empty(as_classes(labels, len(found)))
    targets, names = named_by(labelled, of_dataset)
    if splits is None:
        parts = divide_classes(Path("y"), names, [""] * len(names), **shares)
    else:
        parts = _given(splits, labelled.names, names)
    kept: tuple[Tensor, tuple[str, ...], tuple[str, ...], dict[str, tuple[int, ...]]]
    kept = (targets, names, ("",) * len(names), parts)
    if found.dtype == torch.uint8:
        return FewShotTasks(LabelledImages(found, *kept), **episodes)
    return FewShotTasks(LabelledArrays(found, *kept), **episodes)


def _given(
    splits: Mapping[str, Sequence[Any]], labels: Sequence[str], names: Sequence[str]
) -> dict[str, tuple[int, ...]]:
    """Class numbers of the labels that each split names, or of the names of these classes.

    Raises:
        SettingError: a name that is no split, or a label that no sample has.
    """
    of_labels, of_names = ({n: k for k, n in enumerate(several)} for several in (labels, names))
    found = {}
    for split, asked in splits.items():
        if split not in get_args(Split):
            raise SettingError("splits", split, "train, validation and test are needed")
        accepted = f"a list of labels of y is needed, some of {', '.join(names[:8])}"
        if isinstance(asked, str) or not isinstance(asked, Iterable):
            raise SettingError(f"splits[{split!r}]", asked, accepted)
        given: Any = asked.tolist() if hasattr(asked, "tolist") else asked  # arrays and tensors
        numbers, unknown = set[int](), []
        for label in given if isinstance(given, Iterable) else [given]:
            name = _as_name(label)  # a class may be called by the number of another
            known = of_names | of_labels if name != label else of_labels | of_names
            numbers.add(known.get(name, 0))
            unknown += [] if name in known else [name]
        if unknown:
            raise SettingError(f"splits[{split!r}]", unknown, accepted)
        found[split] = tuple(sorted(numbers))
    return found


def _as_name(label: Any) -> str:
    """The name that a label has as a class: 3 also where it is 3.0 or a tensor."""
    value = label.item() if hasattr(label, "item") else label
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
