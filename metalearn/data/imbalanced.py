"""Classes that are made rare, so that what copes with imbalance can be held against it.

Axes: C classes.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from metalearn.core.checks import check_number
from metalearn.data.classification import ClassificationData
from metalearn.data.mislabelled import MislabelledData
from metalearn.errors import SettingError
from metalearn.random_streams import AddressedStream, check_seed
from metalearn.signatures import checked

__all__ = ["imbalanced"]

_FIRST = 2  # of the streams of labels; those before are of wrong ones


@checked
def imbalanced(data: ClassificationData, *, ratio: float, seed: int = 0) -> ClassificationData:
    """The same data with a long-tailed training part: class 0 is the largest, C − 1 the smallest.

    Class c keeps n_c = round(n_0 · ratio^(−c/(C − 1))) of its training examples, n_0 as large as
    the classes allow, so that n_0 / n_{C−1} is the ratio, up to rounding. Which of them stay
    belongs to the seed, and what is left at a higher ratio is left at a lower one too where n_0 is
    the same. Validation and test stay as they are.

    Args:
        data: whose labels have not been changed: wrong ones are planted after this.
        ratio: the number of examples of the largest class over that of the smallest, above 1.
        seed: of the draws.

    Raises:
        SettingError: a ratio of which the smallest class would have no example left, data with
            planted wrong labels, a class without training examples.

    Source: Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019.
    """
    check_number("ratio", ratio, above=1)
    check_seed(seed)
    if isinstance(data, MislabelledData):
        accepted = "data whose labels have not been changed are needed; make them wrong after this"
        raise SettingError("data", type(data).__name__, accepted)
    rows = data.splits["train"]
    targets = data.targets[rows]
    kept = []
    for label, count in enumerate(_sizes(targets, data.class_names, float(ratio))):
        own = rows[targets == label]
        order = AddressedStream(seed, "labels", _FIRST + label).permutation(len(own))
        kept.append(own[torch.from_numpy(order[:count])])
    return replace(data, splits={**data.splits, "train": torch.cat(kept).sort().values})


def _sizes(targets: Tensor, names: tuple[str, ...], ratio: float) -> list[int]:
    """``[C]``, how many examples each class keeps."""
    classes = len(names)
    counts = torch.bincount(targets, minlength=classes).tolist()
    if not min(counts):
        accepted = f"training examples of every class are needed, as of {names[counts.index(0)]}"
        raise SettingError("data", counts, accepted)
    shares = [ratio ** (-label / (classes - 1)) for label in range(classes)]
    largest = min(math.floor(n / share + 1e-9) for n, share in zip(counts, shares))
    if largest < ratio:
        accepted = f"at most {largest} is accepted, the examples that the largest class can have"
        raise SettingError("ratio", ratio, accepted)
    return [round(largest * share) for share in shares]
