"""Adam and AdamW as inner optimisers.

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
    check_positive,
    check_unit_interval,
)
from metalearn.core.meta.inner_optimizers import InnerOptimizer, optimizer_of
from metalearn.core.tree import flatten, tree_map, unflatten
from metalearn.signatures import checked

__all__ = ["adam", "adamw"]


@outside_inference_mode
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


@outside_inference_mode
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

    return optimizer_of(given, lambda other: _adam(other, decoupled=decoupled), init, update)


def _adam_values(
    lr: LearningRate, betas: Any, eps: Any, eps_root: Any, weight_decay: Any
) -> dict[str, Any]:
    """The hyperparameters by name, in their ranges."""
    check_learning_rate(lr)
    beta1, beta2 = betas
    check_unit_interval("betas[0]", beta1)
    check_unit_interval("betas[1]", beta2)
    check_not_negative("eps", eps)
    check_positive("eps_root", eps_root)
    check_not_negative("weight_decay", weight_decay)
    return {
        "lr": lr,
        "beta1": beta1,
        "beta2": beta2,
        "eps": eps,
        "eps_root": eps_root,
        "weight_decay": weight_decay,
    }
