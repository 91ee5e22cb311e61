"""The last layer of a network: another for as many outputs as are needed, or none.

Axes: N samples, D features, C outputs.
"""

from __future__ import annotations

import torch
from torch import nn

from metalearn.core.module.copying import copy_module
from metalearn.errors import SettingError, check_whole
from metalearn.random_streams import check_seed
from metalearn.signatures import checked

__all__ = ["head_of", "last_head", "put_head", "with_head", "without_head"]


@checked
def with_head(
    module: nn.Module, outputs: int, *, layer: str | None = None, seed: int = 0
) -> nn.Module:
    """A copy of a network with a new last layer of ``outputs`` outputs, all else as it is.

    The layer is drawn as torch draws it, from a generator of its own, seeded by ``seed``; the
    global random state stays as it is.

    Args:
        module: with a last linear layer, or a last 1×1 convolution in the place of one.
        outputs: C.
        layer: the name of the last layer; None takes the last `nn.Linear`, or where there is none
            the last 1×1 convolution, in the order in which the module holds its layers.
        seed: of the new weights.

    Raises:
        SettingError: no such layer, or a value out of range.
    """
    check_whole("outputs", outputs, 1)
    check_seed(seed)
    copied = copy_module(module)
    put_head(copied, outputs, head_of(module, layer), seed=seed)
    return copied


@checked
def without_head(module: nn.Module, *, layer: str | None = None) -> nn.Module:
    """A copy of a network with `nn.Identity` in the place of its last layer: it gives features.

    Args:
        module: see `with_head`.
        layer: see `with_head`.

    Raises:
        SettingError: no such layer.
    """
    copied = copy_module(module)
    put_head(copied, None, head_of(module, layer))
    return copied


def head_of(module: nn.Module, layer: str | None = None) -> str:
    """The name of the last layer; see `with_head`.

    Raises:
        SettingError: there is none.
    """
    found = [n for n, part in module.named_modules() if type(part) is nn.Linear]
    convolutions = [n for n, part in module.named_modules() if _is_pointwise(part)]
    known = [*found, *convolutions]
    if layer is not None:
        if layer not in known or not layer:
            accepted = f"one of {', '.join(known[-4:]) or 'none here'} is needed"
            raise SettingError("layer", layer, accepted)
        return layer
    name: str = (found or convolutions or [""])[-1]
    if not name:
        accepted = "a network with a last linear layer, inside it, is needed"
        raise SettingError("module", type(module).__name__, accepted)
    return name


def last_head(module: nn.Module) -> str | None:
    """The name of the last layer where it is a head; None of a network that gives features."""
    leaves = [
        name
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Identity) or next(layer.parameters(recurse=False), None) is not None
    ]
    try:
        head = head_of(module)
    except SettingError:
        return None
    return head if leaves[-1] == head else None


def put_head(module: nn.Module, outputs: int | None, layer: str, *, seed: int = 0) -> None:
    """Put a new last layer, or with None nothing, in the place of ``layer``, in the module."""
    old = module.get_submodule(layer)
    parent, _, child = layer.rpartition(".")
    new: nn.Module = nn.Identity()
    if outputs is not None:
        like = next(old.parameters())
        bias = old.bias is not None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if isinstance(old, nn.Conv2d):
                new = nn.Conv2d(old.in_channels, outputs, 1, bias=bias)
            else:
                assert isinstance(old, nn.Linear)
                new = nn.Linear(old.in_features, outputs, bias=bias)
        new = new.to(like)
    setattr(module.get_submodule(parent), child, new.train(old.training))


def _is_pointwise(layer: nn.Module) -> bool:
    return type(layer) is nn.Conv2d and layer.kernel_size == (1, 1) and layer.groups == 1
