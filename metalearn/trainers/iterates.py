"""Ensembles out of the iterates of one training run: snapshots and SWAG.

Axes: M members, B samples of a batch, K columns of deviations.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from metalearn.core.bayes.swag import SWAGMoments, swag_init, swag_sample, swag_update
from metalearn.core.checks import check_number
from metalearn.core.ensemble.stacking import take_member
from metalearn.core.memory import check_memory
from metalearn.data import ClassificationData
from metalearn.errors import SettingError, check_whole
from metalearn.models import Ensemble, Stack
from metalearn.schema import Kind, like, list_of, mapping
from metalearn.signatures import checked
from metalearn.trainers.ensemble import EnsembleTrainer
from metalearn.trainers.one_network import OneNetworkTrainer

__all__ = ["IterateTrainer", "SWAGTrainer", "SnapshotTrainer"]


class IterateTrainer(OneNetworkTrainer):
    """One run, of which iterates are collected; the subclass says which and makes members of them.

    What counts is the whole run, so the best state is the last one: ``best.pt`` is written at every
    validation with what has been collected by then.
    """

    def __init__(
        self,
        model: Ensemble,
        data: ClassificationData,
        *,
        members: int = 10,
        **settings: Annotated[Any, EnsembleTrainer],
    ) -> None:
        super().__init__(model, data, members=members, **settings)
        if self.settings.patience is not None:
            accepted = "null is needed: members are made of the whole run"
            raise SettingError("patience", self.settings.patience, accepted)
        if self.settings.warmup:
            raise SettingError("warmup", self.settings.warmup, "0 is needed beside this schedule")

    @abstractmethod
    def collect(self, done: int) -> None:
        """Take note of the network after ``done`` steps."""

    def update(self, factor: float) -> None:
        """Take the step, and collect the network after it."""
        super().update(factor)
        self.collect(self.step + 1)

    def judge(self, numbers: Mapping[str, float]) -> bool:
        """Keep the newest state."""
        super().judge(numbers)
        self._keep(torch.ones_like(self.active))
        self.best_step, self.best_value = self.step, numbers[self.monitor]
        self.best_steps.fill_(self.step)
        self.best_values.copy_(self.member_scores())
        return True


class SnapshotTrainer(IterateTrainer):
    """Trains one network in M cycles of the learning rate; where a cycle ends is a member.

    At step t of T, counted from 0, the rate is α/2·(1 + cos(π·(t mod T/M)/(T/M))).

    Args:
        model: an ensemble of one network.
        data: labelled samples in three splits.
        members: M, which divides ``steps``.
        settings: the rest of `EnsembleTrainer`.

    Raises:
        SettingError: a setting out of range, cycles of unequal length, a schedule but cosine.

    Source: Huang et al., "Snapshot Ensembles: Train 1, Get M for Free", ICLR 2017
    (arXiv 1704.00109).
    """

    @checked
    def __init__(
        self,
        model: Ensemble,
        data: ClassificationData,
        *,
        members: int = 10,
        **settings: Annotated[Any, EnsembleTrainer],
    ) -> None:
        super().__init__(model, data, members=members, **settings)
        if self.settings.steps % members:
            accepted = f"a multiple of members={members} is needed: cycles are of equal length"
            raise SettingError("steps", self.settings.steps, accepted)
        if self.settings.schedule != "cosine":
            accepted = "cosine is needed: it is the schedule of each cycle"
            raise SettingError("schedule", self.settings.schedule, accepted)
        self.cycle = self.settings.steps // members
        self.snapshots: list[dict[str, Tensor]] = []

    def rate(self, step: int) -> float:
        """Factor of the learning rate: from 1 towards 0 in every cycle."""
        return 0.5 * (1 + math.cos(math.pi * (step % self.cycle) / self.cycle))

    def collect(self, done: int) -> None:
        """Keep the network at the end of a cycle."""
        if done % self.cycle == 0:
            self.snapshots.append(self.ensemble.member(0).state_dict())

    def predictive(self) -> Ensemble:
        """The snapshots so far.

        Raises:
            SettingError: no cycle has ended.
        """
        _reached("snapshots", len(self.snapshots), 1)
        return Ensemble.from_modules([_with_state(self.ensemble, s) for s in self.snapshots])

    def extra_state(self) -> dict[str, Any]:
        """With the snapshots."""
        return super().extra_state() | {"snapshots": self.snapshots}

    def extra_kinds(self) -> list[Kind]:
        """With as many snapshots as there can be."""
        network = like(self.ensemble.member(0).state_dict())
        snapshots = list_of(network, most=self.members)
        return [*super().extra_kinds(), mapping({"snapshots": snapshots})]

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Take what `extra_state` gave, if cycles were as long then.

        Raises:
            SettingError: another number of cycles than these would have ended.
        """
        found, ended = len(state["snapshots"]), self.step // self.cycle
        if found != ended:
            accepted = (
                f"cycles as long as before are needed: {found} have ended by step {self.step}, and "
                f"of steps/members={self.cycle} it would be {ended}"
            )
            raise SettingError("steps", self.settings.steps, accepted)
        super().load_extra_state(state)
        self.snapshots = list(state["snapshots"])


