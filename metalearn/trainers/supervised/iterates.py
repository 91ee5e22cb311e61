"""Ensembles out of the iterates of one training run: snapshots and SWAG.

What counts is the whole run, so the best state is the last one: ``best.pt`` is written at every
validation with what has been collected by then.

Axes: M members, B samples of a batch, K columns of deviations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from typing_extensions import Unpack

from metalearn.core.bayes.swag import SWAGMoments, swag_sample
from metalearn.core.checks import check_number
from metalearn.data.regression import SupervisedData
from metalearn.errors import SettingError, check_whole
from metalearn.models import Ensemble
from metalearn.signatures import checked
from metalearn.trainers.loop.schedules import cosine, linear
from metalearn.trainers.loop.settings import LoopSettings
from metalearn.trainers.supervised import ensemble_methods as methods
from metalearn.trainers.supervised.collectors import SnapshotCollector, SWAGCollector
from metalearn.trainers.supervised.ensemble_evaluation import Validation
from metalearn.trainers.supervised.ensemble_options import EnsembleOptions
from metalearn.trainers.supervised.ensemble_training import EnsembleTraining
from metalearn.trainers.supervised.one_network import check_one_network, settings_of_each
from metalearn.trainers.trainer import Trainer

__all__ = ["SWAGTrainer", "SnapshotTrainer"]


class SnapshotTrainer(Trainer):
    """Trains one network in M cycles of the learning rate; where a cycle ends is a member.

    At step t of T, counted from 0, the rate is α/2·(1 + cos(π·(t mod T/M)/(T/M))); with a
    ``schedule_end`` above 0 each cycle falls towards that share of α.

    Args:
        model: an ensemble of one network.
        data: samples in three splits, with classes or real targets.
        members: M, which divides ``steps``.
        settings: the rest of `EnsembleTrainer`.

    Raises:
        SettingError: a setting out of range, cycles of unequal length, a schedule but cosine.

    Source: Huang et al., "Snapshot Ensembles: Train 1, Get M for Free", ICLR 2017
    (arXiv 1704.00109).
    """

    networks: ClassVar[int | None] = 1
    makes_module: ClassVar[tuple[str, ...]] = ("loss",)

    @checked
    def __init__(
        self,
        model: Ensemble,
        data: SupervisedData,
        *,
        members: int = 10,
        **settings: Unpack[EnsembleOptions],
    ) -> None:
        check_one_network(model, members, settings)
        self.training = EnsembleTraining(model, data, Validation(kept="newest"), **settings)
        self.ensemble, self.data, self.seeds = model, data, self.training.seeds
        self.members, limits = members, self.training.settings
        _check_whole_run(limits)
        if limits.steps % members:
            accepted = f"a multiple of members={members} is needed: cycles are of equal length"
            raise SettingError("steps", limits.steps, accepted)
        if limits.schedule != "cosine":
            accepted = "cosine is needed: it is the schedule of each cycle"
            raise SettingError("schedule", limits.schedule, accepted)
        self.collector = SnapshotCollector(model, limits.steps, members)
        cycle = self.cycle = self.collector.cycle

        def schedule(step: int) -> float:
            return cosine(step % cycle / cycle, limits.schedule_end)

        super().__init__(self.training.loop(schedule=schedule, callbacks=[self.collector]))

    @property
    def snapshots(self) -> list[dict[str, Tensor]]:
        """States of the network at the ends of cycles so far."""
        return self.collector.snapshots

    def predictive(self) -> Ensemble:
        """The snapshots so far.

        Raises:
            SettingError: no cycle has ended.
        """
        _reached("snapshots", len(self.snapshots), 1)
        return Ensemble.from_modules([_with_state(self.ensemble, s) for s in self.snapshots])

    def member_settings(self) -> list[dict[str, float]]:
        """The settings of the one network for each member, and the number of the member."""
        return settings_of_each(self.training, self.members)

    plan, predict, test = methods.plan, methods.predict, methods.score
    reports, diagnosis_sources = methods.reports, methods.diagnosis_sources


class SWAGTrainer(Trainer):
    """Trains one network, fits a normal distribution to its last iterates, draws M members of it.

    The rate goes as ``schedule`` (cosine, linear or constant) says from 1 to ``final_rate`` until
    the share ``start`` of the steps is done, and stays there while iterates are collected. Running
    statistics of a member are computed anew on the training part. See `metalearn.core.bayes.swag`.

    Args:
        model: an ensemble of one network.
        data: samples in three splits, with classes or real targets.
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

    networks: ClassVar[int | None] = 1
    makes_module: ClassVar[tuple[str, ...]] = ("loss",)

    @checked
    def __init__(
        self,
        model: Ensemble,
        data: SupervisedData,
        *,
        members: int = 10,
        start: float = 0.75,
        every: int | None = None,
        rank: int = 20,
        scale: float = 1.0,
        final_rate: float = 0.5,
        **settings: Unpack[EnsembleOptions],
    ) -> None:
        check_one_network(model, members, settings)
        self.training = EnsembleTraining(model, data, Validation(kept="newest"), **settings)
        self.ensemble, self.data, self.seeds = model, data, self.training.seeds
        self.members, self.scale = members, scale
        _check_falling(self.training.settings)
        check_number("start", start, least=0, below=1)
        check_number("final_rate", final_rate, above=0, accepted="a number above 0 is needed")
        check_number("scale", scale, least=0, accepted="a number of at least 0 is needed")
        check_whole("rank", rank, 1)
        if every is not None:
            check_whole("every", every, 1)
        limits = self.training.settings
        every = every or -(-self.training.batches.order.batches_per_epoch // limits.accumulate)
        first = int(start * limits.steps)
        if (limits.steps - first) // every < 2:
            accepted = f"at least two iterates are needed, one every {every} steps from"
            raise SettingError("steps", limits.steps, f"{accepted} step {first} on")
        self.collector = SWAGCollector(model, rank=rank, first=first, every=every)

        shape = _SHAPES[limits.schedule]

        def schedule(step: int) -> float:
            return final_rate if step >= first else shape(step / first, final_rate)

        super().__init__(self.training.loop(schedule=schedule, callbacks=[self.collector]))

    @property
    def moments(self) -> SWAGMoments:
        """Of the iterates so far."""
        return self.collector.moments

    def predictive(self) -> Ensemble:
        """M draws, always the same ones of the same moments.

        Raises:
            SettingError: fewer than two iterates have been collected.
        """
        _reached("iterates", int(self.moments.iterates), 2)
        generator = torch.Generator().manual_seed(self.seeds[0])
        return Ensemble.from_modules([self._drawn(generator) for _ in range(self.members)])

    def member_settings(self) -> list[dict[str, float]]:
        """The settings of the one network for each member, and the number of the member."""
        return settings_of_each(self.training, self.members)

    plan, predict, test = methods.plan, methods.predict, methods.score
    reports, diagnosis_sources = methods.reports, methods.diagnosis_sources

    def _drawn(self, generator: torch.Generator) -> nn.Module:
        """One member; its running statistics are those of the training part under its weights."""
        drawn = swag_sample(self.moments, generator=generator, scale=self.scale)
        member, batches = _with_state(self.ensemble, drawn), self.training.batches

        def inputs() -> Iterator[Tensor]:
            for step in range(batches.order.batches_per_epoch):
                self.loop.stop.check()
                yield batches(step)[0]

        update_bn(inputs(), member, self.device)
        return member


_SHAPES: Mapping[str, Callable[[float, float], float]] = {
    "cosine": cosine,
    "linear": linear,
    "constant": lambda done, end: 1.0,
}
"""By schedule, the factor of the rate before iterates are collected."""


def _check_falling(settings: LoopSettings) -> None:
    """Refuse schedules that do not end in a rate at which iterates are collected."""
    _check_whole_run(settings)
    if settings.schedule not in _SHAPES:
        accepted = f"one of {', '.join(_SHAPES)} is needed: it ends in final_rate"
        raise SettingError("schedule", settings.schedule, accepted)
    if settings.schedule_end:
        accepted = "0 is needed: final_rate is the end of this schedule"
        raise SettingError("schedule_end", settings.schedule_end, accepted)


def _check_whole_run(settings: LoopSettings) -> None:
    """Refuse what does not go with members that are made of the whole run."""
    if settings.patience is not None:
        accepted = "null is needed: members are made of the whole run"
        raise SettingError("patience", settings.patience, accepted)
    if settings.average is not None:
        accepted = "null is needed: members are made of the iterates themselves"
        raise SettingError("average", settings.average, accepted)
    if settings.warmup:
        raise SettingError("warmup", settings.warmup, "0 is needed beside this schedule")


def _with_state(ensemble: Ensemble, state: Mapping[str, Tensor]) -> nn.Module:
    """The one network of an ensemble with other values, where ``state`` has some."""
    module = ensemble.member(0)
    module.load_state_dict(dict(state), strict=False)
    return module


def _reached(what: str, count: int, least: int) -> None:
    if count < least:
        raise SettingError(what, count, f"at least {least} are needed; fit() has not come so far")
