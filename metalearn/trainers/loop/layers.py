"""Parameters by layer, under names that say what a layer is.

Axes: none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

__all__ = ["by_layer"]

_MOST = 10  # layers that are shown by themselves
_STACK = re.compile(r"stacks\.\d+\.network\.")  # of members, whose layers are shown as one's
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class _Layers(Mapping[str, Tensor]):
    """The entries of each layer in a row, put together when they are asked for and not kept."""

    def __init__(self, parts: Mapping[str, Sequence[Tensor]]) -> None:
        self._parts = parts

    def __getitem__(self, title: str) -> Tensor:
        rows = [tensor.detach().flatten() for tensor in self._parts[title]]
        return rows[0] if len(rows) == 1 else torch.cat(rows)

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)


def by_layer(module: nn.Module, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """All entries of each layer in a row, by its name and its kind: ``"blocks.0.0 (Conv2d)"``.

    Where there are more than ten layers, those whose names begin alike are one. A row is made when
    it is taken, so that a layer at a time is copied.

    Args:
        module: whose parameters, or gradients of them, they are.
        tensors: by the names of the parameters.
    """
    paths = {name: name.rpartition(".")[0] or name for name in tensors}
    short = {name: _STACK.sub("", path) for name, path in paths.items()}
    depth = max((path.count(".") + 1 for path in short.values()), default=1)
    while depth > 1 and len({_cut(path, depth) for path in short.values()}) > _MOST:
        depth -= 1
    modules = dict(module.named_modules())
    found: dict[str, list[Tensor]] = {}
    for name, tensor in tensors.items():
        path = _cut(short[name], depth)
        inside = paths[name].removesuffix(short[name]) + path
        found.setdefault(_titled(path, modules.get(inside)), []).append(tensor)
    return _Layers(found)


def _cut(path: str, depth: int) -> str:
    return ".".join(path.split(".")[:depth])


def _titled(path: str, module: nn.Module | None) -> str:
    if module is None or isinstance(module, _CONTAINERS):
        return path
    return f"{path} ({type(module).__name__})"