class SWAGTrainer(IterateTrainer):
    """Trains one network, fits a normal distribution to its last iterates, draws M members of it.

    The rate goes as ``schedule`` says from 1 to ``final_rate`` until the share ``start`` of the
    steps is done, and stays there while iterates are collected. Running statistics of a member are
    computed anew on the training part. See `metalearn.core.bayes.swag`.

    Args:
        model: an ensemble of one network.
        data: labelled samples in three splits.
        members: M, draws.
        start: share of the steps before the first iterate is collected, in [0, 1).
        every: steps between two iterates; None is an epoch.
        rank: K, of the deviations that are kept.
        scale: of the covariance; 0 gives M times the mean (SWA).
        final_rate: factor of the learning rate while iterates are collected, above 0.
        settings: the rest of `EnsembleTrainer`. The paper's optimiser is SGD.

    Raises:
        SettingError: a setting out of range, or fewer than two iterates.

    Source: Maddox et al., "A Simple Baseline for Bayesian Uncertainty in Deep Learning", NeurIPS
    2019 (arXiv 1902.02476).
    """

    @checked
    def __init__(
        self,
        model: Ensemble,
        data: ClassificationData,
        *,
        members: int = 10,
        start: float = 0.75,
        every: int | None = None,
        rank: int = 20,
        scale: float = 1.0,
        final_rate: float = 0.5,
        **settings: Annotated[Any, EnsembleTrainer],
    ) -> None:
        super().__init__(model, data, members=members, **settings)
        check_number("start", start, least=0, below=1)
        check_number("final_rate", final_rate, above=0, accepted="a number above 0 is needed")
        check_number("scale", scale, least=0, accepted="a number of at least 0 is needed")
        check_whole("rank", rank, 1)
        size = sum(p.numel() * p.element_size() for p in self._params().values())
        check_memory("rank", rank, rank * size, self.device)
        if every is not None:
            check_whole("every", every, 1)
        self.every = every or self.batches.batches_per_epoch
        self.first = int(start * self.settings.steps)
        self.scale, self.final_rate = scale, final_rate
        iterates = (self.settings.steps - self.first) // self.every
        if iterates < 2:
            accepted = f"at least two iterates are needed, one every {self.every} steps from"
            raise SettingError("steps", self.settings.steps, f"{accepted} step {self.first} on")
        self.moments: SWAGMoments = swag_init(self._params(), rank=rank)

    def rate(self, step: int) -> float:
        """Factor of the learning rate."""
        if step >= self.first:
            return self.final_rate
        done = step / self.first if self.settings.schedule == "cosine" else 0.0
        return self.final_rate + (1 - self.final_rate) * 0.5 * (1 + math.cos(math.pi * done))

    def collect(self, done: int) -> None:
        """Add every so many steps the parameters to the moments."""
        if done > self.first and (done - self.first) % self.every == 0:
            self.moments = swag_update(self.moments, self._params())

    def predictive(self) -> Ensemble:
        """M draws, always the same ones of the same moments.

        Raises:
            SettingError: fewer than two iterates have been collected.
        """
        _reached("iterates", int(self.moments.iterates), 2)
        generator = torch.Generator().manual_seed(self.seeds[0])
        return Ensemble.from_modules([self._drawn(generator) for _ in range(self.members)])

    def extra_state(self) -> dict[str, Any]:
        """With the moments."""
        return super().extra_state() | {"moments": self.moments._asdict()}

    def extra_kinds(self) -> list[Kind]:
        """With the moments."""
        return [*super().extra_kinds(), mapping({"moments": like(self.moments._asdict())})]

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Take what `extra_state` gave."""
        super().load_extra_state(state)
        self.moments = SWAGMoments(**state["moments"])

    def _params(self) -> dict[str, Tensor]:
        """Of the network, without a member axis."""
        stack = self.ensemble.stacks[0]
        assert isinstance(stack, Stack)
        params: dict[str, Tensor] = take_member(stack.state()[0], 0)
        return {name: value.detach() for name, value in params.items()}

    def _drawn(self, generator: torch.Generator) -> nn.Module:
        """One member; its running statistics are those of the training part under its weights."""
        member = _with_state(
            self.ensemble, swag_sample(self.moments, generator=generator, scale=self.scale)
        )

        def inputs() -> Iterator[Tensor]:
            for step in range(self.batches.batches_per_epoch):
                self._stop.check()
                yield self._batch(step)[0]

        update_bn(inputs(), member, self.device)
        return member


def _with_state(ensemble: Ensemble, state: Mapping[str, Tensor]) -> nn.Module:
    """The one network of an ensemble with other values, where ``state`` has some."""
    module = ensemble.member(0)
    module.load_state_dict(dict(state), strict=False)
    return module


def _reached(what: str, count: int, least: int) -> None:
    if count < least:
        raise SettingError(what, count, f"at least {least} are needed; fit() has not come so far")
