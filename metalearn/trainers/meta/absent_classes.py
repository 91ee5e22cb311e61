"""Classes that a task lacks where the number of classes varies: no query is one of them.

Axes: N samples, C classes of the largest task.
"""

from __future__ import annotations

import torch
from torch import Tensor

from metalearn.core.targets import is_label
from metalearn.errors import SettingError

__all__ = ["NOTHING", "absent", "among_present", "check_present"]

NOTHING = -1e9
"""The logit of a class that is not there: its probability is 0, and all derivatives are finite."""


def absent(probabilities: Tensor) -> Tensor:
    """Bool ``[C]``: which classes no sample of a support set has, of probabilities ``[N, C]``."""
    return probabilities.detach().sum(0) == 0


def among_present(logits: Tensor, targets: Tensor) -> Tensor:
    """Logits ``[..., C]`` with `NOTHING` for classes that a support set lacks.

    Args:
        logits: of queries.
        targets: of the support set, ``[N]`` or probabilities ``[N, C]``.
    """
    if not is_label(targets):
        return logits.masked_fill(absent(targets), NOTHING)
    every = torch.arange(logits.shape[-1], device=targets.device)
    return logits.masked_fill(~(targets[:, None] == every).any(0), NOTHING)


def check_present(support: Tensor, query: Tensor, classes: int) -> None:
    """Refuse tasks with a class left out, and queries of a class without a support sample.

    Classes that a task lacks are its last ones. Reads the labels.

    Args:
        support: labels ``[T, N]``, −100 of padding.
        query: labels ``[T, Q]``.
        classes: C.

    Raises:
        SettingError: names the set and the class.
    """
    every = torch.arange(classes)
    found = (support[..., None] == every).any(-2)
    count = found.sum(-1, keepdim=True)
    gap, asked = ~found & (every < count), query >= count
    if bool(gap.any()) or bool(asked.any()):
        missing = int(gap.nonzero()[0, -1]) if bool(gap.any()) else int(query[asked][0])
        accepted = "every class of a task needs a support sample, and what it lacks is its last"
        raise SettingError("targets of the support set", f"none of class {missing}", accepted)
