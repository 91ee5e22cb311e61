"""Dropout without hidden state: masks are a function of a key and the number of the draw.

torch's dropout draws from the global random state, which vmap shares between members and which a
pure function cannot have. Here every mask follows from integers that stand in buffers, so that a
member of a stack drops what it would drop alone, and a resumed run drops what it would have.
Axes: M members, B samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.core.checks import check_number
from metalearn.core.float64 import widest
from metalearn.core.module.copying import copy_module
from metalearn.errors import SettingError, check_whole
from metalearn.signatures import checked

__all__ = ["DropBlock", "Dropout", "convert_dropout", "part_of_batch", "set_draw"]

_MASK = 0xFFFFFFFF
_part: ContextVar[tuple[int, int] | None] = ContextVar("part", default=None)
"""Where a part of a batch begins, and how many samples it has."""
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
        keep = self.uniform(shape, x.device) >= widest(self.p)
        return torch.where(keep, x / (1 - self.p).to(x.dtype), 0.0)

    def uniform(self, shape: Sequence[int], device: torch.device) -> Tensor:
        """Numbers in [0, 1), in float64 where the device has it.

        They are a function of key, draw and place alone.
        """
        first, count = _first_place(shape), math.prod(shape)
        places = torch.arange(first, first + count, device=device).view(*shape)
        return widest(_mix(places + _mix(_mix(self.key) + self.draw))) / 2.0**32


class DropBlock(Dropout):
    """Zero squares of ``size`` × ``size`` in each channel of ``[N, C, H, W]`` in training.

    As many squares begin as leave about 1 − p of the picture; what is left of a sample is scaled
    by the number of its elements over the number kept, so that no sample depends on the others.
    Squares lie within the picture; on a smaller one they are as large as it. Masks follow
    from key and draw, as those of `Dropout`.

    Args:
        p: in [0, 1).
        size: of a square, at least 1.
        key: which stream of masks; a whole number in 0..2^63-1.

    Raises:
        SettingError: p, size or key out of range.

    Source: Ghiasi, Lin and Le, "DropBlock", NeurIPS 2018.
    """

    @checked
    def __init__(self, p: float = 0.1, *, size: int = 5, key: int = 0) -> None:
        super().__init__(p, key=key)
        check_whole("size", size, 1)
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """Same shape; the input itself outside training."""
        if not self.training:
            return x
        height, width = (min(self.size, side) for side in x.shape[-2:])
        corners = (x.shape[-2] - height + 1, x.shape[-1] - width + 1)
        share = x.shape[-2] * x.shape[-1] / (height * width * math.prod(corners))
        begins = self.uniform((*x.shape[:2], *corners), x.device) < widest(self.p) * share
        padding = (width - 1, width - 1, height - 1, height - 1)
        dropped = F.max_pool2d(F.pad(begins.to(x.dtype), padding), (height, width), stride=1)
        kept = 1 - dropped
        return x * kept / kept.mean((1, 2, 3), keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)


@checked
def set_draw(module: nn.Module, draw: int) -> None:
    """Let every `Dropout` in ``module`` (a stack of members as well) use masks number ``draw``."""
    check_whole("draw", draw, 0)
    for layer in module.modules():
        if isinstance(layer, Dropout):
            layer.draw.fill_(draw)


@contextmanager
def part_of_batch(first: int, samples: int) -> Iterator[None]:
    """A block in which networks see a part of a batch, and drop of it what they would of the whole.

    Args:
        first: of the batch's samples that the part has.
        samples: in the part, along the first axis of what `Dropout` layers see; others are refused.
    """
    before = _part.set((first, samples))
    try:
        yield
    finally:
        _part.reset(before)


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


def _first_place(shape: Sequence[int]) -> int:
    """The place in the whole batch of the first element of a shape.

    Raises:
        SettingError: its first axis is not that of the samples of a part.
    """
    part = _part.get()
    if part is None:
        return 0
    first, samples = part
    if not shape or shape[0] != samples:
        accepted = (
            f"[{samples}, ...] is needed, samples first, since ranks divide a batch and masks "
            "follow from places in all of it"
        )
        raise SettingError("shape of what dropout sees", list(shape), accepted)
    return first * math.prod(shape[1:])


def _mix(x: Tensor) -> Tensor:
    """A bijection of 32 bits in which every output bit depends on every input bit."""
    x = x & _MASK
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _MASK
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _MASK
    return x ^ (x >> 16)
