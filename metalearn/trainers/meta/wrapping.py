"""Modules that a learner puts around the network that it is given.

Axes: M members.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from metalearn.models import Ensemble

__all__ = ["wrapped"]


def wrapped(
    module: nn.Module, kind: type[nn.Module], around: Callable[[nn.Module, int], nn.Module]
) -> nn.Module:
    """A network in what a learner puts around it, or an `Ensemble` of M such networks.

    Args:
        module: one network, which is shared, or an `Ensemble`, whose members are copied; what is of
            ``kind`` already is given back as it is.
        kind: of the wrapper.
        around: ``around(network, index)`` makes the wrapper of member ``index``.
    """
    if not isinstance(module, Ensemble):
        return module if isinstance(module, kind) else around(module, 0)
    members = list(module.members())
    if all(isinstance(member, kind) for member in members):
        return module
    made = [around(member, index).train(member.training) for index, member in enumerate(members)]
    return Ensemble.from_modules(made).train(module.training)
