"""Clipping and the step of the outer optimiser as one function of tensors, so that it may compile.

The small parameters of a group of the optimiser lie in rows, one of each network, and so do their
gradients and what the optimiser keeps of them: a few operations for all, whatever their number.
Large ones are alone, so that they are not copied to lie side by side.

Axes: M networks; K numbers of a network in a bundle.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from metalearn.core.compilation import CompiledFunction
from metalearn.core.float64 import has_float64
from metalearn.core.tree import leaves
from metalearn.errors import CompilationError
from metalearn.models import Ensemble
from metalearn.trainers.loop.flat_groups import (
    Group,
    check_kinds,
    check_optimizer,
    group_of,
    is_kept,
    is_plain,
    options_of,
    places_of,
)
from metalearn.trainers.loop.outer_optimizer import OuterUpdate
from metalearn.trainers.loop.step import Proposal
from metalearn.trainers.members.population import Population
from metalearn.trainers.members.rows import above
from metalearn.trainers.members.trained import trained_parameters

__all__ = ["FlatUpdate", "agrees"]

T = TypeVar("T")

_LARGE = 2**10
"""Numbers of a parameter that are worth operations of their own, on a processor."""
_ALONE = 32
"""Parameters that have them at most: each is some sixty operations to be compiled."""
_ROUNDING = 8.0
"""Steps of the type, by which a parameter may differ beside a share of its own step."""
_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-2}


class _Bundle(NamedTuple):
    """Parameters of a group that are stepped as one."""

    where: list[int]

    def of(self, values: Sequence[T]) -> list[T]:
        """Those of all of the group's."""
        return [values[i] for i in self.where]

    def put(self, own: Sequence[T], values: list[T]) -> None:
        """The inverse."""
        for i, value in zip(self.where, own):
            values[i] = value


def _bundles_of(params: Sequence[Tensor]) -> list[_Bundle]:
    """Each large parameter, and all others together."""
    large = [i for i, p in enumerate(params) if p.device.type == "cpu" and p.numel() >= _LARGE]
    alone = sorted(large, key=lambda i: params[i].numel(), reverse=True)[:_ALONE]
    rest = [i for i in range(len(params)) if i not in alone]
    return [_Bundle([i]) for i in alone] + ([_Bundle(rest)] if rest else [])


