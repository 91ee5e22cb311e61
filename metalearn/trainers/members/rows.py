"""How the parameters of M networks lie in a module: one network, or stacks of members.

Axes: M members, or 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from metalearn.core.tree import is_finite
from metalearn.models import Ensemble, Stack
from metalearn.trainers.members.trained import LEARNT, trained_parameters

__all__ = ["OneNetwork", "Rows", "StackedMembers", "above", "rows_of"]

State = Mapping[str, Tensor]


class Rows(Protocol):
    """The M networks of a module, each seen by itself, with what is learnt beside it."""

    count: int
    """M."""

    def in_rows(self, names: Sequence[str]) -> int | None:
        """M, where the first axis of each of these parameters is that of all networks in order.

        One network is one row of all its numbers, whatever its axes. None for other members.
        """

    def norms(self, grads: State) -> Tensor:
        """``[M]``: norm of each network's gradients, all parameters together, where these are."""

    def scaled(self, grads: State, factors: Tensor) -> dict[str, Tensor]:
        """Each network's gradients times its factor ``[M]``; 0 makes them 0 whatever they were."""

    def finite(self) -> Tensor:
        """``[M]``: whether all parameters of a network are finite."""

    def copy(self, source: State, target: State, chosen: Tensor) -> None:
        """Copy the chosen networks' part of a `trained_state` into another, in place."""


class OneNetwork:
    """A module that is one network: M is 1."""

    count = 1

    def __init__(self, module: nn.Module, beside: nn.Module | None = None) -> None:
        self.module, self.beside = module, beside

    def in_rows(self, names: Sequence[str]) -> int | None:
        """One."""
        return self.count

    def norms(self, grads: State) -> Tensor:
        """``[1]``: the norm over all gradients."""
        values = list(grads.values())
        if values and all(v.is_cpu and v.dtype == values[0].dtype for v in values):
            each = torch._foreach_norm(values)  # the same as below, sooner
            norm: Tensor = torch.linalg.vector_norm(torch.stack(each))
            return norm[None]
        return torch.nn.utils.get_total_norm(values)[None]

    def scaled(self, grads: State, factors: Tensor) -> dict[str, Tensor]:
        """All gradients times the one factor."""
        factor = factors[0]  # without axes it takes the type and device of what it scales
        return {name: grad * factor for name, grad in grads.items()}

    def finite(self) -> Tensor:
        """``[1]``: whether all parameters are finite."""
        return torch.tensor([is_finite(trained_parameters(self.module, self.beside))])

    def copy(self, source: State, target: State, chosen: Tensor) -> None:
        """Copy all or nothing."""
        if chosen.all():
            for name, value in target.items():
                value.copy_(source[name])


class StackedMembers:
    """An `Ensemble`: members lie in the rows of its stacks, and of what is learnt beside it."""

    def __init__(self, ensemble: Ensemble, beside: nn.Module | None = None) -> None:
        self.count = len(ensemble)
        self._ensemble = ensemble
        self._stacks: list[tuple[str, nn.Module, Tensor]] = [
            (f"stacks.{number}.", stack, torch.tensor(stack.indices))
            for number, stack in enumerate(ensemble.stacks)
            if isinstance(stack, Stack)
        ]
        self._all, self._beside = list(self._stacks), beside
        if beside is not None:
            self._all.append((LEARNT, beside, torch.arange(self.count)))

    def groups(self, values: State) -> Iterator[tuple[list[str], Tensor]]:
        """Names of values of each stack, and of what is beside it, and the members of its rows."""
        for prefix, _, members in self._all:
            names = [name for name in values if _in(name, prefix)]
            if names:
                yield names, members

    def in_rows(self, names: Sequence[str]) -> int | None:
        """M, where one stack has all members."""
        every = len(self._stacks) == 1 and self._stacks[0][2].tolist() == list(range(self.count))
        prefixes = tuple(prefix for prefix, _, _ in self._all)
        return self.count if every and all(n.startswith(prefixes) for n in names) else None

    def norms(self, grads: State) -> Tensor:
        """``[M]``: norm of each member's gradients; 0 of those that have none."""
        found, order, beside = [], [], []
        if self._beside is not None:
            beside = [_by_member(g) for n, g in grads.items() if _in(n, LEARNT)]
        for prefix, _, members in self._stacks:
            parts = [_by_member(g) for n, g in grads.items() if _in(n, prefix)]
            parts += [rows[members.to(rows.device)] for rows in beside]
            if parts:
                each = torch.stack([torch.linalg.vector_norm(part, dim=1) for part in parts])
                found.append(torch.linalg.vector_norm(each, dim=0))
                order.append(members)
        if not found:
            return torch.zeros(self.count)
        norms = torch.cat(found)
        none = norms.new_zeros(self.count)
        return none.index_copy(0, torch.cat(order).to(norms.device), norms)

    def scaled(self, grads: State, factors: Tensor) -> dict[str, Tensor]:
        """Each row times its member's factor; 0 makes a row 0 even where it is not finite."""
        found = {}
        for prefix, _, members in self._all:
            for name, grad in grads.items():
                if _in(name, prefix):
                    factor = factors[members].to(grad).view(-1, *(1,) * (grad.dim() - 1))
                    found[name] = torch.where(factor == 0, 0.0, grad * factor)
        return found

    def finite(self) -> Tensor:
        """``[M]``: whether all parameters of a member are finite."""
        finite = torch.ones(self.count, dtype=torch.bool)
        for _, stack, members in self._all:
            for parameter in stack.parameters():
                finite[members] &= _by_member(torch.isfinite(parameter.detach())).all(1).cpu()
        return finite

    def copy(self, source: State, target: State, chosen: Tensor) -> None:
        """Copy the rows of the chosen members."""
        for prefix, _, members in self._all:
            rows = chosen[members]
            for name, value in target.items() if rows.any() else ():
                if _in(name, prefix):
                    mine = rows.to(value.device)
                    value[mine] = source[name][mine]


def rows_of(module: nn.Module, beside: nn.Module | None = None) -> Rows:
    """The networks of a module: members of an `Ensemble`, or itself.

    ``beside`` holds what is learnt beside the module; of members, parameters ``[M, ...]``.
    """
    if isinstance(module, Ensemble):
        return StackedMembers(module, beside)
    return OneNetwork(module, beside)


def above(norms: Tensor, losses: Tensor) -> Tensor:
    """Norms above losses ``[2, M]``, so that both are read at once, where the norms are."""
    kind = torch.promote_types(norms.dtype, losses.dtype)
    return torch.stack([norms.detach().to(kind), losses.detach().to(norms.device, kind)])


def _in(name: str, prefix: str) -> bool:
    return name.startswith(prefix)


def _by_member(values: Tensor) -> Tensor:
    """``[M, ...]`` as ``[M, numbers of a member]``."""
    return values.unsqueeze(-1).flatten(1)
