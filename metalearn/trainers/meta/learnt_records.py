"""What records and TensorBoard show of what is learnt beside the weights.

Axes: M members, K inner steps.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from metalearn.trainers.meta.learnt import LearntValues

__all__ = ["learnt_bands", "learnt_curves", "learnt_numbers"]


class LearnsBeside(Protocol):
    """What records ask of a learner's network."""

    learnt: LearntValues | None

    @property
    def count(self) -> int | None:
        """M; None for a single network."""


def learnt_numbers(network: LearnsBeside) -> dict[str, float]:
    """For the record: ``learnt/<hyperparameter>``, with the extremes where it has several values.

    Of one network they are the mean and the extremes over parameters and inner steps; of members
    the median and the extremes of the members' means.
    """
    if network.learnt is None:
        return {}
    count = network.count
    parts: dict[str, list[Tensor]] = {}
    for name, value in network.learnt.named_parameters():
        rows = value.detach().cpu().double().reshape(count or 1, -1)
        parts.setdefault(name.partition(".")[0], []).append(rows)
    found = {}
    for name, several in parts.items():
        values = torch.cat(several, 1)
        spread = values[0] if count is None else values.mean(1)
        found[f"learnt/{name}"] = float(spread.mean() if count is None else spread.median())
        if count is not None or len(spread) > 1:
            found[f"learnt/{name}_low"] = float(spread.min())
            found[f"learnt/{name}_high"] = float(spread.max())
    return found


def learnt_bands(network: LearnsBeside) -> dict[str, list[str]]:
    """Which of the `learnt_numbers` have extremes, under a title."""
    numbers = learnt_numbers(network)
    names = [name for name in numbers if f"{name}_low" in numbers]
    return {"learnt beside the weights: middle and extremes": names} if names else {}


def learnt_curves(network: LearnsBeside) -> dict[str, dict[str, float]]:
    """Step sizes that are several, for charts: by inner step, and by parameter.

    They are means over the rest, members and elements among it.
    """
    every = () if network.learnt is None else network.learnt.named_parameters()
    rates = {n: v.detach().cpu().double() for n, v in every if n.partition(".")[0] == "lr"}
    found: dict[str, dict[str, float]] = {}
    if rates and network.learnt is not None and network.learnt.by_step:
        axis = 0 if network.count is None else 1
        by_step = [v.movedim(axis, 0).reshape(v.shape[axis], -1) for v in rates.values()]
        means = torch.cat(by_step, 1).mean(1).tolist()
        found["learnt_lr_by_step"] = {f"step_{k}": mean for k, mean in enumerate(means)}
    if "lr" not in rates and rates:
        each = {n.removeprefix("lr."): float(v.mean()) for n, v in rates.items()}
        found["learnt_lr_by_parameter"] = each
    return found
