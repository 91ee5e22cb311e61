"""What a loop trains: a module, and values that are learnt beside it, such as inner step sizes.

The values are parameters of a second module. In gradients and states they stand beside those of the
first under names that begin with ``learnt.``; of M members each is ``[M, ...]``.

Axes: M members, or 1.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import nn

__all__ = ["LEARNT", "divided", "load_trained", "trained_parameters", "trained_state"]

LEARNT = "learnt."
"""What names of values beside the module begin with; names of the module do not."""


def trained_parameters(module: nn.Module, beside: nn.Module | None) -> dict[str, nn.Parameter]:
    """Parameters by name, of both."""
    found = dict(module.named_parameters())
    if beside is not None:
        found |= {f"{LEARNT}{name}": value for name, value in beside.named_parameters()}
    return found


def trained_state(module: nn.Module, beside: nn.Module | None) -> dict[str, Any]:
    """The ``state_dict`` of both, in one."""
    found = module.state_dict()
    if beside is not None:
        found.update({f"{LEARNT}{name}": value for name, value in beside.state_dict().items()})
    return found


def divided(
    state: Mapping[str, Any], beside: nn.Module | None
) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """A `trained_state` as the ``state_dict`` of the module and that of what stands beside it."""
    if beside is None:
        return state, {}
    own: Any = copy.copy(state)  # with the versions of layers that torch keeps on it
    return own, {name: own.pop(f"{LEARNT}{name}") for name in beside.state_dict()}


def load_trained(module: nn.Module, beside: nn.Module | None, state: Mapping[str, Any]) -> None:
    """Take a `trained_state`."""
    own, learnt = divided(state, beside)
    module.load_state_dict(own)
    if beside is not None:
        beside.load_state_dict(learnt)
