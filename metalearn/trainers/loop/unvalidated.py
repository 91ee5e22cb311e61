"""What stands in the place of validation where there is none.

Axes: M members, or 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from metalearn.trainers.loop.protocols import Evaluation, Stateless

__all__ = ["Unvalidated"]


class Unvalidated(Stateless):
    """The later the better: what was trained longest is the best state.

    Its score is the number of steps that were taken.

    Args:
        members: M.
        bands: see `metalearn.trainers.loop.protocols.Evaluator`.
    """

    monitor = "validation/step"
    larger_is_better = True

    def __init__(self, members: int, bands: Mapping[str, Sequence[str]] | None = None) -> None:
        self.members, self.bands = members, bands or {}

    def __call__(self, step: int) -> Evaluation:
        """The step, for every member."""
        return Evaluation({self.monitor: float(step)}, torch.full((self.members,), float(step)))
