"""How a loop is put together from a module, an objective and an evaluator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from metalearn.core.checks import as_device
from metalearn.errors import SettingError
from metalearn.models import Ensemble
from metalearn.ranks import OneRank, Ranks
from metalearn.trainers.diagnostics import DiagnosticRunner
from metalearn.trainers.loop.average import WeightAverage
from metalearn.trainers.loop.callbacks import Diagnostics
from metalearn.trainers.loop.compiled_part import CompiledPart
from metalearn.trainers.loop.compiled_update import CompiledUpdate
from metalearn.trainers.loop.gradient import TYPES
from metalearn.trainers.loop.loop import Loop
from metalearn.trainers.loop.outer_optimizer import (
    ModuleUpdate,
    OptimizerFactory,
    OuterUpdate,
    make_optimizer,
)
from metalearn.trainers.loop.precision import GradientError
from metalearn.trainers.loop.protocols import Callback, Evaluator, Objective
from metalearn.trainers.loop.settings import LoopSettings
from metalearn.trainers.members.population import Population
from metalearn.trainers.members.update import MemberUpdate

__all__ = ["NothingToSee", "assemble", "check_values", "place"]


class NothingToSee:
    """The source of diagnostics of an objective that has none."""

    def diagnostic_kinds(self) -> dict[str, str]:
        """Nothing."""
        return {}


def place(
    module: nn.Module, device: torch.device | str, beside: nn.Module | None = None
) -> torch.device:
    """Move what is to be trained to a device, which is returned.

    Raises:
        SettingError: a module without parameters to train or their values, or no such device.
    """
    check_values(module)
    if not any(parameter.requires_grad for parameter in module.parameters()):
        accepted = "a parameter to train is needed (requires_grad=True)"
        raise SettingError("model", type(module).__name__, accepted)
    found = as_device(device)
    for part in (module, beside):
        if part is not None:
            part.to(found)
    return found


def check_values(module: nn.Module) -> None:
    """Refuse a network on torch's meta device, which no values can be moved from.

    Raises:
        SettingError: names it.
    """
    if any(parameter.is_meta for parameter in module.parameters()):
        accepted = "parameters with values are needed, not on the meta device (to_empty)"
        raise SettingError("model", type(module).__name__, accepted)


def assemble(
    module: nn.Module,
    objective: Objective,
    evaluator: Evaluator,
    *,
    settings: LoopSettings,
    optimizer: OptimizerFactory | None = None,
    rates: Sequence[float] | None = None,
    decays: Sequence[float] | None = None,
    population: Population | None = None,
    beside: nn.Module | None = None,
    source: Any = None,
    ranks: Ranks | None = None,
    callbacks: Sequence[Callback] = (),
    **rest: Any,
) -> Loop:
    """A loop over a module that has been put in its `place`.

    Args:
        module: an `Ensemble`, whose members never mix, or a single module.
        objective: what a step descends.
        evaluator: scores the parameters on the validation split.
        settings: length and cadence; ``clip`` and ``patience`` are each member's.
        optimizer: makes the outer optimiser from the parameters; Adam with rate 1e-3 by default.
        rates: learning rate of each member; None is the optimiser's.
        decays: weight decay of each member; None is the optimiser's.
        population: of the module's networks, where the objective knows it too; None makes one.
        beside: what is learnt beside the module, if anything; of members, ``[M, ...]`` each.
        source: what diagnostics look at; None where there is nothing to see.
        ranks: that share the training; None is one process.
        callbacks: that look on, beside the diagnostics.
        rest: schedule, stop, tracker, folder and device of the `Loop`.

    Raises:
        SettingError: an optimiser, diagnostic or number of ranks that does not fit.
    """
    made = make_optimizer(optimizer, module, beside)
    update: OuterUpdate = ModuleUpdate(made)
    if isinstance(module, Ensemble):
        update = MemberUpdate(module, made, rates, decays, beside)
    population = population or Population(
        module,
        clip=settings.clip,
        patience=settings.patience,
        larger_is_better=evaluator.larger_is_better,
        beside=beside,
    )
    seen: Any = source or NothingToSee()
    runner = DiagnosticRunner(settings.diagnostics, settings.diagnostics_every, seen)
    every: tuple[Callback, ...] = (*callbacks, Diagnostics(runner))
    average = None if settings.average is None else WeightAverage(population, settings.average)
    every = every if average is None else (*every, average)
    if settings.precision in TYPES:
        every = (*every, GradientError(TYPES[settings.precision], population.rows))
    every = _with_compiling(every, settings, ranks or OneRank())
    parts: Any = {
        "update": update, "population": population, "settings": settings, "beside": beside,
        "average": average,
    }  # fmt: skip
    return Loop(module, objective, evaluator, callbacks=every, ranks=ranks, **parts, **rest)


def _with_compiling(
    callbacks: tuple[Callback, ...], settings: LoopSettings, ranks: Ranks
) -> tuple[Callback, ...]:
    """First what compiles the update of a step, last what compiles its gradient, if wanted.

    Nothing is timed where all is to be the same each time.

    Raises:
        SettingError: it was asked for with several ranks, whose parts differ in size.
    """
    if ranks.count > 1 and settings.compile == "always":
        accepted = f"auto or never is needed with {ranks.count} ranks, whose steps are not compiled"
        raise SettingError("compile", "always", accepted)
    quiet = settings.deterministic or ranks.count > 1
    never = quiet and settings.compile == "auto"
    gradient = CompiledPart("never" if never else settings.compile)
    return CompiledUpdate(gradient), *callbacks, gradient
