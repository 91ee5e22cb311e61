"""The groups of an outer optimiser whose step can be taken of all parameters at once.

Axes: none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from metalearn.errors import CompilationError

__all__ = [
    "Group",
    "check_kinds",
    "check_optimizer",
    "group_of",
    "is_kept",
    "is_plain",
    "options_of",
    "places_of",
]

_KINDS = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)
"""Whose steps torch writes without reading a value, for derivatives through them."""
_TYPES = torch.float32, torch.float64


@dataclass
class Group:
    """The parameters of a group that have gradients, with what the optimiser keeps of them."""

    options: dict[str, Any]
    """As they were; the group of the optimiser itself is compared with them."""
    names: list[str]
    owners: list[Tensor]
    """The parameters as the optimiser has them."""
    params: list[Tensor]
    """The same without a graph."""
    kept: dict[str, list[Tensor]]
    """By the optimiser's name for it, of each parameter, of its shape."""
    counts: dict[str, list[Tensor]]
    """The same of what is one number, equal for all."""


def group_of(
    optimizer: torch.optim.Optimizer,
    group: Mapping[str, Any],
    owners: Mapping[str, Tensor],
    params: Mapping[str, Tensor],
) -> Group:
    """A group, of those of its parameters that have gradients.

    Raises:
        CompilationError: something is kept of some of them alone, or is neither of the parameter's
            shape nor one number that is the same for all.
    """
    members = {id(parameter) for parameter in group["params"]}
    mine = {name: owner for name, owner in owners.items() if id(owner) in members}
    states = [optimizer.state.get(owner, {}) for owner in mine.values()]
    kept: dict[str, list[Tensor]] = {}
    counts: dict[str, list[Tensor]] = {}
    for key in states[0] if states else ():
        values = [state.get(key) for state in states]
        if all(value is None for value in values):
            continue
        counted = key == "step"
        if counted and all(_is_number(value) and value.equal(values[0]) for value in values):
            counts[key] = values
        elif not counted and all(map(_is_like, values, mine.values())):
            kept[key] = values
        else:
            raise CompilationError(f"the optimiser's {key} is not the same for all parameters")
    if any(state.keys() != states[0].keys() for state in states):
        raise CompilationError("the optimiser keeps other things of some parameters")
    return Group(
        options_of(group), list(mine), list(mine.values()), [params[n] for n in mine], kept, counts
    )


def check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Refuse a step that is not torch's own, or does more than that.

    Raises:
        CompilationError: that.
    """
    name = type(optimizer).__name__
    if type(optimizer) not in _KINDS or "step" in vars(optimizer):
        raise CompilationError(f"steps of {name} are taken as they are")
    if not is_plain(optimizer):
        raise CompilationError(f"there are hooks around steps of {name}")


def is_plain(optimizer: torch.optim.Optimizer) -> bool:
    """Whether nothing is done around a step, for this optimiser or for all."""
    around = (
        optimizer._optimizer_step_pre_hooks,
        optimizer._optimizer_step_post_hooks,
        _global_optimizer_pre_hooks,
        _global_optimizer_post_hooks,
    )
    return not any(around) and "step" not in vars(optimizer)


def check_kinds(groups: Sequence[Group], grads: Mapping[str, Tensor]) -> None:
    """Refuse what does not fit into one row.

    Raises:
        CompilationError: several types or devices, or parameters that no group has.
    """
    if sum(len(group.names) for group in groups) != len(grads):
        raise CompilationError("there are gradients of what the optimiser does not step")
    values = [*grads.values()]
    for group in groups:
        values += [*group.params, *(v for row in group.kept.values() for v in row)]
        values += [v for row in group.counts.values() for v in row]
        if not group.names:
            raise CompilationError("a group of the optimiser has no gradients")
    if len({value.untyped_storage().data_ptr() for value in values}) < len(values):
        raise CompilationError("parameters, or what is kept of them, share memory")
    if len({value.device for value in values}) > 1:
        raise CompilationError("parameters, and what is kept of them, lie on several devices")
    kinds = {value.dtype for value in grads.values()} | {
        value.dtype for group in groups for value in group.params
    }
    if len(kinds) > 1 or not kinds <= set(_TYPES):
        raise CompilationError("parameters of one type, float32 or float64, are needed")


def options_of(group: Mapping[str, Any]) -> dict[str, Any]:
    """What a group is stepped with, beside the learning rate, which changes."""
    return {name: value for name, value in group.items() if name not in ("params", "lr")}


def places_of(group: Group) -> list[Tensor]:
    """What a step changes, in the order of what `FlatUpdate.function` gives."""
    rows = [group.params, *group.kept.values(), *group.counts.values()]
    return [value for row in rows for value in row]


def is_kept(optimizer: torch.optim.Optimizer, group: Group) -> bool:
    """Whether the optimiser still keeps the same tensors."""
    rows = [*group.kept.items(), *group.counts.items()]
    for place, owner in enumerate(group.owners):
        now = optimizer.state.get(owner, {})
        for key, values in rows:
            if now.get(key) is not values[place]:
                return False
    return True


def _is_like(value: Any, owner: Tensor) -> bool:
    same = isinstance(value, Tensor) and value.shape == owner.shape
    return same and value.dtype == owner.dtype and value.device == owner.device


def _is_number(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 0 and value.is_floating_point()
