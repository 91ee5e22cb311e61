"""Inner-loop optimisers as pure pairs of functions.

``init(params) -> state`` and ``update(grads, state, params) -> (updates, state)``; the caller adds
the updates. Nothing is written in place, so a pair works inside ``vmap`` and can be differentiated
through. The interface is that of optax.
Axes: K inner steps, R rows that are stacked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metalearn.core.checks import check_number
from metalearn.core.meta.hyperparameters import (
    Hyperparameters,
    LearningRate,
    check_learning_rate,
)
from metalearn.core.tree import flatten, leaves, tree_map, unflatten
from metalearn.errors import SettingError
from metalearn.signatures import checked

__all__ = ["InnerOptimizer", "adam", "adamw", "sgd"]


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
    weight_decay: Any = 0.0
    """Of an L2 term that the optimiser adds to the loss, or a decay of the parameters."""
    fused: Callable[[Any, Any, Any], tuple[Any, Any]] | None = None
    """`step` at once, where that saves passes over memory."""
    stack: Callable[[Any], InnerOptimizer] | None = None
    """The same optimiser for leaves ``[R, ...]``, with a value of what is learnt for each row."""
    match: Callable[[Sequence[str], Sequence[Tensor]], InnerOptimizer] | None = None
    """The same optimiser for parameters of these names and shapes."""
    schedule_lengths: frozenset[int] = frozenset()
    """How many steps have values of their own, where they have."""

    def step(self, grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
        """The params with their updates added, and the new state."""
        if self.fused is not None:
            return self.fused(grads, state, params)
        updates, state = self.update(grads, state, params)
        return tree_map(lambda p, u: p + u, params, updates), state

    def with_learnt(self, learnt: Any) -> InnerOptimizer:
        """The same optimiser with other values of what it learns."""
        return self if self.rebuild is None else self.rebuild(learnt)


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
    _check_unit("momentum", momentum)
    _check_not_negative("weight_decay", weight_decay)
    if nesterov and not isinstance(momentum, Tensor) and not momentum:
        raise SettingError("nesterov", nesterov, "a momentum above 0 is needed with it")
    values = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
    return _sgd(Hyperparameters(values), nesterov)


@checked
def adam(
    lr: LearningRate,
    *,
    betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
    eps: float | Tensor = 1e-8,
    eps_root: float | Tensor = 1e-16,
    weight_decay: float | Tensor = 0.0,
) -> InnerOptimizer:
    """Adam: update ``−lr · m̂ / (√(v̂ + eps_root) + eps)`` with bias-corrected moments m̂, v̂.

    They are those of ``g + weight_decay · θ``. ``eps_root`` keeps the derivative of the root finite
    where a gradient is exactly zero; without it the second order is NaN there.

    Args:
        lr: step size, as for `sgd`; what is a tensor is learnt, under the names ``lr``, ``beta1``,
            ``beta2``, ``eps``, ``eps_root``, ``weight_decay``.
        betas: decay of the first and second moment, each in [0, 1).
        eps: added to the root, at least 0.
        eps_root: added under the root, above 0.
        weight_decay: factor of the L2 term, at least 0.

    Raises:
        SettingError: a value outside its range.

    Source: Kingma and Ba, "Adam", ICLR 2015.
    """
    values = _adam_values(lr, betas, eps, eps_root, weight_decay)
    return _adam(Hyperparameters(values), decoupled=False)


@checked
def adamw(
    lr: LearningRate,
    *,
    betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
    eps: float | Tensor = 1e-8,
    eps_root: float | Tensor = 1e-16,
    weight_decay: float | Tensor = 0.01,
) -> InnerOptimizer:
    """AdamW: the update of Adam, of g alone, and −lr · weight_decay · θ beside it.

    Args:
        lr: as for `adam`.
        betas: as for `adam`.
        eps: as for `adam`.
        eps_root: as for `adam`.
        weight_decay: decay of the parameters, at least 0.

    Raises:
        SettingError: a value outside its range.

    Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019.
    """
    values = _adam_values(lr, betas, eps, eps_root, weight_decay)
    return _adam(Hyperparameters(values), decoupled=True)


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

    return _optimizer(given, lambda other: _sgd(other, nesterov), init, update, fused)


def _adam(given: Hyperparameters, *, decoupled: bool) -> InnerOptimizer:
    """`adam` or, with ``decoupled`` decay, `adamw`, without checks."""
    beta1, beta2, eps, eps_root, decay = map(
        given.of, ("beta1", "beta2", "eps", "eps_root", "weight_decay")
    )
    decays = given.uses("weight_decay")

    def init(params: Any) -> Any:
        return 0, tree_map(torch.zeros_like, params), tree_map(torch.zeros_like, params)

    def update(grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
        count, first, second = state
        values, spec = flatten(grads)
        rates = unflatten(given.rates(values, count), spec)
        count = count + 1
        correction1 = given.for_leaves(1 - given.values["beta1"] ** count)
        correction2 = given.for_leaves(1 - given.values["beta2"] ** count)
        if decays and not decoupled:
            grads = tree_map(lambda g, p: g + decay(p) * p, grads, params)
        first = tree_map(lambda m, g: beta1(g) * m + (1 - beta1(g)) * g, first, grads)
        second = tree_map(lambda v, g: beta2(g) * v + (1 - beta2(g)) * g * g, second, grads)

        def move(rate: float | Tensor, m: Tensor, v: Tensor, p: Tensor) -> Tensor:
            root = torch.sqrt(v / correction2(v) + eps_root(v))
            step: Tensor = -rate * (m / correction1(m)) / (root + eps(v))
            return step - rate * decay(p) * p if decays and decoupled else step

        return tree_map(move, rates, first, second, params), (count, first, second)

    return _optimizer(given, lambda other: _adam(other, decoupled=decoupled), init, update)


def _optimizer(
    given: Hyperparameters,
    make: Callable[[Hyperparameters], InnerOptimizer],
    init: Any,
    update: Any,
    fused: Any = None,
) -> InnerOptimizer:
    learnt = given.learnt
    learns = bool(leaves(learnt))

    def match(names: Sequence[str], values: Sequence[Tensor]) -> InnerOptimizer:
        return make(given.matched(names, values))

    return InnerOptimizer(
        init,
        update,
        learnt,
        (lambda other: make(given.replaced(other, stacked=given.stacked))) if learns else None,
        elementwise=True,
        weight_decay=given.values["weight_decay"],
        fused=fused,
        stack=(lambda other: make(given.replaced(other, stacked=True))) if learns else None,
        match=match if learns else None,
        schedule_lengths=given.schedule_lengths,
    )


def _adam_values(
    lr: LearningRate, betas: Any, eps: Any, eps_root: Any, weight_decay: Any
) -> dict[str, Any]:
    """The hyperparameters by name, in their ranges."""
    check_learning_rate(lr)
    beta1, beta2 = betas
    _check_unit("betas[0]", beta1)
    _check_unit("betas[1]", beta2)
    _check_not_negative("eps", eps)
    check_number("eps_root", eps_root, above=0, infinite=True)
    _check_not_negative("weight_decay", weight_decay)
    return {
        "lr": lr,
        "beta1": beta1,
        "beta2": beta2,
        "eps": eps,
        "eps_root": eps_root,
        "weight_decay": weight_decay,
    }


def _descend(rate: float | Tensor, direction: Tensor, param: Tensor) -> Tensor:
    """``param − rate · direction``, in one pass where the rate is a number."""
    if isinstance(rate, Tensor):
        return param - rate * direction
    return torch.add(param, direction, alpha=-rate)


def _check_unit(setting: str, value: Any) -> None:
    check_number(setting, value, least=0, below=1)


def _check_not_negative(setting: str, value: Any) -> None:
    accepted = "a number of at least 0 is needed"
    check_number(setting, value, least=0, infinite=True, accepted=accepted)
