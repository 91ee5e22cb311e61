"""Dropout without hidden state: masks are a function of a key and the number of the draw.

torch's dropout draws from the global random state, which vmap shares between members and which a
pure function cannot have. Here every mask follows from integers that stand in buffers, so that a
member of a stack drops what it would drop alone, and a resumed run drops what it would have.
Axes: M members, B samples.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from metalearn.core.checks import check_number
from metalearn.core.module.copying import copy_module
from metalearn.errors import check_whole
from metalearn.signatures import checked

__all__ = ["Dropout", "convert_dropout", "set_draw"]

_MASK = 0xFFFFFFFF
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


class Dropout(nn.Module):
    """Zero each element with probability p in training, and scale the others by 1/(1 − p).

    A mask is a function of ``key``, ``draw`` and the element's place alone: the same draw gives the
    same mask, so `set_draw` has to be called before each step (trainers do). ``p``, ``key`` and
    ``draw`` are buffers: stacked over members they may differ from member to member.

    Args:
        p: in [0, 1).
        key: which stream of masks; a whole number in 0..2^63-1.
        whole_channels: drop whole channels, axis 1, as ``nn.Dropout2d`` does.

    Raises:
        SettingError: p or key out of range.

    Source: Srivastava et al., "Dropout", JMLR 2014; the hash is Wellons' lowbias32.
    """

    p: Tensor
    key: Tensor
    draw: Tensor

    @checked
    def __init__(self, p: float = 0.5, *, key: int = 0, whole_channels: bool = False) -> None:
        super().__init__()
        check_number("p", p, least=0, below=1)
        check_whole("key", key, 0, 2**63 - 1)
        self.whole_channels = whole_channels
        self.register_buffer("p", torch.tensor(float(p)))
        self.register_buffer("key", torch.tensor(key))
        self.register_buffer("draw", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        """Same shape; the input itself outside training."""
        if not self.training:
            return x
        shape = (*x.shape[:2], *(1,) * (x.dim() - 2)) if self.whole_channels else x.shape
        places = torch.arange(math.prod(shape), device=x.device).view(shape)
        bits = _mix(places + _mix(_mix(self.key) + self.draw))
        keep = bits >= self.p.double() * 2.0**32
        return torch.where(keep, x / (1 - self.p).to(x.dtype), 0.0)


@checked
def set_draw(module: nn.Module, draw: int) -> None:
    """Let every `Dropout` in ``module`` (a stack of members as well) use masks number ``draw``."""
    check_whole("draw", draw, 0)
    for layer in module.modules():
        if isinstance(layer, Dropout):
            layer.draw.fill_(draw)


@checked
def convert_dropout(module: nn.Module, *, seed: int = 0) -> nn.Module:
    """A copy of the module with `Dropout` in place of torch's dropout layers.

    Args:
        module: left as it is.
        seed: of the masks; each layer has a stream of its own.
    """
    check_whole("seed", seed, 0)
    root = nn.ModuleDict({"module": copy_module(module)})
    converted: dict[nn.Module, nn.Module] = {}
    for name, layer in list(root.named_modules(remove_duplicate=False)):
        if isinstance(layer, _DROPOUTS):
            if layer not in converted:
                key = seed * 65537 + len(converted)
                channels = not isinstance(layer, nn.Dropout)
                converted[layer] = Dropout(layer.p, key=key, whole_channels=channels)
                converted[layer].train(layer.training)
            parent, _, child = name.rpartition(".")
            setattr(root.get_submodule(parent), child, converted[layer])
    return root["module"]


def _mix(x: Tensor) -> Tensor:
    """A bijection of 32 bits in which every output bit depends on every input bit."""
    x = x & _MASK
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _MASK
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _MASK
    return x ^ (x >> 16)
