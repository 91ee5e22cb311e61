"""The loss of outputs on a task's targets, and whether targets fit.

Axes: T tasks, N samples, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.core._functorch import is_functorch_wrapped_tensor
from metalearn.core.checks import check_pair, module_takes
from metalearn.core.targets import IGNORED, check_form, check_values, is_label
from metalearn.core.tree import check_tensors, tree_map
from metalearn.errors import SettingError
from metalearn.trainers.meta.absent_classes import check_present
from metalearn.types import TaskBatch

__all__ = ["Criterion", "Kind", "way_of"]

Kind = Literal["classification", "regression"]


class Criterion:
    """Cross-entropy (without padding, −100), or mean squared error.

    Args:
        kind: ``"classification"`` or ``"regression"``.
        logits: from inputs to outputs ``[N, C]``, with one C for all tasks; None where each batch
            of tasks has its own.
    """

    def __init__(self, kind: Kind, logits: Callable[[Any], Tensor] | None) -> None:
        if kind not in ("classification", "regression"):
            raise SettingError("kind", kind, "classification or regression is needed")
        self.kind, self._logits = kind, logits
        self._classes: int | None = None
        self._read: set[str] = set()

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean loss, a scalar.

        Raises:
            SettingError: targets that do not fit the outputs.
        """
        check_form(self.kind == "classification", outputs.shape, targets)
        if self.kind == "classification":
            return F.cross_entropy(outputs, targets, ignore_index=IGNORED)
        return F.mse_loss(outputs, targets)

    @property
    def classes(self) -> int | None:
        """C of the tasks that were checked last; None before, and of regression."""
        return self._classes

    def classes_of(self, targets: Tensor) -> int:
        """C of one task's targets, at least that of the tasks that were checked last.

        Inside transforms it is that.

        Raises:
            SettingError: labels that cannot be read, before any tasks were checked.
        """
        if not is_label(targets):
            return targets.shape[-1]
        readable = targets.device.type == "cpu" and not is_functorch_wrapped_tensor(targets)
        if self._logits is None and readable:
            return max(int(targets.max()) + 1, self._classes or 0)
        if self._classes is None:
            raise SettingError("tasks", "unknown", "check(tasks) is needed before a transform")
        return self._classes

    def of_sample(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Loss of a batch of one sample; 0 for padding, of which there is no mean."""
        if self.kind == "regression" or not is_label(targets):
            return self(outputs, targets)
        check_form(True, outputs.shape, targets)
        return F.cross_entropy(outputs, targets, ignore_index=IGNORED, reduction="sum")

    def of_samples(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Losses ``[N]`` of samples, 0 for padding; their mean without padding is the loss."""
        check_form(self.kind == "classification", outputs.shape, targets)
        if self.kind == "classification":
            return F.cross_entropy(outputs, targets, ignore_index=IGNORED, reduction="none")
        return F.mse_loss(outputs, targets, reduction="none").reshape(len(targets), -1).mean(1)

    def check(self, tasks: TaskBatch) -> None:
        """Refuse class targets that are out of range, and sets of padding alone.

        Labels on another device than the CPU are read once, at the first call: the device is not
        waited for in every step. Shapes and types are looked at with every loss.

        Args:
            tasks: T.

        Raises:
            SettingError: names the support or query set.
        """
        for name, batch in zip(("support", "query"), check_pair(tasks, "tasks", "support, query")):
            inputs, targets = check_pair(batch, name)
            check_tensors(targets, f"{name} targets")
            if self.kind == "regression" or not targets.numel():
                continue
            if self._logits is None:
                self._classes = way_of(tasks)
            elif self._classes is None:
                with torch.no_grad(), module_takes(f"{name} inputs", inputs):
                    outputs = self._logits(tree_map(lambda x: x[0], inputs))
                    self._classes = int(outputs.shape[-1])
            check_form(True, (len(targets[0]), self._classes), targets[0])
            if targets.device.type == "cpu" or name not in self._read:
                check_values(targets, self._classes, f"targets of the {name} set")
                if self._logits is None and name == "query":
                    check_present(tasks.support[1], targets, self._classes)
                self._read.add(name)


def way_of(tasks: TaskBatch) -> int:
    """C of the largest of tasks: by their class ids, where these are known, else by labels."""
    targets = tasks.support[1]
    if not is_label(targets):
        return int(targets.shape[-1])
    ids = getattr(tasks, "class_ids", None)
    return int(ids.shape[-1]) if ids is not None else int(targets.max()) + 1
