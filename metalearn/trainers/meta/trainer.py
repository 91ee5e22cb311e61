"""Meta-training over a distribution of tasks, assembled from its parts.

Axes: T tasks of a meta-batch, K inner steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from typing_extensions import Unpack

from metalearn.core.checks import as_device
from metalearn.errors import SettingError, check_whole
from metalearn.models import Ensemble, SavedWeights
from metalearn.ranks import Ranks
from metalearn.signatures import checked
from metalearn.tracking import TrackerChoice
from metalearn.trainers.loop.assembly import assemble, place
from metalearn.trainers.loop.drawer import Workers
from metalearn.trainers.loop.options import LoopOptions
from metalearn.trainers.loop.outer_optimizer import OptimizerFactory
from metalearn.trainers.loop.settings import LoopSettings
from metalearn.trainers.loop.stop_signal import StopSignal
from metalearn.trainers.meta import task_methods as methods
from metalearn.trainers.meta.diagnostics import TaskSource
from metalearn.trainers.meta.drawn_ahead import DrawnWhileTraining
from metalearn.trainers.meta.evaluator import MetaEvaluator, SelectBy
from metalearn.trainers.meta.fitting import check_fit
from metalearn.trainers.meta.making import check_members_of, made_learner
from metalearn.trainers.meta.objective import MetaObjective
from metalearn.trainers.meta.protocol import Learner
from metalearn.trainers.meta.settings import MAML
from metalearn.trainers.meta.unvalidated import evaluator_for
from metalearn.trainers.trainer import Trainer
from metalearn.types import TaskDistribution

__all__ = ["MetaTrainer"]


class MetaTrainer(Trainer):
    """Trains a module, or an `Ensemble` of modules, to adapt to the tasks of a distribution.

    Step s takes the training tasks s·T .. (s+1)·T − 1, so a run is a function of its settings and
    can be stopped and resumed anywhere.

    Args:
        model: maps inputs to ``tasks.outputs`` logits or values; trained in place (a converted
            copy of it where ``maml.norm`` is set: see ``trainer.module``). An `Ensemble` has M
            starting points trained on the same tasks; its prediction is the mean of its members.
        tasks: where tasks come from.
        learner: the method: a name (``"maml"``, ``"protonet"``, …, see `LEARNERS`), what makes
            a learner of ``(model, kind=…)`` and, with an inner loop, ``maml=…``, or a learner of
            this model. None is MAML.
        maml: of learners with an inner loop: how to adapt, and how to differentiate through it.
        members: M, checked against the model; None for a single module.
        steps: outer steps.
        meta_batch: T, tasks a step; of learners that draw samples, batches.
        validation_tasks: tasks of the validation split, always the same.
        select_by: by which score of them the best state is chosen, and what patience waits for:
            ``"transductive"`` (a task's queries share statistics of normalisation) or
            ``"inductive"`` (each is predicted alone; both are recorded then). Where tasks have no
            validation split the newest state is the best.
        draw_workers: threads that draw the tasks of the next steps, which are the same tasks then:
            a number, 0 for none, or ``"auto"``, which has some where drawing takes a notable part
            of the steps and they are shorter with them (none with ``deterministic``). The source
            has to say ``thread_safe``, see `metalearn.types.TaskDistribution`.
        optimizer: makes the outer optimiser from the parameters; Adam with rate 1e-3 by default.
        tracker: where numbers and figures go; names, such as ``"csv"``, are those of `RunTracker`
            and need ``folder``.
        folder: of the run, for checkpoints.
        device: where to train.
        ranks: processes that share the training, each with some of the tasks of a step; None is one
            process. See `metalearn.ranks.joined`.
        settings: the rest of `LoopSettings` by name: ``schedule``, ``clip``, ``eval_every``, …

    Raises:
        SettingError: a setting out of range, a module that cannot work, a model whose output does
            not fit the tasks.
    """

    makes_module: ClassVar[tuple[str, ...]] = ("members",)
    chooses_best: ClassVar[tuple[str, ...]] = ("select_by",)
    validated: ClassVar[bool] = True
    """Whether the validation split may be read."""

    @checked
    def __init__(
        self,
        model: nn.Module,
        tasks: TaskDistribution,
        *,
        learner: Learner | Callable[..., Learner] | str | None = None,
        maml: MAML | None = None,
        members: int | None = None,
        steps: int = 1000,
        meta_batch: int = 32,
        validation_tasks: int = 200,
        select_by: SelectBy = "transductive",
        draw_workers: Workers = "auto",
        optimizer: OptimizerFactory | None = None,
        tracker: TrackerChoice | None = None,
        folder: str | Path | None = None,
        device: torch.device | str = "cpu",
        ranks: Ranks | None = None,
        **settings: Unpack[LoopOptions],
    ) -> None:
        for name, value in (("meta_batch", meta_batch), ("validation_tasks", validation_tasks)):
            check_whole(name, value, 1)
        check_members_of(model, members)
        self.learner = learner = made_learner(learner, model, maml, tasks.kind, as_device(device))
        limits = LoopSettings(steps=steps, **settings)
        found = place(learner.module, device, learner.network.learnt)
        check_fit(learner, tasks, meta_batch, found)
        self.tasks, self.meta_batch, self.validation_tasks = tasks, meta_batch, validation_tasks
        stop = StopSignal()
        shared: Any = {"device": found, "check": stop.check}
        own: Any = {"settings": limits, "workers": draw_workers}
        objective = MetaObjective(learner, tasks, meta_batch, **own, **shared)
        self.evaluator = MetaEvaluator(
            learner,
            tasks,
            validation_tasks,
            select_by=select_by,
            at_once=meta_batch,
            prepare=objective.decide,
            ranks=ranks,
            agree=stop.agree,
            **shared,
        )
        clip = math.inf if limits.clip is None else limits.clip
        self.source = TaskSource(learner, clip_norm=clip, active=lambda: self.active)
        rest: Any = {"stop": stop, "tracker": tracker, "folder": folder, "device": found}
        super().__init__(
            assemble(
                learner.module,
                objective,
                evaluator_for(self.evaluator, limits),
                settings=limits,
                optimizer=optimizer,
                source=self.source,
                callbacks=[DrawnWhileTraining(objective.ahead, lambda: objective.tasks)],
                ranks=ranks,
                beside=learner.network.learnt,
                **rest,
            )
        )

    @checked
    def start_from(
        self, source: str | Path | SavedWeights, *, skip: Sequence[str] = ()
    ) -> SavedWeights:
        """See `Trainer.start_from`; of members, which see the same tasks, no two may be equal.

        Raises:
            SettingError: members that all start with the same weights.
        """
        weights = super().start_from(source, skip=skip)
        if len(self.ensemble or ()) > 1 and all(
            bool((value == value[:1]).all()) for value in self.learner.params.values()
        ):
            accepted = "members see the same tasks, so a run of as many members, or one part that"
            raise SettingError(
                "source", str(weights.path), f"{accepted} stays as it is (init_skip), is needed"
            )
        return weights

    test = methods.scored
    task_scores = methods.task_scores
    report_of = methods.report_of
    reports = methods.reports
    diagnosis_sources = methods.diagnosis_sources

    @property
    def ensemble(self) -> Ensemble | None:
        """What is trained where it is an ensemble; None for a single module."""
        return self.module if isinstance(self.module, Ensemble) else None

    def member_settings(self) -> list[dict[str, float]]:
        """Nothing differs between members but where they start."""
        return [{"member": index} for index in range(len(self.ensemble or ()))]
