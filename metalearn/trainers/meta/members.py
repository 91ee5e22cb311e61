"""An ensemble of meta-learners: M initialisations that adapt to the same tasks at once.

Axes: M members, T tasks, K inner steps, N query samples, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from metalearn.core import MetaGradient, Plan
from metalearn.core.bayes.predictive import (
    mean_log_probabilities,
    mutual_information,
    negative_log_likelihoods,
)
from metalearn.core.bayes.predictive_regression import regression_uncertainty
from metalearn.core.ensemble.stacking import member_count, take_member, unstack
from metalearn.core.loss_checks import outside_inference_mode
from metalearn.core.meta.members import member_meta_gradient
from metalearn.core.targets import is_label, labels_of, mean_without_padding, not_padding
from metalearn.errors import SettingError
from metalearn.evaluation import expected_calibration_error
from metalearn.models import Ensemble, Stack
from metalearn.signatures import checked
from metalearn.trainers.meta.maml import MetaLearner
from metalearn.trainers.meta.scores import MemberScores, TaskScores
from metalearn.trainers.nan_scores import hits
from metalearn.types import Batch, Params, TaskBatch

__all__ = ["MemberLearner"]


class MemberLearner(MetaLearner):
    """A `MetaLearner` whose module is an `Ensemble`; its prediction is the mean over members.

    ``params`` are ``[M, ...]``; `meta_gradient` gives every member's own, with M in front of all.
    """

    module: Ensemble

    def settle(
        self,
        tasks: TaskBatch,
        task_count: int,
        *,
        deterministic: bool = False,
        check: Callable[[], None] = lambda: None,
    ) -> Plan:
        """As for one learner; chunks are of tasks, each for all members."""
        count = member_count(self.params)
        plan = super().settle(tasks, task_count * count, deterministic=deterministic, check=check)
        if plan.chunk_size is not None:
            plan = replace(plan, chunk_size=max(1, plan.chunk_size // count))
        self.plan = replace(plan, notes=(f"each of {count} members", *plan.notes))
        return self.plan

    @outside_inference_mode
    @checked
    def adapt(
        self, support: Batch, *, steps: int | None = None, transductive: bool = False
    ) -> nn.Module:
        """An `Ensemble` of the members, each adapted to one support set; see `MetaLearner.adapt`.

        Members that normalise with the batch at hand carry the support inputs, each its own.
        """
        modules = [
            self._adapted(self.module.member(index), row, support, steps, transductive=transductive)
            for index, row in enumerate(unstack(self.params))
        ]
        return Ensemble.from_modules(modules).eval()

    @checked
    def score(
        self,
        tasks: TaskBatch,
        *,
        steps: int | None = None,
        inductive: bool = False,
        check: Callable[[], None] = lambda: None,
    ) -> TaskScores:
        """Scores of the mean prediction, and of each member; see `MetaLearner.score`."""
        self.check(tasks)
        with self._taken(tasks):
            rows = [
                self._outputs(row, tasks, steps, inductive, check) for row in unstack(self.params)
            ]
        losses = torch.stack([loss for loss, _ in rows], 1)
        outputs = torch.stack([output for _, output in rows])
        targets = tasks.query[1]
        if self.kind == "regression":
            mean = outputs.mean(0)
            spread = regression_uncertainty(outputs[:, :, -1]).epistemic
            error = (mean - targets[:, None]).square().flatten(2).mean(-1)
            members = MemberScores(losses, None, spread.flatten(1).mean(-1), None)
            return TaskScores(error, None, mean, members)
        labels, real = labels_of(targets), not_padding(targets)
        log_p = mean_log_probabilities(outputs)
        predictions = log_p.argmax(-1)
        right = hits(outputs, labels[:, None]).to(losses.dtype)
        found = hits(log_p, labels[:, None]).to(losses.dtype)
        epistemic = mean_without_padding(mutual_information(outputs[:, :, -1]), real)
        return TaskScores(
            mean_without_padding(_cross_entropies(log_p, targets), real[:, None]),
            mean_without_padding(found, real[:, None]),
            predictions,
            MemberScores(
                losses,
                mean_without_padding(right, real[:, None]).movedim(0, 1),
                epistemic,
                _calibration(log_p[:, -1], labels, real).to(losses),
            ),
        )

    def _as_it_is(self, inputs: Any) -> Tensor:
        found: Tensor = self.apply(take_member(self.params, 0), {}, inputs)
        return found

    def _functional(self) -> tuple[Any, dict[str, Tensor], dict[str, Tensor]]:
        """One member's network as a pure function; parameters ``[M, ...]``."""
        if not isinstance(self.module, Ensemble):
            raise SettingError("module", type(self.module).__name__, "an Ensemble is needed")
        if len(self.module.stacks) != 1:
            found = len(self.module.stacks)
            raise SettingError("model", f"{found} architectures", "members need to share one")
        (stack,) = self.module.stacks
        assert isinstance(stack, Stack)
        params, buffers = stack.state()
        if buffers:
            raise SettingError(
                "model", sorted(buffers), "members that adapt have no buffers or fixed parameters"
            )
        return stack.call, {name: p.detach() for name, p in params.items()}, {}

    def _trial_params(self) -> Params:
        return take_member(self.params, 0)

    def _meta_gradient(
        self, params: Params, tasks: TaskBatch, settings: Mapping[str, Any]
    ) -> MetaGradient:
        return member_meta_gradient(self.loss, params, tasks, **settings)

    @property
    def names(self) -> dict[str, str]:
        """By the name of a parameter, what it is called in the ensemble."""
        return {name: f"stacks.0.network.{name}" for name in self.params}

    def _asked(self) -> dict[str, Any]:
        """As of one learner, but for chunks, which members share."""
        return {name: value for name, value in super()._asked().items() if name != "chunk_size"}


def _cross_entropies(log_p: Tensor, targets: Tensor) -> Tensor:
    """``[T, K+1, N]`` of the mean prediction ``[T, K+1, N, C]``; of padding, something finite."""
    if not is_label(targets):
        return -(targets[:, None] * log_p).sum(-1)
    every = targets.clamp_min(0)[:, None].expand(log_p.shape[:-1])
    return negative_log_likelihoods(log_p, every)


def _calibration(log_p: Tensor, labels: Tensor, real: Tensor) -> Tensor:
    """``[T]``: expected calibration error of ``[T, N, C]`` over the targets that are no padding."""
    confidences, hits = log_p.exp().amax(-1), log_p.argmax(-1) == labels
    if real.all():
        return expected_calibration_error(confidences, hits)
    rows = zip(confidences, hits, real)
    return torch.stack([expected_calibration_error(c[kept], h[kept]) for c, h, kept in rows])
