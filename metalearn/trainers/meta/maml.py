"""MAML: the network's parameters are the starting point of an inner loop.

Axes: T tasks, K inner steps, N samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from metalearn.core import (
    Adaptation,
    Eager,
    Engine,
    InnerOptimizer,
    MetaGradient,
    Plan,
    along_adaptation,
    task_meta_gradients,
)
from metalearn.core._functorch import transforms_active
from metalearn.core.autodiff.backend import Functional
from metalearn.core.checks import check_pair
from metalearn.core.loss_checks import check_reached, unused_parameters
from metalearn.core.memory import is_out_of_memory
from metalearn.core.tree import match_names
from metalearn.errors import SettingError, check_whole
from metalearn.signatures import checked
from metalearn.trainers.meta.learnt import learn_in_adaptation
from metalearn.trainers.meta.planning import plan_of_adaptation, planned, what_fits
from metalearn.trainers.meta.protocol import Learner
from metalearn.trainers.meta.settings import MAML
from metalearn.trainers.meta.task_losses import plan_of_one, purely
from metalearn.types import Batch, LossFn, Params, TaskBatch

__all__ = ["MetaLearner"]


class MetaLearner(Learner):
    """A module whose parameters are the starting point of adaptation.

    Args:
        module: maps inputs ``[N, ...]`` to logits ``[N, C]`` or values ``[N, outputs]``; or an
            `Ensemble` of M such modules.
        maml: how it adapts.
        kind: ``"classification"`` (cross-entropy, accuracy) or ``"regression"`` (mean squared
            error).
        first_order: True is ``maml.first_order``; None leaves it to ``maml``.

    Raises:
        SettingError: a module with layers that cannot work, by name, or without parameters to
            learn; an unknown kind; a pattern in ``maml.frozen`` that matches no parameter.

    Source: Finn, Abbeel and Levine, "Model-Agnostic Meta-Learning", ICML 2017.
    """

    @checked
    def __init__(
        self,
        module: nn.Module,
        maml: MAML | None = None,
        *,
        kind: Literal["classification", "regression"] = "classification",
        first_order: bool | None = None,
    ) -> None:
        maml = maml or MAML()
        self.maml = maml if first_order is None else replace(maml, first_order=first_order)
        super().__init__(module, kind=kind, norm=maml.norm, engine=maml.engine)
        if not self.adapting():
            accepted = "a pattern that leaves a parameter to adapt is needed"
            raise SettingError("maml.frozen", self.maml.frozen, accepted)
        self.optimizer = learn_in_adaptation(self, self.maml, self.adapting(), self.stepwise())
        self.inner_steps, self.eval_steps = self.maml.inner_steps, self.maml.eval_steps
        self.descended: LossFn = self.loss

    @checked
    def loss(self, params: Params, batch: Batch) -> Tensor:
        """Mean loss of a batch ``(inputs, targets)`` at given parameters, a scalar.

        Targets of a classification are int64 class indices ``[N]`` or probabilities ``[N, C]``. An
        index of −100 is padding: the mean is over the others, and so are scores. (Where the module
        normalises with the batch at hand, padding inputs take part in its statistics.)

        Raises:
            SettingError: targets that do not fit the outputs.
        """
        inputs, targets = check_pair(batch)
        return self.criterion(self.apply(params, self.buffers, inputs), targets)

    @checked
    def unused_parameters(self, batch: Batch) -> list[str]:
        """Names of parameters that have no part in the loss of a batch (of the first member)."""
        return unused_parameters(self.loss, self.network.own(self.network.rows()[0]), batch)

    def unused_in(self, task: TaskBatch) -> list[str]:
        """Those of the loss of the query set, and step sizes of such parameters alone."""
        unused, learnt = self.unused_parameters(task.query), self.network.learnt
        return unused if learnt is None else [*unused, *learnt.rates_of(unused)]

    def sample_loss(self, params: Params, batch: Batch) -> Tensor:
        """Loss of a batch of one sample; 0 for padding, of which `loss` has no mean."""
        inputs, targets = check_pair(batch)
        return self.criterion.of_sample(self.apply(params, self.buffers, inputs), targets)

    def gradient(self, params: Params, tasks: TaskBatch, *, step: int = 0) -> MetaGradient:
        """The meta-gradient; see `metalearn.core.meta_gradient`.

        By ``plan`` where there is one, else as ``maml`` says.

        Raises:
            SettingError: targets that do not fit; see `check`.
            MemoryError: it ran out; the message says what would fit.
        """
        self.check(tasks)
        settings = self.gradient_settings(step)
        try:
            with self.refusing_inputs(tasks):
                taken = partial(self.network.adaptation_gradient, self.descended, **settings)
                return purely(self, taken, params, tasks)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        row, plan = self.network.own(self.network.rows()[0]), self.plan
        raise MemoryError(what_fits(self.maml, self.loss, row, tasks, plan=plan, settings=settings))

    def task_gradients(self, params: Params, tasks: TaskBatch, *, step: int = 0) -> Params:
        """The meta-gradient of each task at one network's parameters, leaves ``[T, ...]``."""
        settings = {**self.gradient_settings(step), "optimizer": self.optimizer_at(params)}
        del settings["chunk_size"]
        own, learnt = self.network.own(params), self.network.learnt
        grads, rates = task_meta_gradients(self.descended, own, tasks, with_learnt=True, **settings)
        return grads if learnt is None else {**grads, **learnt.gradients(rates)}

    def fit(self, params: Params, support: Batch, *, steps: int | None = None) -> Iterator[Params]:
        """θ_0 … θ_K of one network on one task's support set."""
        start, adaptation = self.scored(params, steps)
        backend = Functional() if transforms_active() else Eager()
        for point in adaptation.trajectory(start, support, backend=backend):
            yield point.params

    def predict(self, state: Params, inputs: Tensor) -> Tensor:
        """Outputs at the parameters of a state."""
        found: Tensor = self.apply(state, self.buffers, inputs)
        return found

    def as_module(self, module: nn.Module, state: Params) -> nn.Module:
        """The module with the parameters of a state."""
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if name in state:  # else it is not trained, or there under its first name
                    parameter.copy_(state[name])
                parameter.grad = None
        return module

    def along(
        self,
        visit: Callable[[Params, Batch, Batch], Any],
        params: Params,
        tasks: TaskBatch,
        *,
        steps: int | None,
        alone: bool,
    ) -> Any:
        """See `Learner.along`: all tasks take their inner steps at once."""
        (start, how), (engine, chunk) = self.scored(params, steps), self.batching
        return along_adaptation(
            visit,
            how.loss,
            start,
            tasks,
            optimizer=how.optimizer,
            steps=how.steps,
            engine="vmap" if engine != "loop" and alone else engine,
            chunk_size=chunk,
            frozen=how.frozen,
        )

    @checked
    def prepare(
        self,
        tasks: TaskBatch,
        task_count: int,
        *,
        deterministic: bool = False,
        check: Callable[[], None] = lambda: None,
    ) -> Plan:
        """Decide what ``maml`` leaves to ``"auto"``, by trials on ``tasks``; kept in ``plan``.

        Arguments are those of `Learner.prepare`.

        Raises:
            SettingError: nothing fits ``maml.memory``.
        """
        check_whole("task_count", task_count, 1)
        self.check(tasks)

        def loss(params: Params, batch: Batch) -> Tensor:
            check()
            return self.loss(params, batch)

        count = self.network.count or 1
        plan = plan_of_adaptation(
            self.maml,
            loss,
            self.network.own(self.network.rows()[0]),
            tasks,
            task_count=task_count * count,
            settings=self.trial_settings(),
            deterministic=deterministic,
        )
        self.plan = plan_of_one(plan, self.network)
        return self.plan

    settle = prepare
    """The name of `prepare` in earlier versions, which goes on working."""

    def gradient_settings(self, step: int = 0) -> dict[str, Any]:
        """Keyword arguments of `metalearn.core.meta_gradient` for a training step.

        By ``plan`` where there is one.
        """
        return {
            "optimizer": self.optimizer,
            "steps": self.maml.inner_steps,
            "method": self.maml.wanted_method,
            "engine": "loop" if self.network.only_loop else self.maml.engine,
            "chunk_size": self.maml.chunk_size,
            "frozen": self.frozen,
            "implicit": self.maml.implicit,
            **planned(self.plan),
        }

    def trial_settings(self) -> dict[str, Any]:
        """Those of the training step that takes most, for plans; by default of the first."""
        return self.gradient_settings()

    def adaptation(self, start: Params, steps: int | None = None) -> Adaptation:
        """K inner steps from a starting point; None takes ``maml.eval_steps``."""
        count, loss = self.count_steps(steps), self.inner_loss(start)
        return Adaptation(loss, self.optimizer_at(start), count, self.frozen)

    def scored(self, params: Params, steps: int | None) -> tuple[Params, Adaptation]:
        """θ_0, and the inner steps from there, as states and scores have them."""
        return self.network.own(params), self.adaptation(params, steps)

    def optimizer_at(self, params: Params) -> InnerOptimizer:
        """The inner optimiser of one network with what is learnt among its parameters."""
        learnt = self.network.learnt
        if learnt is None or not learnt.hyperparameters:
            return self.optimizer
        return self.optimizer.with_learnt(learnt.tree(params))

    @property
    def frozen(self) -> str | Sequence[str] | None:
        """Patterns over names of parameters that the inner loop leaves alone."""
        given, learnt = self.maml.frozen, self.network.learnt
        if learnt is None or not learnt.others:
            return given
        return [*([given] if isinstance(given, str) else given or ()), *learnt.others]

    def adapting(self) -> list[str]:
        """Names of the parameters that the inner loop changes."""
        own = self.network.own(self.params)
        fixed = match_names(own, self.frozen, "maml.frozen")
        return [name for name, still in zip(own, fixed) if not still]

    def stepwise(self) -> list[str]:
        """Names of those that have a learnt value in each inner step, in place of adaptation."""
        return []

    def inner_loss(self, start: Params) -> LossFn:
        """What adaptation descends: the loss, and the implicit method's pull towards the start."""
        if self.maml.method != "implicit":
            return self.loss

        def pulled(params: Params, batch: Batch) -> Tensor:
            moved = torch.stack([((params[n] - p) ** 2).sum() for n, p in start.items()]).sum()
            loss = check_reached(self.loss(params, batch))  # which the pull would hide
            return loss + 0.5 * self.maml.regularization * moved

        return pulled

    @property
    def asked(self) -> Mapping[str, Any]:
        """Engine, method, memory and, of one network, chunk size; members share chunks."""
        maml = self.maml
        asked = {"engine": maml.engine, "method": maml.wanted_method, "memory": maml.memory}
        return asked if self.network.count else {**asked, "chunk_size": maml.chunk_size}

    @property
    def batching(self) -> tuple[Engine, int | None]:
        """As gradients are taken."""
        settings = self.gradient_settings()
        return settings["engine"], settings["chunk_size"]
