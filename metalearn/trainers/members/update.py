"""An outer step of M stacked members with learning rates and weight decays of their own.

Axes: M members.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from metalearn.errors import SettingError
from metalearn.models import Ensemble, Stack
from metalearn.trainers.members.trained import trained_parameters

__all__ = ["MemberUpdate", "check_elementwise"]

_ELEMENTWISE = (
    "SGD", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "Adagrad", "Adadelta",
)  # fmt: skip


class MemberUpdate:
    """One torch optimiser over the stack, as if each member had one of its own.

    A step of these optimisers is elementwise and proportional to the learning rate, so it is taken
    with the largest rate η and scaled to each member's own: θ' = θ + (η_m / η)·Δθ. A weight decay
    λ_m is added to the gradient (λ_m·θ), or, for an optimiser whose decay is decoupled, shrinks the
    parameters first (θ·(1 − η_m·λ_m), Loshchilov and Hutter, "Decoupled Weight Decay
    Regularization", ICLR 2019).
    Members that are not active stay as they are to the last bit.

    Args:
        ensemble: whose parameters the optimiser steps.
        optimizer: of torch, elementwise.
        rates: η_m; None is the optimiser's own.
        decays: λ_m; None is the optimiser's own.
        beside: what is learnt beside the ensemble, parameters ``[M, ...]``, stepped as its rows.

    Raises:
        SettingError: an optimiser that would mix members; weight decay given twice; η_m or λ_m for
            an optimiser with several groups of parameters, each of which has its own.
    """

    def __init__(
        self,
        ensemble: Ensemble,
        optimizer: torch.optim.Optimizer,
        rates: Sequence[float] | None = None,
        decays: Sequence[float] | None = None,
        beside: nn.Module | None = None,
    ) -> None:
        check_elementwise(optimizer)
        self.ensemble, self.optimizer, self.beside = ensemble, optimizer, beside
        group, groups = optimizer.param_groups[0], len(optimizer.param_groups)
        if groups > 1 and (rates is not None or decays is not None):
            setting = "lr" if rates is not None else "weight_decay"
            accepted = f"one group is needed beside {setting}, of which members have their own"
            raise SettingError("optimizer.groups", groups, accepted)
        if decays is not None and group.get("weight_decay"):
            raise SettingError(
                "optimizer.weight_decay", group["weight_decay"], "0 is needed beside weight_decay"
            )
        shared = [float(group["lr"])] * len(ensemble)
        self.rates = torch.tensor(shared if rates is None else list(rates), dtype=torch.float64)
        self.base = float(self.rates.max())
        groups_rates = [group["lr"] for group in optimizer.param_groups]
        self.base_rates = groups_rates if rates is None else [self.base]
        self.scale = self.rates / self.base if self.base else torch.ones_like(self.rates)
        self.decays = None if decays is None else torch.tensor(list(decays), dtype=torch.float64)
        decoupled = isinstance(optimizer, torch.optim.AdamW)
        self.decoupled = decoupled or bool(group.get("decoupled_weight_decay"))

    def __call__(self, active: Tensor, factor: float) -> None:
        """Step the active members, each at ``factor`` times its own learning rate."""
        if len(self.optimizer.param_groups) == 1:  # several have rates of their own
            self.optimizer.param_groups[0]["lr"] = self.base * factor
        whole = bool(active.all()) and bool((self.scale == 1).all())
        with torch.no_grad():
            for rows, parameter in self._stacked() if self.decays is not None else []:
                assert parameter.grad is not None
                rates = self.rates[rows] * factor
                value, grad = self._decayed(parameter, parameter.grad, rates, active[rows], rows)
                parameter.copy_(value)
                parameter.grad.copy_(grad)
            every = {} if whole else trained_parameters(self.ensemble, self.beside)
            before = {p: p.detach().clone() for p in every.values()}
            self.optimizer.step()
            for rows, parameter in self._stacked() if before else []:
                old = before[parameter]
                parameter.copy_(_moved(old, parameter, self.scale[rows], active[rows]))

    def decayed(
        self, value: Tensor, grad: Tensor, rate: Tensor, active: Tensor
    ) -> tuple[Tensor, Tensor]:
        """With each member's own weight decay, where members have one.

        Both are ``[M, ...]`` of all members in their order; ``rate`` is η of now.
        """
        return self._decayed(value, grad, self.scale.to(rate) * rate, active, slice(None))

    def moved(self, old: Tensor, new: Tensor, active: Tensor) -> Tensor:
        """Each member's share of the step, ``[M, ...]``, of all members in their order."""
        return _moved(old, new, self.scale, active)

    def _decayed(
        self, value: Tensor, grad: Tensor, rates: Tensor, active: Tensor, rows: Tensor | slice
    ) -> tuple[Tensor, Tensor]:
        """What is given to the optimiser; ``rates`` η_m and ``active`` are of the rows alone."""
        if self.decays is None:
            return value, grad
        decay = self.decays[rows].to(rates) * active
        if self.decoupled:
            return value * _column(1 - rates * decay, value), grad
        return value, torch.addcmul(grad, _column(decay, value), value)

    def _stacked(self) -> list[tuple[Tensor, torch.nn.Parameter]]:
        """Parameters with a gradient, and which members their rows are."""
        rows: list[tuple[Sequence[int], nn.Module]] = [
            (stack.indices, stack) for stack in self.ensemble.stacks if isinstance(stack, Stack)
        ]
        if self.beside is not None:
            rows.append((range(len(self.ensemble)), self.beside))
        return [
            (torch.tensor(indices), parameter)
            for indices, module in rows
            for parameter in module.parameters()
            if parameter.grad is not None
        ]


def _moved(old: Tensor, new: Tensor, scale: Tensor, active: Tensor) -> Tensor:
    """Parameters ``[m, ...]`` of these members after a step of the largest rate."""
    scale = _column(scale, old)
    moved = torch.where(scale == 1, new, torch.lerp(old, new, scale))
    return torch.where(_column(active, old), moved, old)


def check_elementwise(optimizer: torch.optim.Optimizer) -> None:
    """Refuse optimisers whose step of one element depends on others: they would mix members."""
    name = type(optimizer).__name__
    if name not in _ELEMENTWISE:
        raise SettingError(
            "optimizer",
            name,
            f"members are stacked, so an elementwise one is needed: {', '.join(_ELEMENTWISE)}",
        )


def _column(values: Tensor, like: Tensor) -> Tensor:
    """``[M]`` as ``[M, 1, ...]``, on the device and, unless boolean, in the type of ``like``."""
    values = values.to(like.device, values.dtype if values.dtype == torch.bool else like.dtype)
    return values.view(-1, *(1,) * (like.dim() - 1))
