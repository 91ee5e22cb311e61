"""The outer optimiser: made by a factory, and tried on a parameter of its own."""

from __future__ import annotations

import copy
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from metalearn.errors import SettingError
from metalearn.misfits import advise
from metalearn.models import Ensemble
from metalearn.trainers.loop.parameter_groups import ParameterGroups
from metalearn.trainers.members.trained import trained_parameters

__all__ = ["ModuleUpdate", "OptimizerFactory", "OuterUpdate", "make_optimizer"]

OptimizerFactory = Callable[[Iterable[Any]], torch.optim.Optimizer]
"""Makes an optimiser from parameters, or is a `ParameterGroups`, which sees their names too."""


def _advice(value: Any) -> str | None:
    name = type(value).__name__ if isinstance(value, torch.optim.Optimizer) else "Adam"
    known = isinstance(value, str | float | int | torch.optim.Optimizer)
    makes = f"functools.partial(torch.optim.{name}, lr=0.001)"
    return f"what makes one of the trainer's parameters is needed: {makes}" if known else None


advise(OptimizerFactory, _advice)


class OuterUpdate(Protocol):
    """How a step changes the parameters, whose ``grad`` is set."""

    optimizer: torch.optim.Optimizer
    base_rates: list[float]
    """Learning rate of each group of parameters, where the schedule's factor is 1."""

    def __call__(self, active: Tensor, factor: float) -> None:
        """Take the step of the networks that are ``active`` ``[M]``.

        ``factor`` is that of the schedule; the optimiser's rates are set to it already.
        """

    def decayed(
        self, value: Tensor, grad: Tensor, rate: Tensor, active: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Parameters and gradients ``[M, ...]`` that the optimiser is given, at its rate."""

    def moved(self, old: Tensor, new: Tensor, active: Tensor) -> Tensor:
        """Parameters ``[M, ...]`` after a step that would take them from old to new."""


class ModuleUpdate:
    """The step of a torch optimiser over a whole module."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.base_rates = [group["lr"] for group in optimizer.param_groups]

    def __call__(self, active: Tensor, factor: float) -> None:
        """Take the step."""
        self.optimizer.step()

    def decayed(
        self, value: Tensor, grad: Tensor, rate: Tensor, active: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Both as they are."""
        return value, grad

    def moved(self, old: Tensor, new: Tensor, active: Tensor) -> Tensor:
        """The new."""
        return new


def make_optimizer(
    factory: OptimizerFactory | None, module: nn.Module, beside: nn.Module | None = None
) -> torch.optim.Optimizer:
    """The optimiser that ``factory`` makes of a module's parameters; Adam with rate 1e-3 for None.

    What is learnt ``beside`` the module comes last. Parameters of members go by a member's names.

    Raises:
        SettingError: what it gives is no optimiser, torch refuses its settings, or it cannot take
            a plain step from a gradient (LBFGS wants a closure, SparseAdam sparse gradients).
    """
    try:
        named = trained_parameters(module, beside).items()
        if isinstance(factory, ParameterGroups):
            optimizer = factory((_own_name(module, name), value) for name, value in named)
        else:
            optimizer = (factory or _adam)(value for _, value in named)
    except SettingError:
        raise
    except (TypeError, ValueError) as error:
        reason = f"torch refuses these settings: {error}"
        raise SettingError("optimizer", _options(factory), reason) from error
    if not isinstance(optimizer, torch.optim.Optimizer):
        accepted = "what makes a torch.optim.Optimizer of parameters is needed"
        raise SettingError("optimizer", type(optimizer).__name__, accepted)
    for group in optimizer.param_groups:
        _try(optimizer, group["params"][0])
    return optimizer


def _try(optimizer: torch.optim.Optimizer, like: torch.Tensor) -> None:
    """Take one step of a parameter that is none of the module's."""
    name = type(optimizer).__name__
    probe = nn.Parameter(torch.zeros(2, 2, dtype=like.dtype, device=like.device))
    probe.grad = torch.ones_like(probe)
    trial = copy.copy(optimizer)
    trial.state = defaultdict(dict)
    trial.param_groups = [{**group, "params": [probe]} for group in optimizer.param_groups]
    try:
        trial.step()
    except Exception as error:
        reason = f"one that steps from gradients alone is needed ({str(error).splitlines()[0]})"
        raise SettingError("optimizer", name, reason) from error
    if not bool(torch.isfinite(probe).all()):
        reason = "settings that give a finite step are needed"
        raise SettingError("optimizer", _options_of(optimizer), reason)


def _adam(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=1e-3)


def _own_name(module: nn.Module, name: str) -> str:
    """What a parameter is called in a network; of members, without the stack that holds it."""
    if not isinstance(module, Ensemble):
        return name
    return re.sub(r"^stacks\.\d+\.network\.", "", name)


def _options(factory: object) -> object:
    """What an optimiser's factory was given, where it tells."""
    factory = factory.make if isinstance(factory, ParameterGroups) else factory
    return getattr(factory, "keywords", None) or getattr(factory, "__name__", "a factory")


def _options_of(optimizer: torch.optim.Optimizer) -> dict[str, object]:
    """The numbers of the first group of parameters."""
    group = optimizer.param_groups[0]
    return {k: v for k, v in group.items() if isinstance(v, int | float) and v is not False}