class FlatUpdate:
    """What a step does after the gradient, for the same parameters and options each time.

    ``function`` takes gradients, losses ``[M]``, a learning rate for each group, which networks are
    trained ``[M]``, and then the tensors that change: parameters, and what the optimiser keeps. It
    gives the norms before clipping above the losses ``[2, M]``, the clipped gradients, and new
    values of what changes; it writes to nothing.

    Args:
        update: the step; its optimiser has kept something of each parameter already.
        population: which networks are clipped at which norm.
        params: those that are trained, by name.
        grads, losses: of a step; one without some of these gradients, or with others, is another.

    Raises:
        CompilationError: this update cannot be written so.
    """

    def __init__(
        self,
        update: OuterUpdate,
        population: Population,
        params: Mapping[str, Tensor],
        grads: Mapping[str, Tensor],
        losses: Tensor,
    ) -> None:
        rows = population.rows.in_rows(list(grads))
        if rows is None:
            raise CompilationError("members of several kinds have no rows in common")
        self.update, self.population = update, population
        self.clip, self.rows = population.clip, rows
        self.stacked = isinstance(population.module, Ensemble)
        self.names = list(grads)
        check_optimizer(update.optimizer)
        owners = trained_parameters(population.module, population.beside)
        self.groups = [
            group_of(update.optimizer, group, {n: owners[n] for n in grads}, params)
            for group in update.optimizer.param_groups
        ]
        self._bundles = [_bundles_of(group.params) for group in self.groups]
        self.places = [place for group in self.groups for place in places_of(group)]
        """What changes, in the order of the function's results."""
        like = next(iter(grads.values()))
        self.device = like.device
        self.exact = torch.float64 if has_float64(self.device) else torch.float32
        check_kinds(self.groups, grads)
        self._kinds = _kinds(grads, losses)
        self._changing = [(group.params, group.kept, group.counts) for group in self.groups]
        self._fixed = leaves(self._changing)
        self._active = torch.zeros(0, dtype=torch.bool)
        self.rates = [torch.zeros((), dtype=self.exact, device=self.device) for _ in self.groups]

    def trees(self, grads: Mapping[str, Tensor], losses: Tensor, factor: float) -> tuple[Any, ...]:
        """The arguments of `function` for a step; the last are the same each time."""
        for rate, base in zip(self.rates, self.update.base_rates):
            rate.fill_(base * factor)
        if not self._active.equal(self.population.active):
            self._active = self.population.active.clone()
            self._placed = self._active.to(self.device, copy=True)
        return list(grads.values()), losses, self.rates, self._placed, self._changing

    def proposal(
        self,
        code: CompiledFunction,
        grads: Mapping[str, Tensor],
        losses: Tensor,
        factor: float,
    ) -> Proposal:
        """The step that the compiled `function` gives."""
        given = self.trees(grads, losses, factor)
        found = code.run_leaves([*leaves(given[:-1]), *self._fixed])
        clipped, values = found[1 : len(grads) + 1], found[len(grads) + 1 :]
        return Proposal(found[0], dict(zip(grads, clipped)), self.places, list(values))

    def is_like(self, grads: Mapping[str, Tensor]) -> bool:
        """Whether gradients are of the same parameters, of which the same is kept."""
        if list(grads) != self.names or self.population.clip != self.clip:
            return False
        optimizer = self.update.optimizer
        count = len(optimizer.param_groups)
        return count == len(self.groups) and all(is_kept(optimizer, g) for g in self.groups)

    def is_ready(self, grads: Mapping[str, Tensor], losses: Tensor, factor: float) -> bool:
        """Whether this very step is one of them.

        Gradients and losses of the same types, laid out as before; an optimiser with the same
        options and without hooks, and rates above 0, by which is divided.
        """
        alike = _kinds(grads, losses) == self._kinds and is_plain(self.update.optimizer)
        return alike and all(
            rate * factor > 0 and options_of(group) == mine.options
            for rate, group, mine in zip(
                self.update.base_rates, self.update.optimizer.param_groups, self.groups
            )
        )

    def function(
        self,
        grads: list[Tensor],
        losses: Tensor,
        rates: list[Tensor],
        active: Tensor,
        fixed: list[Any],
    ) -> Any:
        """Norms and losses, clipped gradients, and new values of what changes."""
        by_name = dict(zip(self.names, grads))
        rows = [
            [self._flat([by_name[name] for name in bundle.of(group.names)]) for bundle in bundles]
            for group, bundles in zip(self.groups, self._bundles)
        ]
        each = [torch.linalg.vector_norm(flat, dim=1) for group in rows for flat in group]
        norms = torch.linalg.vector_norm(torch.stack(each), dim=0)
        factors = torch.ones_like(norms)
        if self.clip is not None:
            factors = (self.clip / (norms + 1e-6)).clamp(max=1.0)
        if self.stacked:
            factors = torch.where(active, factors, 0.0)
        column = factors[:, None]
        clipped: dict[str, Tensor] = {}
        new = []
        for group, bundles, flats, rate, now in zip(self.groups, self._bundles, rows, rates, fixed):
            flats = [flat * column for flat in flats]
            if self.stacked:
                flats = [torch.where(column == 0, 0.0, flat) for flat in flats]
            for bundle, flat in zip(bundles, flats):
                names, params = bundle.of(group.names), bundle.of(now[0])
                clipped |= dict(zip(names, self._cut(flat, params)))
            new.append(self._stepped(group, bundles, flats, rate, active, now))
        return above(norms, losses), [clipped[name] for name in self.names], new

    def _stepped(
        self,
        group: Group,
        bundles: list[_Bundle],
        flats: list[Tensor],
        rate: Tensor,
        active: Tensor,
        now: tuple[list[Tensor], dict[str, list[Tensor]], dict[str, list[Tensor]]],
    ) -> Any:
        """New values of a group, in the order of `places_of`."""
        params, kept, counts = now
        values, states, numbers = list(params), {k: list(v) for k, v in kept.items()}, {}
        for bundle, grad in zip(bundles, flats):
            own = bundle.of(params)
            old, grad = self.update.decayed(self._flat(own), grad, rate, active)
            state = {key: self._flat(bundle.of(row)) for key, row in kept.items()}
            state |= {key: row[0].to(self.exact) for key, row in counts.items()}
            value = _step_of(self.update.optimizer, group.options, old, grad, rate, state)
            bundle.put(self._cut(self.update.moved(old, value, active), own), values)
            for key, row in states.items():
                bundle.put(self._cut(state[key], own), row)
            numbers = {key: state[key] for key in counts}  # the same by every bundle
        steps = [[numbers[key].to(v.dtype) for v in row] for key, row in counts.items()]
        return values, list(states.values()), steps

    def _flat(self, values: Sequence[Tensor]) -> Tensor:
        return torch.cat([value.reshape(self.rows, -1) for value in values], dim=1)

    def _cut(self, flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
        """The inverse of `_flat`."""
        parts = torch.split(flat, [value.numel() // self.rows for value in like], dim=1)
        return [part.reshape(value.shape) for part, value in zip(parts, like)]


def agrees(found: Sequence[Tensor], before: Sequence[Tensor], now: Sequence[Tensor]) -> bool:
    """Whether a step from ``before`` to ``now`` is the one that was found, to rounding.

    A parameter may differ by a hundredth of its step and some roundings of its own.
    """
    for one, old, new in zip(found, before, now):
        new, kind = new.detach(), torch.finfo(new.dtype)
        share = _TOLERANCE[new.dtype] * (new - old).norm()
        rounding = _ROUNDING * kind.eps * new.norm() + kind.tiny * math.sqrt(new.numel())
        if not bool((one - new).norm() <= share + rounding):
            return False
    return True


class _NumbersOnce(TorchFunctionMode):
    """A block in which every number that is computed has a place in the program's memory.

    Else a compiler works bias corrections out anew wherever they are read: powers and roots for
    each few elements of a parameter, which took most of a step of Adam.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if isinstance(found, Tensor) and found.dim() == 0 and not found._is_view():
            return torch.as_strided(found, (), ())  # which the compiler reads from memory
        return found


def _kinds(grads: Mapping[str, Tensor], losses: Tensor) -> list[Any]:
    return [(v.stride(), v.dtype) for v in (*grads.values(), losses)]


def _step_of(
    optimizer: torch.optim.Optimizer,
    options: Mapping[str, Any],
    value: Tensor,
    grad: Tensor,
    rate: Tensor,
    state: dict[str, Tensor],
) -> Tensor:
    """A parameter after a step of torch's own code, in the form that reads no value; state too."""
    trial = copy.copy(optimizer)
    parameter = value.clone()
    parameter.grad = grad
    rate = rate.clone().requires_grad_()  # else SGD reads it
    own = {key: kept.clone() for key, kept in state.items()}
    trial.state = defaultdict(dict, {parameter: own})
    plain = {name: False for name in ("foreach", "fused", "capturable") if name in options}
    group = {**options, **plain, "differentiable": True, "params": [parameter], "lr": rate}
    trial.param_groups = [group]
    with _NumbersOnce():
        inspect.unwrap(type(optimizer).step)(trial)  # without its notes for torch's profiler
    if own.keys() != state.keys():
        raise CompilationError("the optimiser has kept nothing yet")
    state.update({key: kept.detach() for key, kept in own.items()})
    return parameter.detach()
