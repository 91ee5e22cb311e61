"""What a step of meta-training descends: the query loss after adaptation, over a meta-batch.

Axes: M members, or 1; T tasks of a meta-batch, or batches of B samples.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from metalearn.core.tree import tree_map
from metalearn.errors import SettingError
from metalearn.ranks import Share, check_enough
from metalearn.schema import Kind
from metalearn.tasks import outputs_by_split
from metalearn.tasks.by_split import any_split
from metalearn.trainers.loop.drawer import Workers
from metalearn.trainers.loop.pure_calls import PureCalls
from metalearn.trainers.loop.settings import LoopSettings
from metalearn.trainers.loop.step import StepGradient
from metalearn.trainers.meta.drawn_ahead import DrawnAhead
from metalearn.trainers.meta.learnt_records import learnt_numbers
from metalearn.trainers.meta.method_checks import check_gradient, check_methods
from metalearn.trainers.meta.protocol import Learner
from metalearn.trainers.meta.reports import score_numbers
from metalearn.trainers.meta.training_draws import drawn_for_training, prepare_draws
from metalearn.types import Params, TaskBatch, TaskDistribution

__all__ = ["MetaBatch", "MetaObjective"]

log = logging.getLogger(__name__)


class MetaBatch:
    """The tasks of a step, or of learners that draw samples, the batches.

    Args:
        indices: their numbers in the training split.
        draw: gives them.
        step: of the training.
    """

    def __init__(
        self, indices: Sequence[int], draw: Callable[[Sequence[int]], TaskBatch], step: int
    ) -> None:
        self.indices, self.step, self._draw = indices, step, draw

    @cached_property
    def tasks(self) -> TaskBatch:
        """Drawn when they are asked for, which a rank does of its part."""
        return self._draw(self.indices)

    def part(self, share: Share) -> MetaBatch:
        """Those that a rank takes."""
        return MetaBatch(share.of(self.indices), self._draw, self.step)


class MetaObjective:
    """The meta-gradient of a learner over the training tasks of a step.

    Step s takes the training tasks s·T .. (s+1)·T − 1, or batches of samples with these numbers.

    Args:
        learner: whose parameters are trained.
        tasks: where tasks come from.
        meta_batch: T.
        device: where tasks are made.
        settings: of the loop: batches a step, and whether plans leave out what memory is free.
        check: called in trials; what it raises ends them.
        workers: threads that draw ahead.
    """

    divides_members = False

    def __init__(
        self,
        learner: Learner,
        tasks: TaskDistribution,
        meta_batch: int,
        *,
        device: torch.device,
        settings: LoopSettings,
        check: Callable[[], None],
        workers: Workers = 0,
    ) -> None:
        self.learner, self.tasks, self.meta_batch, self.device = learner, tasks, meta_batch, device
        self._settings, self._check = settings, check
        self.unit: str = learner.draws
        self._said, self._share = False, Share()
        count = settings.steps * settings.accumulate * meta_batch
        timed = workers != "auto" or not settings.deterministic
        how: Any = {"workers": workers if timed else 0, "device": device}
        self.ahead = DrawnAhead(self.draw, count, stride=meta_batch, **how)
        prepare_draws(learner, tasks, device)

    @property
    def pure(self) -> PureCalls:
        """As of `metalearn.trainers.loop.pure_calls.Compilable`: the learner's."""
        return self.learner.pure

    @pure.setter
    def pure(self, calls: PureCalls) -> None:
        self.learner.pure = calls

    def prepare(self) -> None:
        """Decide once how gradients are taken, and say so; a plan from a checkpoint is said too."""
        splits = list(outputs_by_split(self.tasks))
        if "train" not in splits:
            raise SettingError("tasks", splits, "tasks with a train split are needed to train")
        self.decide()
        if not self._said:
            self._say()

    def decide(self) -> None:
        """Decide once how gradients are taken, and say so; a plan that there is goes unsaid."""
        if self.learner.plan is None:
            few = range(min(2, self.meta_batch))
            split = any_split(self.tasks)
            tasks = self.tasks.sample(split, few, device=self.device)
            check_methods(self.learner, tasks)
            self.learner.prepare(
                self.draw(few) if split == "train" else tasks,
                self.meta_batch,
                deterministic=self._settings.deterministic,
                check=self._check,
            )
            self._say()

    def draw(self, indices: Sequence[int]) -> TaskBatch:
        """Tasks, or batches of samples, by their numbers in the training split."""
        return drawn_for_training(self.learner, self.tasks, indices, self.device)

    def batch(self, step: int) -> MetaBatch:
        """The tasks, or batches of samples, of a step, or of one of its batches.

        Those are counted over the training.
        """
        indices = range(step * self.meta_batch, (step + 1) * self.meta_batch)
        draw = partial(self.ahead, self.tasks, blocks=self.unit == "tasks")
        return MetaBatch(indices, draw, step // self._settings.accumulate)

    def divide(self, share: Share) -> None:
        """Each rank takes some of the tasks of every step.

        Raises:
            SettingError: there are fewer than ranks.
        """
        check_enough("meta_batch", self.meta_batch, share)
        self._share = share

    def part(self, batch: MetaBatch) -> AbstractContextManager[MetaBatch]:
        """The tasks of this rank."""
        return nullcontext(batch.part(self._share))

    def gradient(self, params: Params, batch: MetaBatch, *, step: int) -> StepGradient:
        """The meta-gradient, a mean over the tasks."""
        count, names = len(batch.indices), self.learner.names
        kind = "tasks" if self.unit == "tasks" else "batches"
        own = {n: params[names[n]] for n in names}
        result = check_gradient(self.learner, self.learner.gradient(own, batch.tasks, step=step))
        return StepGradient(
            {names[name]: grad for name, grad in result.grads.items()},
            result.loss.reshape(-1),
            count,
            count,
            buffers=self.learner.moved_buffers(own, batch.tasks),
            processed=None if self.unit == "tasks" else count * len(batch.tasks.query[1][0]),
            suspects=lambda: _suspects(result.query_losses.view(-1, count), batch.indices, kind),
        )

    def unused_parameters(self) -> Iterable[str]:
        """Those of the loss of the first training task (of the first member)."""
        task = self.draw([0])
        unused = self.learner.unused_in(tree_map(lambda value: value[0], task))
        return [self.learner.names[name] for name in unused]

    def records(
        self, batch: MetaBatch, gradient: StepGradient, *, step: int
    ) -> Mapping[str, float]:
        """Scores of the tasks of the step before and after inner steps, and what is learnt."""
        tasks = batch.tasks
        if self.unit != "tasks":
            tasks = self.tasks.sample("train", batch.indices, device=self.device)
        scores = self.learner.score(tasks, steps=self.learner.inner_steps)
        learnt = learnt_numbers(self.learner.network)
        return {**score_numbers("train/", scores), **learnt}

    def state(self) -> dict[str, Any]:
        """How gradients are taken, so that a resumed run goes on in the same way."""
        return self.learner.state()

    def state_kinds(self) -> list[Kind]:
        """With the plan, where there is one."""
        return self.learner.state_kinds()

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take the plan of the run, unless it was made for another kind of device."""
        self.learner.load_state(state)

    def _say(self) -> None:
        self._said = True
        log.info("%s", self.learner.plan)


def _suspects(losses: Tensor, indices: Sequence[int], kind: str) -> str:
    """Those whose loss ``[M, T]`` is not finite, of any member; all where each is finite."""
    finite = torch.isfinite(losses).all(0).tolist()
    bad = [i for i, good in zip(indices, finite) if not good] or list(indices)
    return f"training {kind} {', '.join(_ranges(bad))}"


def _ranges(numbers: Sequence[int]) -> list[str]:
    """``["9", "11", "16 to 40"]``: three or more in a row are said by their ends."""
    rows: list[list[int]] = []
    for number in numbers:
        if rows and number == rows[-1][-1] + 1:
            rows[-1].append(number)
        else:
            rows.append([number])
    short = [row if len(row) < 3 else [f"{row[0]} to {row[-1]}"] for row in rows]
    return [str(part) for row in short for part in row]
