"""Meta-training under differential privacy at the level of tasks, with an account of its cost.

Axes: N units, whose tasks are private; B of a step as expected.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from typing_extensions import Unpack

from metalearn.core.checks import as_device, check_number
from metalearn.core.samples.clipping_groups import Clipping, ParameterGroups
from metalearn.core.samples.clipping_rule import clipping_rule
from metalearn.errors import SettingError, check_whole
from metalearn.random_streams import check_seed
from metalearn.ranks import OneRank, Ranks
from metalearn.signatures import checked
from metalearn.tasks import outputs_by_split
from metalearn.tasks.units import training_units_of
from metalearn.tracking import TrackerChoice
from metalearn.trainers.loop.assembly import assemble, place
from metalearn.trainers.loop.outer_optimizer import OptimizerFactory
from metalearn.trainers.loop.protocols import Evaluator
from metalearn.trainers.loop.stop_signal import StopSignal
from metalearn.trainers.loop.unvalidated import Unvalidated
from metalearn.trainers.meta import task_methods as methods
from metalearn.trainers.meta.evaluator import MetaEvaluator, SelectBy
from metalearn.trainers.meta.fitting import check_fit
from metalearn.trainers.meta.making import made_learner
from metalearn.trainers.meta.private_checks import check_private_learner
from metalearn.trainers.meta.private_objective import PrivateMetaObjective, PrivateSteps
from metalearn.trainers.meta.protocol import Learner
from metalearn.trainers.meta.settings import MAML
from metalearn.trainers.private.options import PrivacyOptions
from metalearn.trainers.private.reports import data_checksum, remarks, results
from metalearn.trainers.private.settings import PrivacySettings
from metalearn.trainers.trainer import Trainer
from metalearn.types import TaskDistribution

__all__ = ["PrivateMetaTrainer"]

_VALIDATION_TASKS = 100


class PrivateMetaTrainer(Trainer):
    """Trains a module to adapt, (ε, δ)-differentially private in the tasks it is trained on.

    The gradient of a step is (1/B)·(Σ_t g_t·min(1, C/‖g_t‖) + σ·C·z) over tasks that are drawn by
    chance, g_t the gradient of task t's loss in all that is learnt, z standard normal: DP-SGD
    (Abadi et al., "Deep Learning with Differential Privacy", CCS 2016) with whole tasks in the
    place of samples, as McMahan et al., "Learning Differentially Private Recurrent Language
    Models", ICLR 2018, take users, and Li et al., "Differentially Private Meta-Learning", ICLR
    2020, tasks.

    What is protected is a *unit*, with all of its support and query samples: one of N users, each
    of whom has one task, where tasks are computed (``users``); or one of the N groups that the
    training classes are in, such as alphabets, where tasks are drawn within groups
    (``within_group``): a step takes one task of each group that is drawn. Tasks of any classes
    share their samples and are nobody's, so that they are refused.

    Account, noise and what is recorded are as in `PrivateTrainer`. Who adapts what is released to
    data of their own tells of these by what they publish of it.

    Args:
        model: one network, as of `MetaTrainer`.
        tasks: where tasks come from; a source of one's own says whose they are by
            ``training_units(users)``, see `metalearn.tasks.units`.
        learner: see `MetaTrainer`; one that is trained on tasks, keeps no statistics of them, and
            whose ``task_gradients`` are those of its ``gradient``.
        maml: see there; ``chunk_size`` is how many tasks are taken at a time.
        users: N, where each has one task of a source that computes them; None where tasks are of
            groups.
        seed: where noise is seeded, of draws and noise.
        steps: in all.
        meta_batch: B; Poisson sampling takes each of the N units with the chance q = B/N by itself.
        max_norm: C, of a task's gradient, finite.
        clipping: ``"flat"``, or ``"automatic"``; see `metalearn.core.clipped_gradient`.
        clip_groups: of parameters that are clipped by themselves: see there.
        validation_tasks: of the validation split, where that is public; None is 100.
        select_by: as for `MetaTrainer`, of a public validation.
        optimizer: see there.
        tracker: see there.
        folder: of the run, for checkpoints and the account.
        device: see there.
        ranks: as of `PrivateTrainer`, of units in the place of samples.
        settings: ``epsilon`` or ``noise_multiplier``, ``delta``, ``sampling``, ``accountant``,
            ``noise``, ``ledger``, ``runs``, ``reserve`` and ``validation`` as for `PrivateTrainer`,
            of units in the place of samples; and the rest of `LoopSettings` by name, without
            diagnostics, accumulated batches or a lower precision.

    Raises:
        SettingError: a setting out of range, tasks without units, a learner that would tell of
            tasks otherwise than by their clipped gradients.
        DataError: a ledger that is damaged.
    """

    chooses_best: ClassVar[tuple[str, ...]] = ("validation", "select_by")

    @checked
    def __init__(
        self,
        model: nn.Module,
        tasks: TaskDistribution,
        *,
        learner: Learner | Callable[..., Learner] | str | None = None,
        maml: MAML | None = None,
        users: int | None = None,
        seed: int = 0,
        steps: int = 1000,
        meta_batch: int = 64,
        max_norm: float = 1.0,
        clipping: Clipping = "flat",
        clip_groups: ParameterGroups = "all",
        validation_tasks: int | None = None,
        select_by: SelectBy = "transductive",
        optimizer: OptimizerFactory | None = None,
        tracker: TrackerChoice | None = None,
        folder: str | Path | None = None,
        device: torch.device | str = "cpu",
        ranks: Ranks | None = None,
        **settings: Unpack[PrivacyOptions],
    ) -> None:
        private = PrivacySettings(**settings)
        _check(seed, max_norm, validation_tasks, private.validation)
        chosen = {"select_by": (select_by, "transductive")}
        limits = private.limits(steps, {**chosen, "validation_tasks": (validation_tasks, None)})
        self.units = units = training_units_of(tasks, users)
        self.account = private.account(
            units.count, meta_batch, steps, folder, setting="meta_batch", ranks=ranks
        )
        self.learner = made_learner(learner, model, maml, tasks.kind, as_device(device))
        where = place(self.learner.module, device, self.learner.network.learnt)
        check_fit(self.learner, tasks, meta_batch, where)
        check_private_learner(self.learner, tasks, where)
        self.tasks, self.meta_batch = tasks, meta_batch
        self.seed, self.epsilon, self.mechanism = seed, private.epsilon, private.mechanism
        self.validated = private.validation == "public"
        self.validation_tasks = validation_tasks or _VALIDATION_TASKS
        steps_of = PrivateSteps(
            self.account, units, private.draws(units.count, seed), float(max_norm),
            clipping_rule(self.learner.params, clipping, clip_groups), seed, steps, private.reserve,
            ranks or OneRank(),
        )  # fmt: skip
        shared: Any = {"device": where, "check": (stop := StopSignal()).check}
        self.objective = PrivateMetaObjective(
            self.learner, tasks, meta_batch, private=steps_of, settings=limits, **shared
        )
        self.evaluator = MetaEvaluator(
            self.learner, tasks, self.validation_tasks, select_by=select_by, at_once=meta_batch,
            prepare=self.objective.decide, ranks=ranks, agree=stop.agree, **shared,
        )  # fmt: skip
        rest: Any = {"optimizer": optimizer, "tracker": tracker, "folder": folder}
        super().__init__(
            assemble(
                self.learner.module, self.objective, self._validating(), settings=limits, stop=stop,
                device=where, beside=self.learner.network.learnt, ranks=ranks, **rest,
            )
        )  # fmt: skip

    test = methods.scored
    task_scores = methods.task_scores
    report_of = methods.report_of
    reports = methods.reports
    diagnosis_sources = methods.diagnosis_sources
    data_checksum = data_checksum
    remarks = remarks

    def results(self) -> dict[str, Any]:
        """What the training has cost so far, and in what it is private, as plain values."""
        found = dict(results(self))
        return {**found, "privacy": {**found["privacy"], "units": self.units.name}}

    def _validating(self) -> Evaluator:
        """What scores validation tasks, or does not."""
        if not self.validated:
            return Unvalidated(1)
        if "validation" not in outputs_by_split(self.tasks):
            accepted = "none is needed: the tasks have no validation split"
            raise SettingError("validation", "public", accepted)
        return self.evaluator


def _check(seed: int, max_norm: float, validation_tasks: int | None, validation: str) -> None:
    check_seed(seed)
    accepted = "a finite number above 0 is needed"
    check_number("max_norm", max_norm, above=0, below=math.inf, accepted=accepted)
    if validation_tasks is not None:
        check_whole("validation_tasks", validation_tasks, 1)
    if validation == "noisy":
        accepted = "none or public is needed: noisy scores are of samples"
        raise SettingError("validation", validation, accepted)
