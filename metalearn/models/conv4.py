"""The four-block convolutional network of the few-shot literature.

Axes: N pictures, [channels, height, width] of a picture, C classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from metalearn.core.memory import check_memory
from metalearn.errors import SettingError, check_whole
from metalearn.models.settings import check_choice, check_pictures, check_widths
from metalearn.random_streams import check_seed
from metalearn.signatures import checked

__all__ = ["Conv4"]

Downsample = Literal["stride", "max_pool"]
Pool = Literal["flatten", "mean"]
_BLOCKS = 4


class Conv4(nn.Sequential):
    """Four blocks of 3×3 convolution, batch normalisation, ReLU, then one linear layer.

    Maps pictures ``[N, channels, height, width]`` to logits ``[N, outputs]``, or without the linear
    layer to features ``[N, D]``, D that of the last block times positions. Normalisation uses
    the statistics of the batch at hand and keeps none. The weights are drawn from a generator of
    their own, seeded by ``seed`` (Glorot uniform, biases 0).

    Args:
        input_shape: ``(channels, height, width)``, height and width at least 16 for max-pooling.
        outputs: C; of no concern without ``head``.
        filters: channels of each block, one number or four.
        downsample: ``"stride"`` halves height and width by a stride of 2 (MAML's Omniglot runs),
            ``"max_pool"`` by 2×2 max-pooling (its MiniImagenet runs).
        halvings: how many blocks do so, the first 1 to 4; the others keep height and width.
        pool: what the linear layer sees: the mean over positions (``"mean"``, as in MAML's
            Omniglot runs) or all of them (``"flatten"``).
        head: False leaves out the linear layer, for learners that need features.
        seed: of the weights.

    Raises:
        SettingError: a value out of range.

    Source: Vinyals et al., "Matching Networks", 2016; Finn, Abbeel and Levine, "MAML", 2017.
    """

    @checked
    def __init__(
        self,
        input_shape: Sequence[int],
        outputs: int,
        *,
        filters: int | Sequence[int] = 64,
        downsample: Downsample = "stride",
        halvings: int = _BLOCKS,
        pool: Pool = "mean",
        head: bool = True,
        seed: int = 0,
    ) -> None:
        check_pictures("Conv4", input_shape, outputs)
        check_choice("downsample", downsample, Downsample)
        check_choice("pool", pool, Pool)
        check_whole("halvings", halvings, 1, _BLOCKS)
        widths = check_widths(filters, _BLOCKS)
        check_seed(seed)
        channels, height, width = input_shape
        pairs = itertools.pairwise([channels, *widths])
        check_memory("filters", filters, 4 * 9 * sum(a * b for a, b in pairs))
        if downsample == "max_pool" and min(height, width) < 2**halvings:
            raise SettingError(
                "input_shape",
                tuple(input_shape),
                f"{halvings} poolings need a height and width of at least {2**halvings}; "
                "use downsample=stride",
            )
        with torch.random.fork_rng(devices=[]):  # torch's own initialisation, overwritten below
            blocks = []
            for index, filters in enumerate(widths):
                halving = downsample if index < halvings else None
                blocks.append(_block(channels, filters, halving))
                channels = filters
                up = 1 if downsample == "stride" else 0  # a stride rounds up, a pooling down
                if halving:
                    height, width = (height + up) // 2, (width + up) // 2
            features = channels * (height * width if pool == "flatten" else 1)
            last = nn.Linear(features, outputs) if head else None
        gather = [nn.Flatten()] if pool == "flatten" else [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.gather = nn.Sequential(*gather)
        if last is not None:
            self.head = last
        _initialise(self, seed)


def _block(channels: int, filters: int, downsample: Downsample | None) -> nn.Sequential:
    stride = 2 if downsample == "stride" else 1
    layers: list[nn.Module] = [
        nn.Conv2d(channels, filters, kernel_size=3, stride=stride, padding=1),
        nn.BatchNorm2d(filters, track_running_stats=False),
        nn.ReLU(),
    ]
    if downsample == "max_pool":
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


def _initialise(module: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight, generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
