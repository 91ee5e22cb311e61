"""The gradient of the query loss after adaptation with respect to the initial parameters.

How it is found is a *method* (`metalearn.core.meta.methods`), how tasks are batched is an *engine*
(`metalearn.core.meta.engines`); any method runs on any engine.
Axes: T tasks, K inner steps.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from metalearn.core.autodiff.backend import Values
from metalearn.core.checks import check_number
from metalearn.core.loss_checks import outside_inference_mode
from metalearn.core.meta.adaptation import Adaptation
from metalearn.core.meta.adapted_task import AdaptedTask, Implicit, TaskGradient
from metalearn.core.meta.engines import Engine, Execution
from metalearn.core.meta.inner_optimizers import InnerOptimizer
from metalearn.core.meta.methods import METHODS, OF_THE_END
from metalearn.core.meta.shared_part import LossInParts, with_shared_part
from metalearn.core.meta.step_weights import StepWeights, Weights, read_step_weights, weighted_steps
from metalearn.core.meta.task_checks import check_sets, choose_engine
from metalearn.core.meta.task_mean import MetaGradient, mean_gradient
from metalearn.core.tree import check_floating, leaves, match_names
from metalearn.errors import SettingError, check_whole
from metalearn.signatures import checked
from metalearn.types import LossFn, Params, TaskBatch

__all__ = ["GradientThroughAdaptation", "Method", "meta_gradient"]

Method = Literal["auto", "reverse", "mixed", "first_order", "implicit", "reptile"]
"""``reverse`` differentiates through the unrolled loop: exact; memory grows with K. ``mixed`` keeps
θ_0 … θ_K and recomputes one step at a time on the way back: exact; memory grows with the parameters
alone, for about a third more time. ``first_order`` takes the gradient at θ_K as if it were the one
at θ (FOMAML); that of step sizes goes through the steps, inner gradients being constants.
``implicit`` differentiates the minimum of a regularised inner loss (iMAML), to which step sizes and
weights of steps are nothing. ``reptile`` gives θ − θ_K, without a gradient of the query loss; what
does not adapt is not learnt. ``auto`` is ``reverse``."""
_NO_DERIVATIVE = r"derivative for '?(?:aten::)?(\w+)'? is not implemented"


@outside_inference_mode
@checked
def meta_gradient(
    loss_fn: LossFn,
    params: Params,
    tasks: TaskBatch,
    *,
    optimizer: InnerOptimizer,
    steps: int,
    method: Method = "auto",
    engine: Engine = "auto",
    chunk_size: int | None = None,
    frozen: str | Sequence[str] | None = None,
    implicit: Implicit | None = None,
    step_weights: StepWeights = None,
) -> MetaGradient:
    """Mean over tasks of d L(θ_K(θ), query) / dθ, where θ_K comes from K inner steps.

    Args:
        loss_fn: ``loss_fn(params, batch)``, the mean loss of a batch, a scalar.
        params: any pytree of floating-point tensors; those that the loss does not use have a
            gradient of zero, but it must use one.
        tasks: ``TaskBatch(support, query)``, every leaf ``[T, ...]``.
        optimizer: the inner optimiser, for example ``sgd(0.1)``. What it learns (step sizes and
            other hyperparameters given as tensors) has gradients in ``optimizer_grads``.
        steps: K, at least 0; K = 0 gives the ordinary gradient of the query loss.
        method: see `Method`; `metalearn.core.plan_meta_gradient` chooses by memory.
        engine: see `Engine`; all give the same gradient.
        chunk_size: tasks at a time; None takes all T at once. The result is the same.
        frozen: shell-style pattern, or several, over parameter names that the inner loop leaves
            alone; the meta-gradient still has entries for them.
        implicit: settings of that method; `Implicit()` by default.
        step_weights: w_0 … w_K of a multi-step loss Σ_k w_k · L(θ_k, query) in the place of
            L(θ_K, query): numbers, or a tensor ``[K+1]``; query losses of weight 0 are not
            computed. First order takes the gradient of each at its θ_k.

    Returns:
        ``MetaGradient``, detached.

    Raises:
        SettingError: an unknown method or engine, values out of range, task leaves whose leading
            axes differ, sets without samples; a loss that is not a scalar or in which no parameter
            has a part.
        VectorizationError: a loss that vmap cannot take and ``engine="loop"`` can.

    Sources: Finn, Abbeel and Levine, "Model-Agnostic Meta-Learning", ICML 2017; Antoniou, Edwards
    and Storkey, "How to Train Your MAML", ICLR 2019 (multi-step loss).
    """
    adaptation = Adaptation(loss_fn, optimizer, steps, frozen)
    program = GradientThroughAdaptation.of(adaptation, params, method, implicit, step_weights)
    adaptation.check_schedule(params)
    chosen = choose_engine(engine, optimizer.elementwise)
    check_sets(tasks, steps)
    return mean_gradient(program, params, tasks, engine=chosen, chunk_size=chunk_size)


@dataclass(frozen=True)
class GradientThroughAdaptation:
    """A `TaskProgram`: the gradient of the query loss after adaptation, by a method."""

    adaptation: Adaptation
    method: str
    implicit: Implicit
    weights: Weights

    @classmethod
    def of(
        cls,
        adaptation: Adaptation,
        params: Params,
        method: Method,
        implicit: Implicit | None,
        step_weights: StepWeights,
    ) -> GradientThroughAdaptation:
        """Checked: all that does not depend on tasks."""
        check_floating(params, "params")
        if method not in get_args(Method):
            raise SettingError("method", method, f"one of {', '.join(get_args(Method))} is needed")
        fixed = match_names(params, adaptation.frozen, "frozen")
        implicit = implicit or Implicit()
        weights = read_step_weights(step_weights, adaptation.steps)
        if method in OF_THE_END:
            _check_way(method, adaptation.optimizer, step_weights)
        if method == "implicit":
            _check_implicit(implicit, fixed, adaptation.optimizer)
        if method == "reptile":
            _check_reptile(adaptation, fixed)
        constant = adaptation.detached()
        return cls(constant, "reverse" if method == "auto" else method, implicit, weights)

    def shortened(self, method: Method, steps: int) -> GradientThroughAdaptation:
        """The same by a method and with other inner steps, for trials.

        The query losses of all steps count, unless that of the last alone did.
        """
        alone = weighted_steps(self.weights) == [self.adaptation.steps]
        weights = (0.0,) * steps + (1.0,) if alone else (1.0,) * (steps + 1)
        adaptation = replace(self.adaptation, steps=steps)
        method_name = "reverse" if method == "auto" else method
        return replace(self, adaptation=adaptation, method=method_name, weights=weights)

    @property
    def learnt(self) -> Any:
        """What the inner optimiser learns."""
        return self.adaptation.optimizer.learnt

    @property
    def stackable(self) -> bool:
        """Whether `with_learnt` takes a value for each row."""
        return self.adaptation.optimizer.stack is not None

    def with_learnt(self, learnt: Any, *, stacked: bool = False) -> GradientThroughAdaptation:
        """See `TaskProgram`."""
        optimizer = self.adaptation.optimizer
        if stacked and optimizer.stack is not None:
            optimizer = optimizer.stack(learnt)
        else:
            optimizer = optimizer.with_learnt(learnt)
        return replace(self, adaptation=replace(self.adaptation, optimizer=optimizer))

    def __call__(
        self, params: Params, values: Values, task: TaskBatch, execution: Execution
    ) -> TaskGradient:
        """See `TaskProgram`."""
        loop = self.adaptation.loop(params, execution.backend, execution.lift, lead=execution.lead)
        given = AdaptedTask(loop, values, *task, self.weights, self.implicit)
        try:
            method, whole = METHODS[self.method], self.adaptation.loss
            if isinstance(whole, LossInParts) and self.adaptation.optimizer.support_batch is None:
                return with_shared_part(whole, params, given, method, execution.lift)
            return method(given)
        except RuntimeError as error:  # NotImplementedError is one
            missing = re.search(_NO_DERIVATIVE, str(error))
            if missing is None:
                raise
            raise SettingError(
                "method",
                self.method,
                f"torch has no derivative of {missing[1]}, which second derivatives of this loss "
                "need; method='first_order' (maml.first_order=true) takes none",
            ) from error


def _check_way(method: str, optimizer: InnerOptimizer, step_weights: StepWeights) -> None:
    """Refuse what is learnt by derivatives of the way to the end."""
    if leaves(optimizer.learnt):
        accepted = (
            f"method={method} needs an inner optimiser that learns nothing: its gradient does not "
            "go through the way there"
        )
        raise SettingError("optimizer", "hyperparameters that are tensors", accepted)
    if step_weights is not None:
        accepted = f"method={method} needs None: it knows the end of adaptation alone"
        raise SettingError("step_weights", step_weights, accepted)


def _check_reptile(adaptation: Adaptation, fixed: Sequence[bool]) -> None:
    """Refuse what would leave parameters as they are."""
    if any(fixed):
        accepted = "None is needed with method=reptile: what does not adapt would not be learnt"
        raise SettingError("frozen", adaptation.frozen, accepted)
    if not adaptation.steps:
        accepted = "at least 1 is needed with method=reptile, which follows the inner loop"
        raise SettingError("steps", 0, accepted)


def _check_implicit(implicit: Implicit, fixed: Sequence[bool], optimizer: InnerOptimizer) -> None:
    if optimizer.weight_decay:
        raise SettingError(
            "weight_decay", optimizer.weight_decay, "method=implicit needs 0: it has a term itself"
        )
    check_number("regularization", implicit.regularization, above=0)
    check_whole("iterations", implicit.iterations, 1)
    check_number("damping", implicit.damping, least=0)
    if all(fixed):
        raise SettingError("frozen", "every parameter", "method=implicit needs one that adapts")
