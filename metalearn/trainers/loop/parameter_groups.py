"""Options of the outer optimiser for parameters whose names match a pattern."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from metalearn.core.tree import leaf_names, match_names
from metalearn.errors import SettingError
from metalearn.reprs import one_line
from metalearn.signatures import checked

__all__ = ["ParameterGroups"]

_SETTING = "optimizer.groups"
_FORM = "mappings with params, a pattern or a list of them, and options beside it are needed"


class ParameterGroups:
    """Makes an outer optimiser of which some parameters have options of their own.

    ``ParameterGroups(partial(Adam, lr=1e-3), [{"params": "head.*", "lr": 0.01}])`` trains what is
    below ``head`` with another rate; what no pattern matches has the options of ``make``. Names are
    those of the network, of an ensemble those of a member, and ``learnt.…`` for what is learnt
    beside the weights; ``*`` matches dots too. The schedule's factor is the same for all.

    Args:
        make: makes the optimiser from parameters, or from groups of them as torch's do.
        groups: mappings, each with ``params``, a pattern or several, and options of the optimiser.

    Raises:
        SettingError: groups of another form. Once it is called: a pattern that matches nothing, a
            parameter in two groups, options that the optimiser does not take.
    """

    @checked
    def __init__(
        self,
        make: Callable[[Iterable[Any]], torch.optim.Optimizer],
        groups: Sequence[Mapping[str, Any]],
    ) -> None:
        for group in groups:
            params: Any = group.get("params")
            patterns = [params] if isinstance(params, str) else params
            named = isinstance(patterns, list | tuple) and len(patterns) > 0
            if not named or not all(isinstance(p, str) for p in patterns) or len(group) < 2:
                raise SettingError(_SETTING, dict(group), _FORM)
        self.make, self.groups = make, [dict(group) for group in groups]

    def __repr__(self) -> str:
        name = getattr(self.make, "__name__", type(self.make).__name__)
        return one_line(self, name, *(str(group["params"]) for group in self.groups))

    def __call__(self, named: Iterable[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """The optimiser of parameters, each given with its name; several may have the same."""
        every = list(named)
        owners = self._owners([name for name, _ in every])
        parts: list[dict[str, Any]] = [
            {**group, "params": [p for name, p in every if owners.get(name) == number]}
            for number, group in enumerate(self.groups)
        ]
        rest = [p for name, p in every if name not in owners]
        optimizer = self.make([{"params": rest}, *parts] if rest else parts)
        for group, part in zip(self.groups, parts):
            _check_options(optimizer, group, part["params"][0])
        return optimizer

    def _owners(self, names: Sequence[str]) -> dict[str, int]:
        """By name, the number of the group that it is in, for those that are in one."""
        tree, found = dict.fromkeys(names, 0), dict[str, int]()
        for number, group in enumerate(self.groups):
            chosen = match_names(tree, group["params"], _SETTING)
            for name in [name for name, mine in zip(leaf_names(tree), chosen) if mine]:
                if name in found:
                    both = f"{self.groups[found[name]]['params']} and {group['params']}"
                    accepted = f"a parameter is in one group, and {both} both match it"
                    raise SettingError(_SETTING, name, accepted)
                found[name] = number
        return found


def _check_options(
    optimizer: torch.optim.Optimizer, group: Mapping[str, Any], like: nn.Parameter
) -> None:
    """Refuse options that torch would keep without using them, or use without a look at them."""
    name, defaults = type(optimizer).__name__, optimizer.defaults
    options = {option: value for option, value in group.items() if option != "params"}
    for option, value in options.items():
        if option not in defaults:
            known = ", ".join(sorted(defaults))
            accepted = f"{name} has no such option for a group; it has {known}"
            raise SettingError(f"{_SETTING}.{option}", value, accepted)
        if not _is_like(value, defaults[option]):
            accepted = f"a value like {name}'s own, {defaults[option]!r}, is needed"
            raise SettingError(f"{_SETTING}.{option}", value, accepted)
    taken = inspect.signature(type(optimizer)).parameters
    whole = {option: value for option, value in defaults.items() if option in taken} | options
    try:
        type(optimizer)([nn.Parameter(torch.zeros_like(like))], **whole)
    except (TypeError, ValueError, RuntimeError) as error:
        accepted = f"torch refuses these options: {error}"
        raise SettingError(_SETTING, dict(group), accepted) from error


def _is_like(value: Any, default: Any) -> bool:
    """Whether a value is of the kind that an option has: a number, a switch, a list."""
    if isinstance(default, bool):
        return isinstance(value, bool)
    if isinstance(default, int | float | torch.Tensor):
        return isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(default, list | tuple):
        return isinstance(value, list | tuple) and len(value) == len(default)
    return True
