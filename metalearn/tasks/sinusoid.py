"""Regression of sine waves, the toy problem of the MAML paper.

Axes: T tasks, S support points (shots), Q query points.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from metalearn.core.checks import as_device
from metalearn.core.memory import check_memory
from metalearn.errors import SettingError
from metalearn.random_streams import check_split, uniform_of_each
from metalearn.signatures import checked
from metalearn.tasks.by_split import SplitSizes, seeds_by_split, sizes_by_split, tasks_line
from metalearn.tasks.units import NumberedUnits
from metalearn.types import Split, TaskBatch

__all__ = ["SinusoidTasks"]

_AHEAD = 2**14  # points
_FINE = 400


class SinusoidTasks:
    """Sine waves y = A · sin(x − φ) as tasks: a `TaskDistribution`.

    The amplitude A is uniform in [0.1, 5], the phase φ in [0, π], x in [−5, 5].

    Shot and query are numbers or mappings from splits to numbers, as those of `FewShotTasks`.

    Args:
        shot: S, at least 1.
        query: Q, at least 1.
        seed: of the tasks.
        eval_seed: of validation and test tasks; None is ``seed``.

    Raises:
        SettingError: a value out of range.

    Source: Finn, Abbeel and Levine, "Model-Agnostic Meta-Learning", ICML 2017, section 5.1.
    """

    kind: Literal["regression"] = "regression"
    input_shape = (1,)
    outputs = 1
    thread_safe = True

    @checked
    def __init__(
        self,
        *,
        shot: SplitSizes = 5,
        query: SplitSizes = 10,
        seed: int = 0,
        eval_seed: int | None = None,
    ) -> None:
        self._shot = sizes_by_split("shot", shot, 1)
        self._query = sizes_by_split("query", query, 1)
        for name, sizes in (("shot", self._shot), ("query", self._query)):
            largest = max(sizes.values())
            check_memory(name, largest, 8 * 4 * largest)  # of one task, in float64
        self._seeds = seeds_by_split(seed, eval_seed)
        self.shot, self.query, self.seed = shot, query, seed

    __repr__ = tasks_line

    @checked
    def sample(
        self, split: Split, indices: Sequence[int], *, device: torch.device | str = "cpu"
    ) -> TaskBatch:
        """Tasks ``indices`` of a split: inputs and targets ``[T, S or Q, 1]``, float32.

        Raises:
            SettingError: an unknown split, or no index.
        """
        check_split(split)
        device = as_device(device)
        if not len(indices):
            raise SettingError("indices", indices, "at least one task index is needed")
        shot, count = self._shot[split], 2 + self._shot[split] + self._query[split]
        drawn = uniform_of_each(self._seeds[split], split, indices, count)
        x = -5 + 10 * drawn[:, 2:]
        y = _waves(drawn, x)

        def pair(part: slice) -> tuple[Tensor, Tensor]:
            inputs, targets = (torch.from_numpy(a[:, part, None]).float() for a in (x, y))
            return inputs.to(device), targets.to(device)

        return TaskBatch(pair(slice(None, shot)), pair(slice(shot, None)))

    def curve(self, split: Split, index: int) -> tuple[Tensor, Tensor]:
        """A task's wave itself, on a fine grid over its range: x and y, each ``[400, 1]``.

        Raises:
            SettingError: an unknown split.
        """
        check_split(split)
        drawn = uniform_of_each(self._seeds[split], split, [index], 2)
        x = np.linspace(-5, 5, _FINE)[None]
        inputs, targets = (torch.from_numpy(a[0, :, None]).float() for a in (x, _waves(drawn, x)))
        return inputs, targets

    @property
    def tasks_ahead(self) -> int:
        """How many training tasks are drawn at once with gain."""
        return max(1, _AHEAD // (self._shot["train"] + self._query["train"]))

    @checked
    def training_units(self, users: int | None = None) -> NumberedUnits:
        """Users with one training task each, as units of a private training.

        Raises:
            SettingError: no number of users.
        """
        return NumberedUnits(self, users)


def _waves(drawn: np.ndarray, x: np.ndarray) -> np.ndarray:
    """``[T, N]``, of tasks whose first two numbers are their amplitude and their phase."""
    amplitude, phase = 0.1 + 4.9 * drawn[:, :1], np.pi * drawn[:, 1:2]
    return np.asarray(amplitude * np.sin(x - phase))
