"""An ensemble of networks whose parameters are stacked on a member axis.

Axes: M members, B samples.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from metalearn.core.ensemble.stacking import MemberEngine, map_members, stack
from metalearn.core.module.copying import Copier, copy_module, named_tensors
from metalearn.core.module.functionalize import check_layers
from metalearn.core.module.module_structure import attributes
from metalearn.core.module.pure_call import PureCall
from metalearn.core.tree import leaf_names, leaves, tree_map
from metalearn.errors import SettingError, check_whole
from metalearn.signatures import checked

__all__ = ["Ensemble", "Stack"]


class Stack(nn.Module):
    """Networks of one architecture as one module whose parameters and buffers are ``[M, ...]``.

    Args:
        modules: M networks; their tensors are copied.
        indices: which members of an ensemble they are.

    Raises:
        SettingError: no networks, networks of different shapes or settings, or with layers that
            cannot work, which is looked at again when training mode is switched on.
    """

    @checked
    def __init__(self, modules: Sequence[nn.Module], indices: Sequence[int] | None = None) -> None:
        super().__init__()
        if not len(modules):
            raise SettingError("members", 0, "at least one network is needed")
        for module in _distinct(modules):
            check_layers(module, running_stats=True)
        self.network = _template(modules)
        self.size = len(modules)
        self.indices = tuple(range(len(modules)) if indices is None else indices)
        self._call = PureCall(
            self.network, partial(check_layers, running_stats=True), keeps_buffers=True
        )

    def train(self, mode: bool = True) -> Stack:
        """Set the mode of all members; training may need what evaluation does not."""
        super().train(mode)
        check_layers(self.network, running_stats=True)
        return self

    def state(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Parameters and buffers, ``[M, ...]``; parameters that are not trained are buffers."""
        params: dict[str, Tensor] = {}
        fixed: dict[str, Tensor] = {}
        for name, parameter in self.network.named_parameters():
            (params if parameter.requires_grad else fixed)[name] = parameter
        return params, fixed | dict(self.network.named_buffers())

    def call(self, params: Any, buffers: Any, *args: Any, **kwargs: Any) -> Any:
        """One member's network with its parameters and buffers."""
        return self._call(params, buffers, *args, **kwargs)

    def forward(self, *args: Any, engine: MemberEngine = "batched", **kwargs: Any) -> Any:
        """Outputs of all members on the same inputs, ``[M, ...]``."""

        def one(params: Any, buffers: Any) -> Any:
            return self.call(params, buffers, *args, **kwargs)

        return map_members(one, *self.state(), engine=engine)

    def __deepcopy__(self, memo: dict[int, Any]) -> Stack:
        """A copy in which functions that enclose the network enclose its copy."""
        copied: Stack = Copier(lambda value: copy.deepcopy(value, memo))(self)
        memo[id(self)] = copied
        return copied

    def member(self, row: int) -> nn.Module:
        """A copy of the network in one row: a plain module."""
        check_whole("row", row, 0, len(self.indices) - 1)
        rows = {n: v.detach()[row].clone() for n, v in named_tensors(self.network).items()}
        return copy_module(self.network, _as_they_were(self.network, rows))


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
        stacks: of members; every index 0..M−1 once.

    Raises:
        SettingError: no members.
    """

    @checked
    def __init__(self, stacks: Sequence[Stack]) -> None:
        super().__init__()
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
        if not len(modules):
            raise SettingError("members", 0, "at least one network is needed")
        _check_devices(modules)
        alike: dict[Any, list[int]] = {}
        structures: dict[int, Any] = {}
        for module in _distinct(modules):
            check_layers(module, running_stats=True)
            structures[id(module)] = _structure(module)
        for index, module in enumerate(modules):
            alike.setdefault(structures[id(module)], []).append(index)
        return cls([Stack([modules[i] for i in rows], rows) for rows in alike.values()])

    @classmethod
    @checked
    def from_factory(cls, make: Callable[..., nn.Module], seeds: Sequence[int]) -> Ensemble:
        """An ensemble of ``make(seed)`` for each seed.

        torch's global generator is seeded by the same number while ``make`` runs, and put back
        afterwards; so a factory without arguments, or one that leaves initialisation to torch,
        gives different members as well.

        Args:
            make: ``make(seed)``, ``make(seed=seed)`` or ``make()``, the first that it can take.
            seeds: one for each member.

        Raises:
            SettingError: no seed, or one that is not a whole number from 0.
        """
        if not len(seeds):
            raise SettingError("seeds", seeds, "at least one is needed")
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


def _outline(outputs: Any) -> str:
    """Names and shapes of a stack's outputs, without its members."""
    named = zip(leaf_names(outputs), leaves(outputs))
    return ", ".join(f"{name} {list(value.shape[1:])}".strip() for name, value in named)


def _check_devices(modules: Sequence[nn.Module]) -> None:
    """Refuse networks on different devices, whose outputs cannot be joined."""
    first: str | None = None
    for index, module in enumerate(modules):
        devices = sorted({str(value.device) for value in named_tensors(module).values()})
        first = first or next(iter(devices), None)
        if any(device != first for device in devices):
            accepted = f"all tensors on {first} are needed, where members[0] is"
            raise SettingError(f"members[{index}]", ", ".join(devices), accepted)


def _template(modules: Sequence[nn.Module]) -> nn.Module:
    """A copy of the first network whose tensors are the stacks of all networks' tensors."""
    distinct = _distinct(modules)
    rows = {id(m): {n: value.detach() for n, *_, value in _own_tensors(m)} for m in distinct}
    stacked = stack([rows[id(module)] for module in modules])
    first = _structure(modules[0])
    for module in distinct[1:]:
        if _structure(module) != first:
            accepted = "the layers and settings of members[0] are needed in one stack"
            raise SettingError(f"members[{modules.index(module)}]", type(module).__name__, accepted)
    return copy_module(modules[0], _as_they_were(modules[0], stacked))


def _distinct(modules: Sequence[nn.Module]) -> list[nn.Module]:
    """Each network once, where some are one object."""
    return list({id(module): module for module in modules}.values())


def _as_they_were(module: nn.Module, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of ``values`` that are parameters in ``module`` as such, trained or not as there."""
    return {
        name: nn.Parameter(values[name], value.requires_grad)
        if isinstance(value, nn.Parameter)
        else values[name]
        for name, value in named_tensors(module).items()
    }


def _own_tensors(module: nn.Module) -> list[tuple[str, dict[str, Any], str, Tensor]]:
    """Parameters and buffers: full name, where they stand, under which key; tied ones each time."""
    return [
        (f"{prefix}.{key}".lstrip("."), table, key, value)
        for prefix, layer in module.named_modules()
        for table in (layer._parameters, layer._buffers)
        for key, value in table.items()
        if value is not None
    ]


def _structure(module: nn.Module) -> Any:
    """What two networks must share to be stacked: all but the values of their tensors."""
    tensors = tuple(
        (name, type(value), value.shape, value.dtype, value.device, value.requires_grad)
        for name, *_, value in _own_tensors(module)
    )
    return tuple(attributes(module).items()), tensors


def _call_with_seed(make: Callable[..., nn.Module], seed: int) -> nn.Module:
    """``make(seed)``, ``make(seed=seed)`` or ``make()``, the first that the signature allows."""
    signature = inspect.signature(make)
    try:
        signature.bind(seed)
    except TypeError:
        return make(seed=seed) if "seed" in signature.parameters else make()
    return make(seed)
