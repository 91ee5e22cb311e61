"""The objective of a training of what shapes runs: the outer loss after a run.

Axes: K steps of a run, B samples of an outer batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from metalearn.core import DirectionCheck, HyperGradient, check_hyper_gradient, hyper_gradient
from metalearn.core.tree import tree_map
from metalearn.core.vectorization import vmapped_or_looped
from metalearn.ranks import Share, check_enough
from metalearn.trainers.hyper.carried import Carried
from metalearn.trainers.hyper.combinations import GradientSettings
from metalearn.trainers.hyper.gradient_check import GradientCheck
from metalearn.trainers.hyper.kinds import HyperModule, RunValues
from metalearn.trainers.hyper.run_settings import optimizer_gradients
from metalearn.trainers.hyper.runs import InnerRuns, StartOfRun
from metalearn.trainers.hyper.shared_samples import check_divisible, shared_outer_loss
from metalearn.trainers.loop.protocols import Stateless
from metalearn.trainers.loop.step import StepGradient
from metalearn.trainers.supervised.batches import LabelledBatch, check_parts
from metalearn.types import Params

__all__ = ["HyperObjective"]

_CARRIED = "carried"


class HyperObjective(Stateless):
    """The mean loss of a batch of the validation part after K steps from where a run starts.

    Args:
        hyper: what is learnt.
        runs: that it shapes.
        batches: from an outer step to its inputs and targets.
        how: of the gradient.
    """

    unit = "samples"
    divides_members = False

    def __init__(
        self,
        hyper: HyperModule,
        runs: InnerRuns,
        batches: Callable[[int], LabelledBatch],
        how: GradientSettings,
    ) -> None:
        self.hyper, self.runs, self.batches, self.how = hyper, runs, batches, how

    def prepare(self) -> None:
        """Nothing is left to decide."""

    def divide(self, share: Share) -> None:
        """Each rank takes some of the samples of every step of a run, and of the outer loss.

        Raises:
            SettingError: there are fewer than ranks; batch normalisation; a loss of a run that is
                not known to be a mean of samples.
        """
        runs = self.runs
        check_divisible(self.hyper, share)
        check_parts(runs.module, share)
        if self.hyper.sees_examples:
            check_enough("inner.batch_size", runs.settings.batch_size, share)
        check_enough("outer_batch", len(self.batch(0)[1]), share)

    def part(self, batch: LabelledBatch) -> AbstractContextManager[LabelledBatch]:
        """All of it, of which `gradient` takes this rank's samples where they are computed."""
        return nullcontext(batch)

    def batch(self, step: int) -> LabelledBatch:
        """Inputs and targets of the outer loss, and the batch's number, which its run has too."""
        x, y, *_ = self.batches(step)
        return self.runs.placed(x), y, torch.tensor(step)

    def gradient(self, params: Params, batch: LabelledBatch, *, step: int) -> StepGradient:
        """Mean loss of the batch after the run, and its gradient of what shapes the run."""
        values, pull, *_ = torch.func.vjp(self._values, dict(params))
        values = RunValues(*tree_map(Tensor.detach, tuple(values)))
        x, y, number = batch
        start = self.runs.of_step(int(number), self.hyper)
        found = self._through_run(values, start, (x, y))
        in_optimizer = optimizer_gradients(found.optimizer_grads, values.in_optimizer)
        (grads,) = pull(RunValues(found.hyper_grads, in_optimizer))
        count = len(self.runs.ranks.share.of(y))
        return StepGradient(
            grads,
            found.loss[None],
            count,
            divisor=count,
            buffers=self._carried(found),
            scalars=_scalars(found),
            suspects=lambda: f"the run of step {step}",
        )

    def unused_parameters(self) -> list[str]:
        """None: weights of examples that a run does not see have gradients of 0."""
        return []

    def records(
        self, batch: LabelledBatch, gradient: StepGradient, *, step: int
    ) -> Mapping[str, float]:
        """What has been learnt, in numbers."""
        found = self.hyper.records(self.hyper.current())
        return {f"hyper/{name}": value for name, value in found.items()}

    def outer_loss(self, params: Params, in_loss: Any, batch: LabelledBatch) -> Tensor:
        """Mean loss of a batch in evaluation mode, a scalar."""
        runs, (x, y, *_) = self.runs, batch
        return shared_outer_loss(runs.loss, runs.network, params, x, y, runs.ranks)

    def _values(self, raw: Params) -> RunValues:
        """What a run gets of the parameters that are trained, and of the others as they are."""
        fixed = {n: p.detach() for n, p in self.hyper.named_parameters() if n not in raw}
        return self.hyper.values({**fixed, **raw})

    def checked(self, step: int, seed: int) -> GradientCheck:
        """Hold the gradient of an outer step, with what is learnt as it stands, against two runs.

        Args:
            step: whose run and batch they are.
            seed: of the direction.
        """
        run = self._run(self.hyper.current(), self.runs.of_step(step, self.hyper), self.batch(step))
        found = hyper_gradient(**run, **vars(self.how))

        def check(*, stacked: bool) -> DirectionCheck:
            generator = torch.Generator().manual_seed(seed)
            return check_hyper_gradient(found, **run, generator=generator, stacked=stacked)

        looped = partial(check, stacked=False)
        alone = self.runs.ranks.count == 1  # a stack of runs has no way to meet
        both = vmapped_or_looped(partial(check, stacked=True), looped) if alone else looped()
        return GradientCheck.of(self.how.method, both)

    def _through_run(
        self, values: RunValues, start: StartOfRun, batch: LabelledBatch
    ) -> HyperGradient:
        return hyper_gradient(**self._run(values, start, batch), **vars(self.how))

    def _run(self, values: RunValues, start: StartOfRun, batch: LabelledBatch) -> dict[str, Any]:
        """Arguments of the gradient through a run."""
        settings, like = self.runs.settings, self.runs.like
        return {
            "inner_loss": self.runs.inner_loss(self.hyper),
            "outer_loss": self.outer_loss,
            "params": start.params,
            "hyper": values.in_loss,
            "inner_batches": start.batches,
            "outer_batch": batch,
            "optimizer": settings.made_optimizer(values.in_optimizer, settings.steps, like),
            "steps": settings.steps,
            "state": start.state,
        }

    def _carried(self, found: HyperGradient) -> dict[str, Tensor]:
        """What the next run starts from, by the names of buffers."""
        carried = getattr(self.hyper, _CARRIED, None)
        if not isinstance(carried, Carried):
            return {}
        after = carried.after(found.params, found.state)
        return {f"{_CARRIED}.{name}": value for name, value in after.items()}


def _scalars(found: HyperGradient) -> dict[str, Tensor]:
    """How the run went, and whether gradients through it explode on their way back."""
    scalars = {"train/inner_loss": found.inner_losses[-1]}
    norms = found.diagnostics.get("walk_norms")
    if norms is not None and len(norms) > 1:
        tiny = torch.finfo(norms.dtype).tiny
        scalars["train/growth_on_the_way_back"] = norms[-1] / norms[0].clamp_min(tiny)
    if "residual" in found.diagnostics:
        scalars["train/implicit_residual"] = found.diagnostics["residual"]
    return scalars
