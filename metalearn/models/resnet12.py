"""The residual network of twelve convolutions of the few-shot literature.

Axes: N pictures, [channels, height, width] of a picture, C classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from metalearn.core.checks import check_number
from metalearn.core.memory import check_memory
from metalearn.errors import SettingError, check_whole
from metalearn.models.dropout import DropBlock, Dropout
from metalearn.models.settings import check_choice, check_pictures, check_widths
from metalearn.random_streams import check_seed
from metalearn.signatures import checked

__all__ = ["ResNet12"]

Pool = Literal["flatten", "mean"]
_BLOCKS = 4


class ResNet12(nn.Module):
    """Four residual blocks, each of three 3×3 convolutions, then one linear layer.

    Maps pictures ``[N, channels, height, width]`` to logits ``[N, outputs]``, or without the linear
    layer to features ``[N, D]``. A block is three times convolution and batch normalisation with
    leaky ReLU (0.1) between them, plus the input by a 1×1 convolution and normalisation, leaky
    ReLU, 2×2 max-pooling, dropout: `Dropout` in the first two blocks, `DropBlock` in the last two,
    its rate constant (the paper's code lets it grow). Normalisation uses the statistics of the
    batch at hand and keeps none. The weights are drawn from a generator of their own, seeded by
    ``seed`` (He normal by fan-out; the linear layer Glorot uniform, biases 0).

    Args:
        input_shape: ``(channels, height, width)``, height and width at least 16.
        outputs: C; of no concern without ``head``.
        filters: channels of each block, one number or four.
        pool: what the linear layer sees: the mean over positions (``"mean"``) or all of them
            (``"flatten"``).
        dropout: rate of each block's dropout, in [0, 1); 0 puts none there.
        block_size: side of DropBlock's squares.
        head: False leaves out the linear layer, for learners that need features.
        seed: of the weights and of the masks.

    Raises:
        SettingError: a value out of range.

    Source: Lee, Maji, Ravichandran and Soatto, "Meta-Learning with Differentiable Convex
    Optimization", CVPR 2019.
    """

    @checked
    def __init__(
        self,
        input_shape: Sequence[int],
        outputs: int,
        *,
        filters: int | Sequence[int] = (64, 160, 320, 640),
        pool: Pool = "mean",
        dropout: float = 0.0,
        block_size: int = 5,
        head: bool = True,
        seed: int = 0,
    ) -> None:
        check_pictures("ResNet12", input_shape, outputs)
        check_choice("pool", pool, Pool)
        check_number("dropout", dropout, least=0, below=1)
        check_whole("block_size", block_size, 1)
        check_seed(seed)
        channels, height, width = input_shape
        if min(height, width) < 2**_BLOCKS:
            accepted = f"four poolings need a height and width of at least {2**_BLOCKS}"
            raise SettingError("input_shape", tuple(input_shape), accepted)
        widths = [channels, *check_widths(filters, _BLOCKS)]
        pairs = list(itertools.pairwise(widths))
        check_memory("filters", filters, 4 * sum(10 * a * b + 18 * b * b for a, b in pairs))
        positions = (height // 2**_BLOCKS) * (width // 2**_BLOCKS) if pool == "flatten" else 1
        super().__init__()
        with torch.random.fork_rng(devices=[]):  # torch's own initialisation, overwritten below
            blocks = []
            for index, (wide, narrow) in enumerate(pairs):
                key = (seed * 65537 + index) % 2**63
                blocks.append(_Block(wide, narrow, _dropout(index, dropout, block_size, key)))
            self.blocks = nn.Sequential(*blocks)
            gather = [] if pool == "flatten" else [nn.AdaptiveAvgPool2d(1)]
            self.gather = nn.Sequential(*gather, nn.Flatten())
            self.head = nn.Linear(widths[-1] * positions, outputs) if head else nn.Identity()
        _initialise(self, seed)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, channels, height, width]`` to ``[N, outputs]``."""
        logits: Tensor = self.head(self.gather(self.blocks(x)))
        return logits


class _Block(nn.Module):
    def __init__(self, channels: int, filters: int, dropout: nn.Module) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for wide in (channels, filters, filters):
            if layers:
                layers.append(nn.LeakyReLU(0.1))
            layers += _normalised(wide, filters, 3)
        self.main = nn.Sequential(*layers)
        self.shortcut = nn.Sequential(*_normalised(channels, filters, 1))
        self.after = nn.Sequential(nn.LeakyReLU(0.1), nn.MaxPool2d(2), dropout)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.after(self.main(x) + self.shortcut(x))
        return y


def _normalised(channels: int, filters: int, side: int) -> list[nn.Module]:
    """A convolution that keeps height and width, and its normalisation."""
    conv = nn.Conv2d(channels, filters, side, padding=side // 2, bias=False)
    return [conv, nn.BatchNorm2d(filters, track_running_stats=False)]


def _dropout(block: int, rate: float, size: int, key: int) -> nn.Module:
    """What follows a block: nothing, dropout of elements, or of squares in the last two."""
    if not rate:
        return nn.Identity()
    return Dropout(rate, key=key) if block < 2 else DropBlock(rate, size=size, key=key)


def _initialise(module: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(
                layer.weight, mode="fan_out", nonlinearity="leaky_relu", generator=generator
            )
        elif isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight, generator=generator)
            nn.init.zeros_(layer.bias)
