"""The loss of outputs on a task's targets, and whether targets fit.

Axes: T tasks, N samples, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.core.checks import check_pair, module_takes
from metalearn.core.targets import IGNORED, check_form, check_values, is_label
from metalearn.core.tree import check_tensors, tree_map
from metalearn.errors import SettingError
from metalearn.types import TaskBatch

__all__ = ["Criterion", "Kind"]

Kind = Literal["classification", "regression"]


class Criterion:
    """Cross-entropy (without padding, −100), or mean squared error.

    Args:
        kind: ``"classification"`` or ``"regression"``.
        classes: from a batch of inputs to C.
    """

    def __init__(self, kind: Kind, classes: Callable[[TaskBatch, Any], int]) -> None:
        if kind not in ("classification", "regression"):
            raise SettingError("kind", kind, "classification or regression is needed")
        self.kind, self._count = kind, classes
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

    def of_sample(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Loss of a batch of one sample; 0 for padding, of which there is no mean."""
        if self.kind == "regression" or not is_label(targets):
            return self(outputs, targets)
        check_form(True, outputs.shape, targets)
        return F.cross_entropy(outputs, targets, ignore_index=IGNORED, reduction="sum")

    def check(self, tasks: TaskBatch, *, fixed: bool) -> None:
        """Refuse class targets that are out of range, and sets of padding alone.

        Labels on another device than the CPU are read once, at the first call: the device is not
        waited for in every step. Shapes and types are looked at with every loss.

        Args:
            tasks: T.
            fixed: whether C is that of the first tasks for all.

        Raises:
            SettingError: names the support or query set.
        """
        for name, batch in zip(("support", "query"), check_pair(tasks, "tasks", "support, query")):
            inputs, targets = check_pair(batch, name)
            check_tensors(targets, f"{name} targets")
            if self.kind == "regression" or not targets.numel():
                continue
            if self._classes is None or not fixed:
                with torch.no_grad(), module_takes(f"{name} inputs", inputs):
                    self._classes = self._count(tasks, tree_map(lambda x: x[0], inputs))
            check_form(True, (len(targets[0]), self._classes), targets[0])
            if targets.device.type == "cpu" or name not in self._read:
                check_values(targets, self._classes, f"targets of the {name} set")
                self._read.add(name)
