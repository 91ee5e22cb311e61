"""Gradient descent as an inner optimiser, with momentum and weight decay.

Axes: K inner steps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from metalearn.core.loss_checks import outside_inference_mode
from metalearn.core.meta.hyperparameters import (
    Hyperparameters,
    LearningRate,
    check_learning_rate,
    check_not_negative,
    check_unit_interval,
)
from metalearn.core.meta.inner_optimizers import InnerOptimizer, optimizer_of
from metalearn.core.tree import flatten, tree_map, unflatten
from metalearn.errors import SettingError
from metalearn.signatures import checked

__all__ = ["sgd"]


@outside_inference_mode
@checked
def sgd(
    lr: LearningRate,
    *,
    momentum: float | Tensor = 0.0,
    nesterov: bool = False,
    weight_decay: float | Tensor = 0.0,
) -> InnerOptimizer:
    """Gradient descent: ``m ← momentum · m + d`` with ``d = g + weight_decay · θ``, update −lr · m.

    Hyperparameters that are tensors are learnt: `meta_gradient` gives their gradients.

    Args:
        lr: step size, above 0: a number, a scalar tensor, or a tensor ``[K]`` with one for each
            inner step; or a tree of tensors with one leaf for each parameter that adapts, which is
            a scalar, ``[K]``, of the parameter's shape (Li et al., "Meta-SGD", 2017), or of that
            with K in front. Where all parameters are vectors of K elements and so are the rates,
            these are of the elements. Steps after the K-th take the last value.
        momentum: in [0, 1), a number or a scalar tensor; the convention of ``torch.optim.SGD``
            without dampening.
        nesterov: update −lr · (d + momentum · m) in place of −lr · m.
        weight_decay: factor of the L2 term, at least 0, a number or a scalar tensor.

    Raises:
        SettingError: a value outside its range; tensors are held to the same ranges, trees of step
            sizes to finite ones; ``nesterov`` without momentum.
    """
    check_learning_rate(lr)
    check_unit_interval("momentum", momentum)
    check_not_negative("weight_decay", weight_decay)
    if nesterov and not isinstance(momentum, Tensor) and not momentum:
        raise SettingError("nesterov", nesterov, "a momentum above 0 is needed with it")
    values = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
    return _sgd(Hyperparameters(values), nesterov)


def _sgd(given: Hyperparameters, nesterov: bool) -> InnerOptimizer:
    """`sgd` without checks: what is learnt may leave its range."""
    momentum, decay, counts = given.of("momentum"), given.of("weight_decay"), given.has_schedule
    has_momentum, decays = given.uses("momentum"), given.uses("weight_decay")

    def init(params: Any) -> Any:
        state = tree_map(torch.zeros_like, params) if has_momentum else ()
        return (0, state) if counts else state

    def direction(grads: Any, state: Any, params: Any) -> tuple[Any, Any, Any]:
        """The direction, the step sizes, and the new state."""
        count, memory = state if counts else (0, state)
        values, spec = flatten(grads)
        rates = unflatten(given.rates(values, count), spec)
        if decays:
            grads = tree_map(lambda g, p: g + decay(p) * p, grads, params)
        if has_momentum:
            memory = tree_map(lambda m, g: momentum(g) * m + g, memory, grads)
            if nesterov:
                grads = tree_map(lambda g, m: g + momentum(g) * m, grads, memory)
            else:
                grads = memory
        return grads, rates, (count + 1, memory) if counts else memory

    def update(grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
        steepest, rates, state = direction(grads, state, params)
        return tree_map(lambda rate, d: -rate * d, rates, steepest), state

    def fused(grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
        steepest, rates, state = direction(grads, state, params)
        return tree_map(_descend, rates, steepest, params), state

    made = lambda other: _sgd(other, nesterov)  # noqa: E731
    return optimizer_of(given, made, init, update, fused, linear=True)


def _descend(rate: float | Tensor, direction: Tensor, param: Tensor) -> Tensor:
    """``param − rate · direction``, in one pass where the rate is a number."""
    if isinstance(rate, Tensor):
        return param - rate * direction
    return torch.add(param, direction, alpha=-rate)
