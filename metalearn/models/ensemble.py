"""An ensemble of networks whose parameters are stacked on a member axis.

Axes: M members, B samples.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeGuard

import torch
from torch import nn

from metalearn.core.ensemble.stacking import MemberEngine
from metalearn.core.tree import leaf_names, leaves, tree_map
from metalearn.errors import SettingError, check_whole
from metalearn.misfits import advise
from metalearn.models.stacks import Stack, stacked
from metalearn.signatures import checked, fits

__all__ = ["Ensemble", "Stack"]


class Ensemble(nn.Module):
    """M networks trained and called as one: parameters stacked, ``vmap`` over members.

    ``ensemble(x)`` gives ``[M, B, ...]``, every member on the same inputs. Members of one
    architecture stand in one `Stack`: all is the same but the values of their tensors (classes,
    attributes, hooks, modes, shapes, ties). Others are called stack after stack, and their outputs
    have to agree in shape. Buffers that forward writes, such as running statistics, are each
    member's own; what else it would keep is refused at the first call. Any elementwise optimiser
    may train ``ensemble.parameters()``: it trains every member as if alone. What takes a norm over
    all parameters, such as ``clip_grad_norm_``, mixes members: `metalearn.trainers.EnsembleTrainer`
    clips each by itself.

    Args:
        stacks: networks, which are copied as by `from_modules`; or stacks of members, every index
            0..M−1 once.

    Raises:
        SettingError: no members, or networks that cannot be.
    """

    @checked
    def __init__(self, stacks: Sequence[nn.Module]) -> None:
        super().__init__()
        stacks = stacks if _are_stacks(stacks) else stacked(stacks)
        order = [i for s in stacks for i in s.indices]
        if not order or sorted(order) != list(range(len(order))):
            raise SettingError("members", order, "each of 0..M-1 once, M at least 1, is needed")
        self.stacks = nn.ModuleList(stacks)
        self._order = tuple(order.index(i) for i in range(len(order)))

    @classmethod
    @checked
    def from_modules(cls, modules: Sequence[nn.Module]) -> Ensemble:
        """An ensemble of given networks, which are copied.

        Raises:
            SettingError: no network, one with layers that cannot work, or networks on different
                devices.
        """
        return cls(stacked(modules))

    @classmethod
    @checked
    def from_factory(cls, make: Callable[..., nn.Module], seeds: Sequence[int] | int) -> Ensemble:
        """An ensemble of ``make(seed)`` for each seed.

        torch's global generator is seeded by the same number while ``make`` runs, and put back
        afterwards; so a factory without arguments, or one that leaves initialisation to torch,
        gives different members as well.

        Args:
            make: ``make(seed)``, ``make(seed=seed)`` or ``make()``, the first that it can take; a
                class gets a seed by that name alone.
            seeds: one for each member; a number M stands for 0..M−1.

        Raises:
            SettingError: no seed, or one that is not a whole number from 0.
        """
        seeds = _seeds(make, seeds)
        modules = []
        for seed in seeds:
            check_whole("seeds", seed, 0)
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                made = _call_with_seed(make, seed)
            if not isinstance(made, nn.Module):
                accepted = "a function that gives a torch.nn.Module for a seed is needed"
                raise SettingError("make", f"{type(made).__name__} for seed {seed}", accepted)
            modules.append(made)
        return cls.from_modules(modules)

    def __len__(self) -> int:
        """M."""
        return len(self._order)

    def forward(self, *args: Any, engine: MemberEngine = "batched", **kwargs: Any) -> Any:
        """Outputs ``[M, ...]`` of all members on the same inputs.

        Args:
            args: inputs ``[B, ...]``.
            engine: see `metalearn.core.ensemble.stacking.MemberEngine`.
            kwargs: of the networks.
        """
        return self.gather([s(*args, engine=engine, **kwargs) for s in self.stacks])

    def gather(self, parts: Sequence[Any]) -> Any:
        """What each stack gave, ``[M of the stack, ...]``, as one tree in the order of members.

        Raises:
            SettingError: outputs of members that differ in names or shapes.
        """
        if len(parts) == 1 and self._order == tuple(range(len(self))):
            return parts[0]
        for part, held in zip(parts, self.stacks):
            if _outline(part) != _outline(parts[0]):
                assert isinstance(held, Stack)
                accepted = f"outputs like those of the others, {_outline(parts[0])}, are needed"
                raise SettingError(f"members[{held.indices[0]}]", _outline(part), accepted)
        return tree_map(lambda *xs: torch.cat(xs)[list(self._order)], *parts)

    def member(self, index: int) -> nn.Module:
        """A copy of member ``index`` as a plain module with a plain ``state_dict``.

        Raises:
            SettingError: no such member.
        """
        stack, row = self.place(index)
        return stack.member(row)

    def members(self) -> Iterator[nn.Module]:
        """Copies of all members."""
        return (self.member(index) for index in range(len(self)))

    def place(self, index: int) -> tuple[Stack, int]:
        """The stack that a member is in, and its row there."""
        check_whole("member", index, 0)
        for part in self.stacks:
            assert isinstance(part, Stack)
            if index in part.indices:
                return part, part.indices.index(index)
        raise SettingError("member", index, f"a whole number from 0 to {len(self) - 1} is needed")


def _are_stacks(given: Sequence[nn.Module]) -> TypeGuard[Sequence[Stack]]:
    """Whether all are stacks, or there are none.

    Raises:
        SettingError: stacks beside networks.
    """
    found = [isinstance(part, Stack) for part in given]
    if any(found) and not all(found):
        other = given[found.index(False)]
        accepted = "networks alone, or stacks alone, are needed"
        raise SettingError("stacks", type(other).__name__, accepted)
    return all(found)


def _seeds(make: Any, seeds: Any) -> Sequence[int]:
    """A seed for each member.

    Raises:
        SettingError: none, or a network in place of what makes networks.
    """
    if isinstance(make, nn.Module):
        accepted = "a function that makes a network is needed; Ensemble([a, b]) takes networks"
        raise SettingError("make", type(make).__name__, accepted)
    if isinstance(seeds, int) and not isinstance(seeds, bool):
        check_whole("seeds", seeds, 1, 2**31)
        return range(seeds)
    if not fits(seeds, Sequence[int]):
        raise SettingError("seeds", seeds, "a list of whole numbers is needed, or how many")
    if not len(seeds):
        raise SettingError("seeds", seeds, "at least one is needed")
    found: Sequence[int] = seeds
    return found


def _outline(outputs: Any) -> str:
    """Names and shapes of a stack's outputs, without its members."""
    named = zip(leaf_names(outputs), leaves(outputs))
    return ", ".join(f"{name} {list(value.shape[1:])}".strip() for name, value in named)


def _call_with_seed(make: Callable[..., nn.Module], seed: int) -> nn.Module:
    """``make(seed)``, ``make(seed=seed)`` or ``make()``, the first that the signature allows.

    Of a class, or a partial one, it is one of the latter two.
    """
    signature = inspect.signature(make)
    kind: Any = make
    while isinstance(kind, partial):
        kind = kind.func
    if inspect.isclass(kind):  # its first argument may be a width
        return make(seed=seed) if "seed" in signature.parameters else make()
    try:
        signature.bind(seed)
    except TypeError:
        return make(seed=seed) if "seed" in signature.parameters else make()
    return make(seed)


def _advice(value: Any) -> str | None:
    several = isinstance(value, list | tuple) and all(isinstance(v, nn.Module) for v in value)
    if not several and not isinstance(value, nn.Module):
        return None
    makes = "Ensemble.from_factory(make, 3) of a function that makes networks"
    return f"an Ensemble is needed: Ensemble([a, b]) of networks, or {makes}"


advise(Ensemble, _advice)
advise(Sequence[nn.Module], lambda value: _listed(value))


def _listed(value: Any) -> str | None:
    return "a list of Modules is needed: [a, b]" if isinstance(value, nn.Module) else None
