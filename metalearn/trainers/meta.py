"""Meta-training: MAML over a distribution of tasks.

Axes: T tasks of a meta-batch, K inner steps.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, get_args

import torch
from torch import Tensor, nn

from metalearn.core import Engine, Method, Plan
from metalearn.core.checks import as_device
from metalearn.core.memory import check_memory
from metalearn.core.targets import check_form
from metalearn.core.tree import leaves
from metalearn.errors import SettingError, check_whole
from metalearn.models import Ensemble
from metalearn.random_streams import check_split
from metalearn.schema import Kind, choice, maybe, text, together, whole
from metalearn.signatures import checked
from metalearn.tasks import outputs_by_split
from metalearn.tracking import NullTracker, Tracker
from metalearn.tracking.figures import adaptation_figure, regression_figure, task_figure
from metalearn.trainers.base import OptimizerFactory, StepReport
from metalearn.trainers.diagnostics import (
    DiagnosisData,
    DiagnosticSource,
    GradientUnits,
    PredictiveModels,
)
from metalearn.trainers.learner import MetaLearner
from metalearn.trainers.loop.settings import LoopSettings
from metalearn.trainers.maml import MAML
from metalearn.trainers.member_learner import MemberLearner
from metalearn.trainers.member_trainer import MemberTrainer
from metalearn.trainers.meta_diagnostics import (
    adapted_models,
    diagnosis_sources,
    meta_kinds,
    shot_units,
    task_units,
)
from metalearn.trainers.nan_scores import check_tasks
from metalearn.trainers.planning import keeps
from metalearn.trainers.task_reports import TestReport, by_step, score_numbers, task_report
from metalearn.trainers.task_scores import TaskScores, joined_scores, mean_interval
from metalearn.types import Split, TaskBatch, TaskDistribution

__all__ = ["MetaTrainer"]

log = logging.getLogger(__name__)


class MetaTrainer(MemberTrainer):
    """Trains a module, or an `Ensemble` of modules, to adapt to the tasks of a distribution.

    Step s takes the training tasks s·T .. (s+1)·T − 1, so a run is a function of its settings and
    can be stopped and resumed anywhere.

    Args:
        model: maps inputs to ``tasks.outputs`` logits or values; trained in place (a converted
            copy of it where ``maml.norm`` is set: see ``trainer.module``). An `Ensemble` has M
            starting points trained on the same tasks; its prediction is the mean of its members.
        tasks: where tasks come from.
        maml: how to adapt, and how to differentiate through adaptation.
        members: M, checked against the model; None for a single module.
        steps: outer steps.
        meta_batch: T, tasks a step.
        validation_tasks: tasks of the validation split, always the same.
        optimizer: makes the outer optimiser from the parameters; Adam with rate 1e-3 by default.
        tracker: where numbers and figures go.
        folder: of the run, for checkpoints.
        device: where to train.
        settings: the rest of `LoopSettings` by name: ``schedule``, ``clip``, ``eval_every``, …

    Raises:
        SettingError: a setting out of range, a module that cannot work, a model whose output does
            not fit the tasks.
    """

    unit = "tasks"

    @checked
    def __init__(
        self,
        model: nn.Module,
        tasks: TaskDistribution,
        *,
        maml: MAML | None = None,
        members: int | None = None,
        steps: int = 1000,
        meta_batch: int = 32,
        validation_tasks: int = 200,
        optimizer: OptimizerFactory | None = None,
        tracker: Tracker | None = None,
        folder: str | Path | None = None,
        device: torch.device | str = "cpu",
        **settings: Annotated[Any, LoopSettings],
    ) -> None:
        for name, value in (("meta_batch", meta_batch), ("validation_tasks", validation_tasks)):
            check_whole(name, value, 1)
        ensemble = isinstance(model, Ensemble)
        if members is not None and not (isinstance(model, Ensemble) and len(model) == members):
            raise SettingError("members", members, "an Ensemble with as many members is needed")
        make = MemberLearner if ensemble else MetaLearner
        self.learner = make(model.to(as_device(device)), maml, kind=tasks.kind)
        super().__init__(
            self.learner.module,
            LoopSettings(steps=steps, **settings),
            optimizer=optimizer,
            tracker=tracker,
            folder=folder,
            device=device,
        )
        module = self.learner.module
        self.ensemble = module if isinstance(module, Ensemble) else None
        self.tasks = tasks
        self.meta_batch, self.validation_tasks = meta_batch, validation_tasks
        self.larger_is_better = tasks.kind == "classification"
        score = "accuracy" if self.larger_is_better else "loss"
        self.monitor = f"validation/member_{score}" if ensemble else f"validation/{score}_after"
        self._check_outputs()
        self.begin_members()
        self.begin_diagnostics()

    def prepare(self) -> None:
        """Decide how meta-gradients are taken; a plan from a checkpoint is said as well."""
        if self.learner.plan is not None:
            log.info("%s", self.learner.plan)
        self._settle()

    def gradient(self, step: int) -> StepReport:
        """Meta-gradient of step ``step``."""
        indices = self._train_indices(step)
        self._settle()
        batch = self.tasks.sample("train", indices, device=self.device)
        result = self.learner.meta_gradient(batch)

        def suspects() -> str:
            finite = torch.isfinite(result.query_losses.view(-1, len(indices))).all(0)
            bad = [i for i, good in zip(indices, finite.tolist()) if not good] or list(indices)
            return f"training tasks {', '.join(map(str, bad))}"

        if self.ensemble is None:
            return StepReport(result.loss, result.grads, len(indices), suspects)
        grads = {f"stacks.0.network.{name}": grad for name, grad in result.grads.items()}
        return StepReport(result.loss.mean(), grads, len(indices), suspects, result.loss)

    def unused_parameters(self) -> list[str]:
        """Those of the loss of the first training task (of the first member)."""
        query = _first(self.tasks.sample("train", [0], device=self.device).query)
        names = self.learner.unused_parameters(query)
        prefix = "" if self.ensemble is None else "stacks.0.network."
        return [prefix + name for name in names]

    def validate(self) -> Mapping[str, float]:
        """Scores on the fixed validation tasks, before and after adaptation, with intervals."""
        scores = self._score("validation", self.validation_tasks)
        if not isinstance(self.tracker, NullTracker):
            self._draw(scores)
            self.tracker.curves(self.step, "validation_by_step", by_step(scores))
        if scores.members is not None:
            members = scores.members
            values = members.losses if members.accuracies is None else members.accuracies
            self._newest = values[:, :, -1].mean(0)
        return score_numbers("validation", scores)

    @property
    def bands(self) -> dict[str, list[str]]:
        """Of tasks: mean and 95 % interval; of members: median and extremes."""
        scores = ("accuracy", "loss") if self.larger_is_better else ("loss",)
        splits = ("train", "validation")
        tasks = [f"{s}/{n}_{w}" for s in splits for n in scores for w in ("before", "after")]
        found = {"95% confidence intervals": tasks}
        if self.ensemble is not None:
            members = [f"{s}/member_{n}" for s in splits for n in scores]
            found["members: median and extremes"] = members
        return found

    def member_scores(self) -> Tensor:
        """``[M]``: validation accuracy (or loss) of each member after adaptation."""
        return self._newest

    def log_training(self, step: int, report: StepReport) -> Mapping[str, float]:
        """Scores of the meta-batch at hand, before and after its inner steps."""
        batch = self.tasks.sample("train", self._train_indices(step), device=self.device)
        scores = self.learner.score(batch, steps=self.learner.maml.inner_steps)
        return score_numbers("train", scores)

    @checked
    def test(
        self, count: int = 600, *, split: Split = "test", inductive: bool = False
    ) -> TestReport:
        """Mean ± 95 % interval over ``count`` tasks of a split at every inner step 0..K."""
        check_whole("count", count, 1)
        check_split(split)
        scores = self._score(split, count, inductive=inductive)
        check_tasks(scores, split)
        return task_report(scores)

    def reports(
        self, split: Split = "test", *, tasks: int = 600, inductive: bool = True
    ) -> dict[str, TestReport]:
        """See `Trainer.reports`: a `test` with statistics shared by a task's queries, and alone."""
        names = ("transductive", "inductive") if inductive else ("transductive",)
        return {n: self.test(tasks, split=split, inductive=n == "inductive") for n in names}

    def diagnostic_batch(self, step: int) -> tuple[range, TaskBatch]:
        """Indices of the tasks, and the tasks."""
        indices = self._train_indices(step)
        return indices, self.tasks.sample("train", indices, device=self.device)

    def diagnostic_kinds(self) -> Mapping[str, str]:
        """Shots of each task, tasks, members where there are some, adapted models."""
        return meta_kinds(self.learner)

    def gradient_units(self, kind: str, batch: Any, grads: Mapping[str, Tensor]) -> GradientUnits:
        """Shots by the inner gradient at the initial parameters, tasks by the meta-gradient."""
        if kind == "member":
            return self.member_units(grads)
        indices, tasks = batch
        if kind == "shot":
            return shot_units(self.learner, tasks)
        limit = math.inf if self.settings.clip is None else self.settings.clip
        return task_units(self.learner, tasks, clip_norm=limit, labels=[str(i) for i in indices])

    def predictive_models(self, batch: Any) -> Iterator[PredictiveModels]:
        """Learners that are adapted to the tasks of a step, on the query sets."""
        return adapted_models(self.learner, batch[1])

    def diagnosis_sources(self, data: DiagnosisData) -> Iterator[tuple[str, DiagnosticSource]]:
        """Initial or adapted learners on tasks of a split, and the tasks' meta-gradients."""
        one = leaves(self.tasks.sample(data.split, [0], device=self.device))
        size = sum(part.numel() * part.element_size() for part in one)
        check_memory("tasks", data.tasks, size * data.tasks, self.device)
        tasks = self.tasks.sample(data.split, range(data.tasks), device=self.device)
        return diagnosis_sources(self.learner, tasks, data)

    def member_settings(self) -> list[dict[str, float]]:
        """Nothing differs between members but where they start."""
        return [{"member": index} for index in range(len(self.ensemble or ()))]

    def extra_state(self) -> dict[str, Any]:
        """How meta-gradients are taken, so that a resumed run goes on in the same way."""
        state, plan = super().extra_state(), self.learner.plan
        if plan is not None:
            state |= {
                "engine": plan.engine,
                "method": plan.method,
                "chunk_size": plan.chunk_size,
                "memory": self.learner.maml.memory,
                "device": self.device.type,
            }
        return state

    def extra_kinds(self) -> list[Kind]:
        """With the plan, where there is one."""
        plan = {
            "engine": choice(*get_args(Engine)),
            "method": choice(*get_args(Method)),
            "chunk_size": maybe(whole(1)),
            "device": text,
        }
        return [*super().extra_kinds(), together(plan)]

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Take the plan of the run, unless it was made for another kind of device."""
        super().load_extra_state(state)
        plan: dict[str, Any] = {k: state.get(k) for k in ("engine", "method", "chunk_size")}
        maml = self.learner.maml
        asked = {"engine": maml.engine, "method": maml.wanted_method, "memory": maml.memory}
        if self.ensemble is None:  # members share chunks
            asked["chunk_size"] = maml.chunk_size
        same_device = state.get("device") == self.device.type
        if same_device and keeps({**plan, "memory": state.get("memory", maml.memory)}, **asked):
            self.learner.plan = Plan(**plan, notes=("as before the interruption",))

    def _settle(self) -> None:
        """Decide once how meta-gradients are taken, and say so."""
        if self.learner.plan is None:
            few = self.tasks.sample("train", range(min(2, self.meta_batch)), device=self.device)
            fixed = self.settings.deterministic
            plan = self.learner.settle(
                few, self.meta_batch, deterministic=fixed, check=self._stop.check
            )
            log.info("%s", plan)

    def _train_indices(self, step: int) -> range:
        return range(step * self.meta_batch, (step + 1) * self.meta_batch)

    def _score(self, split: Split, count: int, *, inductive: bool = False) -> TaskScores:
        self._settle()
        parts = []
        for start in range(0, count, self.meta_batch):
            indices = range(start, min(start + self.meta_batch, count))
            batch = self.tasks.sample(split, indices, device=self.device)
            scores = self.learner.score(batch, inductive=inductive, check=self._stop.check)
            parts.append(scores)
        return joined_scores(parts)

    def _draw(self, scores: TaskScores) -> None:
        """Figures of a validation: one task, and the adaptation curve."""
        task = self.tasks.sample("validation", [0])
        support, query = _first(task.support), _first(task.query)
        predictions = scores.predictions[0].cpu()
        title = f"validation task 0, step {self.step}"
        values = scores.losses if scores.accuracies is None else scores.accuracies
        shape = (self.tasks.kind, len(self.tasks.input_shape), math.prod(self.tasks.input_shape))
        figure = None  # tasks of other shapes have no picture
        if shape[:2] == ("classification", 3):
            figure = task_figure(support, query, predictions[-1], title=title)
        elif shape == ("regression", 1, 1) and self.tasks.outputs == 1:
            figure = regression_figure(support, query, predictions[0], predictions[-1], title=title)
        if figure is not None:
            self.tracker.figure(self.step, "validation/task", figure)
        mean, half = mean_interval(values)
        name = "accuracy" if self.larger_is_better else "mean squared error"
        curve = adaptation_figure(
            {"validation": (mean.cpu(), half.cpu())},
            ylabel=f"query {name}",
            title=f"adaptation on {len(values)} validation tasks, step {self.step}",
            chance=1 / outputs_by_split(self.tasks)["validation"]
            if self.larger_is_better
            else None,
            trained_steps=self.learner.maml.inner_steps,
        )
        self.tracker.figure(self.step, "validation/adaptation", curve)

    def _check_outputs(self) -> None:
        """Run one task's support set through the model and look at its targets, before training."""
        ways = outputs_by_split(self.tasks)
        if len(set(ways.values())) > 1:
            accepted = "a model with a logit for each class needs the same way in every split"
            raise SettingError("tasks", ways, accepted)
        batch = self.tasks.sample("train", [0], device=self.device)
        size = sum(part.numel() * part.element_size() for part in leaves(batch))
        check_memory("meta_batch", self.meta_batch, size * self.meta_batch, self.device)
        inputs, _ = _first(batch.support)
        name = type(self.module).__name__
        try:
            with torch.no_grad():
                outputs = self.learner.outputs(inputs)
        except (RuntimeError, ValueError, TypeError) as error:
            reason = str(error).partition("\n")[0]
            accepted = f"a model that takes inputs {list(inputs.shape)} is needed ({reason})"
            raise SettingError("model", name, accepted) from error
        wanted = [len(inputs), self.tasks.outputs]
        got = list(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        if got != wanted:
            raise SettingError(
                "model", name, f"outputs {wanted} are needed for these tasks, not {got}"
            )
        for _, targets in map(_first, batch):
            check_form(self.larger_is_better, (len(targets), wanted[1]), targets)
        self.learner.check(batch)


def _first(batch: Any) -> tuple[Tensor, Tensor]:
    inputs, targets = batch
    return inputs[0], targets[0]
