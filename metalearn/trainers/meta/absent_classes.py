"""Classes that a task lacks where the number of classes varies: no query is one of them.

Axes: N samples, C classes of the largest task.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metalearn.core.targets import is_label
from metalearn.core.tracing import is_traced
from metalearn.errors import SettingError

__all__ = ["NOTHING", "AmongPresent", "absent", "among_present", "check_present"]

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


class AmongPresent(nn.Module):
    """A module whose logits ``[N, C]`` are `NOTHING` for classes that are not there.

    Args:
        module: gives the logits.
        missing: bool ``[C]``.
    """

    missing: Tensor

    def __init__(self, module: nn.Module, missing: Tensor) -> None:
        super().__init__()
        self.module = module
        self.register_buffer("missing", missing)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits ``[N, C]`` of inputs ``[N, ...]``."""
        logits: Tensor = self.module(inputs)
        return logits.masked_fill(self.missing, NOTHING)


def check_present(support: Tensor, query: Tensor, classes: int) -> None:
    """Refuse tasks with a class left out, and queries of a class without a support sample.

    Labels that a task lacks are its last ones; of probabilities any class may be lacking. Reads the
    targets, where they can be read.

    Args:
        support: labels ``[T, N]``, −100 of padding, or probabilities ``[T, N, C]``.
        query: labels ``[T, Q]``, or probabilities ``[T, Q, C]``.
        classes: C.

    Raises:
        SettingError: names the set and the class.
    """
    if is_traced():
        return
    found, asked = (_of_some_sample(targets, classes) for targets in (support, query))
    missing = asked & ~found
    if is_label(support):
        missing = missing | (~found & (found.flip(-1).cumsum(-1).flip(-1) > 0))
    if bool(missing.any()):
        accepted = "every class of a task needs a support sample, and what it lacks is its last"
        shown = f"none of class {int(missing.nonzero()[0, -1])}"
        raise SettingError("targets of the support set", shown, accepted)


def _of_some_sample(targets: Tensor, classes: int) -> Tensor:
    """Bool ``[T, C]``: which classes the samples of each task are of, or may be."""
    if not is_label(targets):
        return (targets != 0).any(-2)
    every = torch.arange(classes, device=targets.device)
    return (targets[..., None] == every).any(-2)
