"""Members divided among ranks: each trains its own, and they are joined where all are looked at.

Axes: M members, R ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from metalearn.models import Ensemble
from metalearn.ranks import Ranks, refuse_division
from metalearn.trainers.loop.gradient import step_gradient
from metalearn.trainers.loop.protocols import Divisible, Objective, Training
from metalearn.trainers.loop.reduction import reduced
from metalearn.trainers.loop.step import StepGradient, finish
from metalearn.trainers.members.rows import StackedMembers
from metalearn.trainers.members.trained import trained_parameters

__all__ = ["SharedMembers", "divided", "mean_gradient", "prepare"]


class Divided(Training, Protocol):
    """A training that knows whether ranks divide its members."""

    shared: SharedMembers | None


class SharedMembers:
    """Rows of members, of which this rank trains its own.

    Between two meetings the other rows of parameters, buffers, the optimiser's state and the
    population stand as they were, or drift; a meeting takes each from the rank that it belongs to.

    Args:
        loop: of an `Ensemble`.
    """

    def __init__(self, loop: Training) -> None:
        assert isinstance(loop.module, Ensemble)
        self._loop, self._ranks = loop, loop.ranks
        count = len(loop.module)
        start, stop = loop.ranks.share.bounds(count)
        members = torch.arange(count)
        self.own = (members >= start) & (members < stop)
        self.met = True
        """Whether all rows are those of now."""

    def part(self) -> None:
        """From here to the next meeting this rank knows of its own members alone."""
        self.met, self._loop.population.own = False, self.own

    def meet(self) -> None:
        """Take every row from its rank, unless that has been done since the last step."""
        if self.met:
            return
        self.met = True
        loop = self._loop
        loop.population.own = torch.ones_like(self.own)
        state = loop.update.optimizer.state
        values: dict[str, Tensor] = dict(loop.module.named_buffers())
        for name, parameter in trained_parameters(loop.module, loop.beside).items():
            values[name] = parameter.data
            for key, value in state.get(parameter, {}).items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    values[f"{name}/{key}"] = value
        beside = [callback.member_rows() for callback in loop.callbacks]
        for rows in (values, *beside):
            for name, joined in self._joined(rows):
                rows[name].copy_(joined)
        self._meet_population()

    def whole(self, gradient: StepGradient) -> StepGradient:
        """The gradient of a step, with the rows of all ranks; the population knows of them."""
        self.meet()
        losses = self._rows(gradient.losses, torch.arange(len(self.own)))
        return replace(gradient, losses=losses, grads=dict(self._joined(gradient.grads)))

    def _joined(self, values: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """By name, values of stacks ``[m, ...]`` with each row from its rank."""
        rows = cast(StackedMembers, self._loop.population.rows)
        for names, members in rows.groups(values):
            kinds = {values[name].dtype for name in names}
            for kind in sorted(kinds, key=str):  # the same order on every rank
                alike = [name for name in names if values[name].dtype == kind]
                parts = [values[name].reshape(len(members), -1) for name in alike]
                found = self._rows(torch.cat(parts, 1), members)
                split = torch.split(found, [part.shape[1] for part in parts], 1)
                for name, part in zip(alike, split):
                    yield name, part.view(values[name].shape)

    def _rows(self, values: Tensor, members: Tensor) -> Tensor:
        """Rows of these members, each from its rank."""
        share, count = self._ranks.share, len(self.own)
        sizes = []
        for rank in range(share.count):
            start, stop = share.bounds(count, rank)
            sizes.append(int(((members >= start) & (members < stop)).sum()))
        return self._ranks.joined(values[self.own[members].to(values.device)], sizes)

    def _meet_population(self) -> None:
        """What happened to each member is known to the rank that trains it."""
        population = self._loop.population
        every = torch.arange(len(self.own))
        for name in ("active", "diverged", "norms"):
            setattr(population, name, self._rows(getattr(population, name), every))
        mine = {str(i): why for i, why in population.endings.items() if self.own[i]}
        for endings in self._ranks.of_each(mine):
            population.endings |= {int(index): why for index, why in endings.items()}


def mean_gradient(loop: Divided, step: int, *, looked_at: bool) -> tuple[Any, StepGradient]:
    """The last batch of a step, and the mean over its batches, of all ranks.

    Where members are divided it is of this rank's, unless somebody looks at it.
    """
    shared = loop.shared
    if shared is None:
        batch, gradient = step_gradient(loop, step)
        return batch, finish(reduced(gradient, loop.ranks))
    looked_at |= any(callback.looks_at(step) for callback in loop.callbacks)
    if looked_at:
        shared.meet()  # so that all know of which stacks there are gradients
    shared.part()
    batch, gradient = step_gradient(loop, step)
    alone, every = int(shared.own.sum()), len(shared.own)
    processed = gradient.count if gradient.processed is None else gradient.processed
    gradient = finish(replace(gradient, processed=processed * every // alone))  # as of all ranks
    if looked_at:
        gradient = shared.whole(gradient)
    return batch, gradient


def divided(loop: Training) -> SharedMembers | None:
    """Divide a training among its ranks; what keeps the rows of members, where these are divided.

    Raises:
        SettingError: an objective that cannot be divided among so many.
    """
    if loop.ranks.count == 1:
        return None
    loop.stop.shared_by(loop.ranks)
    if not hasattr(loop.objective, "divide"):
        refuse_division("this training", loop.ranks.share)
    objective = cast(Divisible, loop.objective)
    objective.divide(loop.ranks.share)
    return SharedMembers(loop) if objective.divides_members else None


def prepare(objective: Objective, ranks: Ranks) -> None:
    """Decide what is decided once: of several ranks the first does, by its part, for all."""
    if ranks.rank == 0:
        objective.prepare()
    if ranks.count > 1:
        state = ranks.agreed(objective.state() if ranks.rank == 0 else None)
        if ranks.rank:
            objective.load_state(state)
            objective.prepare()
