"""What a step of private meta-training descends: gradients of single tasks, clipped, with noise.

Axes: T tasks of a step, B expected ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from metalearn.core.meta.task_axis import task_count
from metalearn.core.meta.task_mean import chunks_of_tasks
from metalearn.core.samples.clipping_rule import ClippingRule, clipped_sum
from metalearn.core.tree import add_scaled, tree_map
from metalearn.privacy import BatchSampling, PrivacyAccount, add_gaussian_noise
from metalearn.random_streams import AddressedStream
from metalearn.ranks import Ranks
from metalearn.schema import Kind
from metalearn.tasks.by_split import any_split
from metalearn.tasks.units import TrainingUnits
from metalearn.trainers.loop.step import StepGradient
from metalearn.trainers.meta.learnt_records import learnt_numbers
from metalearn.trainers.meta.method_checks import check_methods, check_task_gradients
from metalearn.trainers.meta.objective import MetaBatch, MetaObjective
from metalearn.trainers.meta.stand_ins import stand_ins
from metalearn.trainers.private.sharing import drawn_by_the_first
from metalearn.types import Params, TaskBatch

__all__ = ["PrivateMetaObjective", "PrivateSteps"]


@dataclass(frozen=True)
class PrivateSteps:
    """How the steps of a private training are drawn and protected."""

    account: PrivacyAccount
    """Reserves every step before its tasks are drawn."""
    units: TrainingUnits
    """Whose tasks they are."""
    draws: BatchSampling
    """Which units take part in a step."""
    max_norm: float
    """C."""
    rule: ClippingRule
    """How gradients are clipped."""
    seed: int
    """Of seeded noise."""
    steps: int
    """In all."""
    reserved: int
    """How many of them are written down at once."""
    ranks: Ranks
    """That share the training: the first writes down and draws, and tells the others."""

    def batch(self, step: int, device: torch.device) -> MetaBatch:
        """Units of a step, which is written down before, and their tasks; chance may draw none."""
        drawn = drawn_by_the_first(self.ranks, self.account, partial(self._drawn, step))

        def tasks(units: Sequence[int]) -> TaskBatch:
            return self.units.sample(units, step, device=device) if units else TaskBatch((), ())

        return MetaBatch(drawn, tasks, step)

    def _drawn(self, step: int) -> list[int]:
        self.account.reserve(step, max(1, min(self.reserved, self.steps - step)))
        drawn: list[int] = self.draws.draw(step).tolist()
        return drawn

    def noisy(
        self, grads: Mapping[str, Tensor], normalizer: float, *, step: int
    ) -> dict[str, Tensor]:
        """Gradients with noise of standard deviation σ·C/B, B the normaliser."""
        generator = None
        if not self.account.secure:
            drawn = AddressedStream(self.seed, "noise", step).with_replacement(2**62, 1)
            generator = torch.Generator().manual_seed(int(drawn[0]))
        sigma = self.account.mechanism.noise_multiplier  # type: ignore[attr-defined]
        size = sigma * self.max_norm / normalizer
        found: dict[str, Tensor] = add_gaussian_noise(dict(grads), size, generator=generator)
        return found


class PrivateMetaObjective(MetaObjective):
    """(1/B)·(Σ_t g_t·min(1, C/‖g_t‖) + σ·C·z), g_t the gradient of task t's loss.

    Nothing but this noisy sum gets out: losses and scores of training tasks are not shown, nor how
    many there were. What is decided before the first step, such as how many tasks are taken at a
    time, is decided on tasks of noise. A task whose gradient is not finite counts as none.

    Args:
        given: arguments of `MetaObjective`.
        private: how steps are drawn and protected.
    """

    def __init__(self, *given: Any, private: PrivateSteps, **by_name: Any) -> None:
        super().__init__(*given, **by_name)
        self.private = private
        self.batches = partial(private.batch, device=self.device)

    def decide(self) -> None:
        """Decide once how gradients are taken, on tasks of noise of the right shapes."""
        if self.learner.plan is None:
            few = self._stand_ins(min(2, self.meta_batch))
            check_methods(self.learner, few)
            how: Any = {"deterministic": self._settings.deterministic, "check": self._check}
            self.learner.prepare(few, self.meta_batch, **how)
            self._say()

    def batch(self, step: int) -> MetaBatch:
        """The tasks of the units that chance has drawn for a step."""
        return self.batches(step)

    def gradient(self, params: Params, batch: MetaBatch, *, step: int) -> StepGradient:
        """The sum of clipped gradients; noise comes after the division by B."""
        names = self.learner.names
        own = {name: params[names[name]] for name in names}
        some = bool(batch.indices)
        sums = self._sum(own, batch.tasks, step) if some else tree_map(torch.zeros_like, own)
        return StepGradient(
            {names[name]: grad for name, grad in sums.items()},
            next(iter(own.values())).new_zeros(1),
            len(batch.indices),
            normalizer=self.meta_batch,
            noise=partial(self.private.noisy, step=step),
            processed=self._share.sizes(self.meta_batch)[self._share.rank],
            shows_losses=False,
        )

    def unused_parameters(self) -> list[str]:
        """Those of the loss of a task of noise; the optimiser passes over them."""
        task = tree_map(lambda value: value[0], self._stand_ins(1))
        return [self.learner.names[name] for name in self.learner.unused_in(task)]

    def records(
        self, batch: MetaBatch, gradient: StepGradient, *, step: int
    ) -> Mapping[str, float]:
        """What is learnt beside the weights, and ε so far, where there is one."""
        learnt = learnt_numbers(self.learner.network)
        if not self.private.account.secure or self.private.ranks.rank:
            return learnt
        return {**learnt, "privacy/epsilon": self.private.account.spent().epsilon}

    def state(self) -> dict[str, Any]:
        """How gradients are taken, and the account."""
        return {**super().state(), **self.private.account.state()}

    def state_kinds(self) -> list[Kind]:
        """With the account's."""
        return [*super().state_kinds(), *self.private.account.state_kinds()]

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take the plan, and the account, in which no step is forgotten."""
        super().load_state(state)
        self.private.account.load_state(state)

    def _sum(self, own: Params, tasks: TaskBatch, step: int) -> Params:
        """Σ_t of clipped gradients, some tasks at a time."""
        chunk, total = self.learner.batching[1], None
        for some in chunks_of_tasks(tasks, task_count(tasks), chunk):
            grads = check_task_gradients(
                self.learner, self.learner.task_gradients(own, some, step=step)
            )
            ordered = {name: grads[name] for name in own}
            part = clipped_sum(ordered, self.private.max_norm, self.private.rule)
            total = part if total is None else add_scaled(total, part, 1.0)
        return total

    def _stand_ins(self, count: int) -> TaskBatch:
        return stand_ins(self.tasks, any_split(self.tasks), count, self.device)
