"""What a step of an ensemble descends: every member's loss on its own batch.

Axes: M members, B samples of a batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from metalearn.core.ensemble.stacking import MemberEngine
from metalearn.models import Ensemble, Stack
from metalearn.ranks import Share, check_enough
from metalearn.schema import Kind
from metalearn.trainers.loop.pure_calls import PureCalls, as_it_is
from metalearn.trainers.loop.step import StepGradient
from metalearn.trainers.loop.stop_signal import StopSignal
from metalearn.trainers.members.population import Population
from metalearn.trainers.members.settings import set_dropout
from metalearn.trainers.supervised.batches import (
    LabelledBatch,
    TrainingBatches,
    check_parts,
    have_member_axis,
    samples_of_rank,
)
from metalearn.trainers.supervised.member_gradients import (
    Criterion,
    smoothed_cross_entropy,
    supervised_gradients,
    unused_by_stacks,
)
from metalearn.trainers.supervised.member_planner import MemberPlanner
from metalearn.trainers.supervised.member_weights import same_weights
from metalearn.types import Params

__all__ = ["EnsembleObjective"]


class EnsembleObjective:
    """Losses and gradients of the members that are trained, each on its batch.

    Args:
        ensemble: whose parameters are trained.
        population: says which members are still trained.
        batches: what members see at each step.
        planner: of engine and chunks.
        smoothing: ``[M]``, of labels.
        seeds: of each member's dropout.
        dropout: rate of each member's `Dropout` layers; None leaves them.
        stop: ends trials that a signal breaks off.
        criterion: loss of one member's outputs; see `Criterion`.
    """

    unit = "samples"

    def __init__(
        self,
        ensemble: Ensemble,
        population: Population,
        batches: TrainingBatches,
        planner: MemberPlanner,
        *,
        smoothing: Tensor,
        seeds: Sequence[int],
        dropout: Sequence[float] | None = None,
        stop: StopSignal,
        criterion: Criterion = smoothed_cross_entropy,
    ) -> None:
        self.ensemble, self.population = ensemble, population
        self.batches, self.planner, self.smoothing = batches, planner, smoothing
        self.criterion, self._stop = criterion, stop
        self.pure: PureCalls = as_it_is
        self._seeds, self._dropout, self._share = seeds, dropout, Share()
        set_dropout(ensemble, seeds, dropout)

    def prepare(self) -> None:
        """Decide how gradients are taken, by trials that leave running statistics as they are."""
        if self.planner.plan is None:
            kept = {name: buffer.clone() for name, buffer in self.ensemble.named_buffers()}
            try:
                members = len(self.ensemble)
                if self.divides_members:
                    members = len(self._share.of(range(members)))
                with self.part(self.batch(0)) as batch:
                    self.planner.decide(partial(self._attempt, batch), members)
            finally:
                for name, buffer in self.ensemble.named_buffers():
                    buffer.copy_(kept[name])
        self.planner.say()

    def batch(self, step: int) -> LabelledBatch:
        """See `LabelledBatch`."""
        return self.batches(step)

    @property
    def divides_members(self) -> bool:
        """Of several networks; of one, ranks divide the samples."""
        return len(self.ensemble) > 1

    def divide(self, share: Share) -> None:
        """Each rank trains some of the members, or takes some of the samples of the one network.

        Raises:
            SettingError: there are fewer than ranks, or samples cannot be divided.
        """
        if self.divides_members:
            check_enough("members", len(self.ensemble), share)
        else:
            check_enough("batch_size", self.batches.batch_size, share)
            check_parts(self.ensemble.train(), share)
        self._share = share

    def part(self, batch: LabelledBatch) -> AbstractContextManager[LabelledBatch]:
        """The samples of this rank; all of them where members are divided."""
        if self.divides_members:
            return nullcontext(batch)
        axis = 1 if have_member_axis(batch[1]) else 0
        return samples_of_rank(batch, self._share, (axis, axis, 1))

    def gradient(self, params: Params, batch: LabelledBatch, *, step: int) -> StepGradient:
        """Every active member's mean loss and gradient; buffers are written on the way."""
        plan = self.planner.plan
        assert plan is not None
        active = self.population.active & self.population.own
        losses, grads = self._gradients(batch, active, plan.engine, plan.chunk_size)
        grads |= self._of_others(params, grads)
        count = batch[1].shape[1 if have_member_axis(batch[1]) else 0]
        processed = int(active.sum()) * count
        return StepGradient(
            grads, losses, count, count, processed=processed, suspects=lambda: "their batches"
        )

    def unused_parameters(self) -> list[str]:
        """Those of the loss of the first batch, of the first member of each stack."""
        self.ensemble.train()
        return unused_by_stacks(self.ensemble, self.batch(0), self.smoothing, self.criterion)

    def records(
        self, batch: LabelledBatch, gradient: StepGradient, *, step: int
    ) -> Mapping[str, float]:
        """Spread of the members' losses and gradient norms."""
        active = self.population.active
        numbers = {"train/members_active": float(active.sum())}
        if not active.any():
            return numbers
        for name, values in (
            ("member_loss", gradient.losses.cpu()),
            ("member_gradient_norm", self.population.norms),
        ):
            kept = values[active]
            numbers[f"train/{name}"] = float(kept.median())
            numbers[f"train/{name}_low"] = float(kept.min())
            numbers[f"train/{name}_high"] = float(kept.max())
        return numbers

    def state(self) -> dict[str, Any]:
        """How gradients are taken, and the checksum of the examples' weights if there are some."""
        weights = self.batches.weights
        own = {} if weights is None else {"member_weights": weights.checksum}
        return self.planner.state() | own

    def state_kinds(self) -> list[Kind]:
        """As of the planner, and the same weights."""
        return [*self.planner.state_kinds(), same_weights(self.batches.weights)]

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take the plan; rates and seeds of dropout are those of now."""
        set_dropout(self.ensemble, self._seeds, self._dropout)
        self.planner.load_state(state)

    def _of_others(self, params: Params, grads: Params) -> dict[str, Tensor]:
        """Zeros of stacks of which other ranks train all rows: an optimiser steps all alike."""
        if self.population.own.all():
            return {}
        left = [
            f"stacks.{number}."
            for number, stack in enumerate(self.ensemble.stacks)
            if isinstance(stack, Stack) and self.population.active[list(stack.indices)].any()
        ]
        names = [n for n in params if n not in grads and n.startswith(tuple(left))]
        return {name: torch.zeros_like(params[name]) for name in names}

    def _attempt(self, batch: LabelledBatch, engine: MemberEngine, members: int) -> object:
        """Gradients of the first so many members."""
        self._stop.check()
        chosen = torch.arange(len(self.ensemble)) < members
        return self._gradients(batch, chosen, engine, None)

    def _gradients(
        self, batch: LabelledBatch, chosen: Tensor, engine: MemberEngine, chunk: int | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        self.ensemble.train()
        return supervised_gradients(
            self.ensemble,
            batch,
            chosen=chosen,
            smoothing=self.smoothing,
            engine=engine,
            chunk_size=chunk,
            criterion=self.criterion,
            pure=self.pure,
        )
