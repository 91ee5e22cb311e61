"""Networks of one architecture as one module with a member axis.

Axes: M members, B samples.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from metalearn.core.ensemble.stacking import MemberEngine, map_members, stack
from metalearn.core.module.copying import Copier, copy_module, named_tensors
from metalearn.core.module.functionalize import check_layers
from metalearn.core.module.module_structure import attributes
from metalearn.core.module.pure_call import PureCall
from metalearn.errors import SettingError, check_whole
from metalearn.signatures import checked

__all__ = ["Stack", "stacked"]


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


def stacked(modules: Sequence[nn.Module]) -> list[Stack]:
    """Networks as stacks of those that are alike."""
    if isinstance(modules, nn.Sequential):
        accepted = "a list of networks is needed: [model] of one, not its layers"
        raise SettingError("modules", type(modules).__name__, accepted)
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
    return [Stack([modules[i] for i in rows], rows) for rows in alike.values()]


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
