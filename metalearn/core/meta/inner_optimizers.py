"""Inner-loop optimisers as pure pairs of functions.

``init(params) -> state`` and ``update(grads, state, params) -> (updates, state)``; the caller adds
the updates. Nothing is written in place, so a pair works inside ``vmap`` and can be differentiated
through. The interface is that of optax.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metalearn.core.checks import check_number
from metalearn.core.tree import flatten, leaf_names, leaves, tree_map, unflatten
from metalearn.errors import SettingError
from metalearn.signatures import checked

__all__ = ["InnerOptimizer", "adam", "sgd"]


@dataclass(frozen=True)
class InnerOptimizer:
    """A pure optimiser: ``init(params)`` and ``update(grads, state, params)``.

    What is learnt beside the parameters, for example step sizes, stands in ``learnt``;
    ``rebuild(learnt)`` is the same optimiser with other values. ``elementwise`` says that an
    element of the update depends on nothing but the same element of gradient, state and parameter,
    so that leaves may carry a task axis in front.
    """

    init: Callable[[Any], Any]
    update: Callable[[Any, Any, Any], tuple[Any, Any]]
    learnt: Any = ()
    rebuild: Callable[[Any], InnerOptimizer] | None = None
    elementwise: bool = False
    weight_decay: float = 0.0
    """Of an L2 term that the optimiser adds to the loss by itself."""
    fused: Callable[[Any, Any, Any], tuple[Any, Any]] | None = None
    """`step` at once, where that saves passes over memory."""

    def step(self, grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
        """The params with their updates added, and the new state."""
        if self.fused is not None:
            return self.fused(grads, state, params)
        updates, state = self.update(grads, state, params)
        return tree_map(lambda p, u: p + u, params, updates), state

    def with_learnt(self, learnt: Any) -> InnerOptimizer:
        """The same optimiser with other values of what it learns."""
        return self if self.rebuild is None else self.rebuild(learnt)


LearningRate = float | Tensor | Any
"""A number, a scalar tensor, or a tree of tensors: one for each leaf that adapts (Meta-SGD)."""


@checked
def sgd(lr: LearningRate, *, momentum: float = 0.0, weight_decay: float = 0.0) -> InnerOptimizer:
    """Gradient descent: ``m ← momentum · m + (g + weight_decay · θ)``, update ``−lr · m``.

    Args:
        lr: step size, above 0; a scalar tensor, or a tree of tensors with one leaf for each
            parameter that adapts (Li et al., "Meta-SGD", 2017), is learnt: `meta_gradient` gives
            its gradient.
        momentum: in [0, 1); the convention of ``torch.optim.SGD`` without dampening.
        weight_decay: factor of the L2 term, at least 0.

    Raises:
        SettingError: a value outside its range; tensors are held to the same ranges, trees of step
            sizes to finite ones.
    """
    _check_lr(lr)
    _check_unit("momentum", momentum)
    _check_not_negative("weight_decay", weight_decay)
    return _sgd(lr, momentum, weight_decay)


def _sgd(lr: LearningRate, momentum: float, weight_decay: float) -> InnerOptimizer:
    """`sgd` without checks: step sizes that are learnt may cross 0."""

    def init(params: Any) -> Any:
        return tree_map(torch.zeros_like, params) if momentum else ()

    def direction(grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
        if weight_decay:
            grads = tree_map(lambda g, p: g + weight_decay * p, grads, params)
        if momentum:
            state = grads = tree_map(lambda m, g: momentum * m + g, state, grads)
        return grads, state

    def update(grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
        steepest, state = direction(grads, state, params)
        return tree_map(lambda rate, m: -rate * m, _rates(lr, steepest), steepest), state

    def fused(grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
        steepest, state = direction(grads, state, params)
        return tree_map(_descend, _rates(lr, steepest), steepest, params), state

    def rebuild(learnt: Any) -> InnerOptimizer:
        return _sgd(learnt, momentum, weight_decay)

    return _optimizer(init, update, lr, rebuild, weight_decay, fused)


@checked
def adam(
    lr: LearningRate,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    eps_root: float = 1e-16,
) -> InnerOptimizer:
    """Adam: update ``−lr · m̂ / (√(v̂ + eps_root) + eps)`` with bias-corrected moments m̂, v̂.

    ``eps_root`` keeps the derivative of the root finite where a gradient is exactly zero; without
    it the second order is NaN there.

    Args:
        lr: step size, as for `sgd`.
        betas: decay of the first and second moment, each in [0, 1).
        eps: added to the root, at least 0.
        eps_root: added under the root, above 0.

    Raises:
        SettingError: a value outside its range.

    Source: Kingma and Ba, "Adam", ICLR 2015.
    """
    _check_lr(lr)
    beta1, beta2 = betas
    _check_unit("betas[0]", beta1)
    _check_unit("betas[1]", beta2)
    _check_not_negative("eps", eps)
    check_number("eps_root", eps_root, above=0, infinite=True)
    return _adam(lr, (beta1, beta2), eps, eps_root)


def _adam(
    lr: LearningRate, betas: tuple[float, float], eps: float, eps_root: float
) -> InnerOptimizer:
    """`adam` without checks: step sizes that are learnt may cross 0."""
    beta1, beta2 = betas

    def init(params: Any) -> Any:
        return 0, tree_map(torch.zeros_like, params), tree_map(torch.zeros_like, params)

    def update(grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
        count, first, second = state
        count = count + 1
        first = tree_map(lambda m, g: beta1 * m + (1 - beta1) * g, first, grads)
        second = tree_map(lambda v, g: beta2 * v + (1 - beta2) * g * g, second, grads)
        correction1, correction2 = 1 - beta1**count, 1 - beta2**count

        def move(rate: float | Tensor, m: Tensor, v: Tensor) -> Tensor:
            root = torch.sqrt(v / correction2 + eps_root)
            step: Tensor = -rate * (m / correction1) / (root + eps)
            return step

        return tree_map(move, _rates(lr, first), first, second), (count, first, second)

    def rebuild(learnt: Any) -> InnerOptimizer:
        return _adam(learnt, betas, eps, eps_root)

    return _optimizer(init, update, lr, rebuild)


def _optimizer(
    init: Any,
    update: Any,
    lr: LearningRate,
    rebuild: Any,
    weight_decay: float = 0.0,
    fused: Any = None,
) -> InnerOptimizer:
    learnt = () if isinstance(lr, int | float) else lr
    return InnerOptimizer(
        init, update, learnt, rebuild if learnt is lr else None, True, weight_decay, fused
    )


def _descend(rate: float | Tensor, direction: Tensor, param: Tensor) -> Tensor:
    """``param − rate · direction``, in one pass where the rate is a number."""
    if isinstance(rate, Tensor):
        return param - rate * direction
    return torch.add(param, direction, alpha=-rate)


def _rates(lr: LearningRate, grads: Any) -> Any:
    """A step size for each leaf, as a tree like ``grads``."""
    values, spec = flatten(grads)
    rates = [lr] * len(values) if isinstance(lr, int | float | Tensor) else leaves(lr)
    if len(rates) != len(values):
        raise SettingError("lr", f"{len(rates)} tensors", f"{len(values)} are needed, one a leaf")
    return unflatten(rates, spec)


def _check_lr(lr: LearningRate) -> None:
    """A number, or a scalar tensor, above 0; in a tree, whose rates are directions too, finite."""
    if isinstance(lr, Tensor):
        if lr.ndim:
            raise SettingError("lr", list(lr.shape), "a number or a scalar tensor is needed")
        check_number("lr", lr, above=0)
    elif isinstance(lr, int | float):
        check_number("lr", lr, above=0)
    elif not leaves(lr) or not all(isinstance(rate, Tensor) for rate in leaves(lr)):
        raise SettingError("lr", lr, "a number, a scalar tensor or a tree of tensors is needed")
    else:
        for name, rate in zip(leaf_names(lr), leaves(lr)):
            check_number(f"lr[{name}]", rate, shape=None)


def _check_unit(setting: str, value: Any) -> None:
    check_number(setting, value, least=0, below=1)


def _check_not_negative(setting: str, value: Any) -> None:
    accepted = "a number of at least 0 is needed"
    check_number(setting, value, least=0, infinite=True, accepted=accepted)
