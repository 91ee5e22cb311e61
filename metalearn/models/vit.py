"""A small vision transformer.

Axes: N pictures, [channels, height, width] of a picture, P patches, D width, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from metalearn.core.memory import check_memory
from metalearn.errors import SettingError, check_whole
from metalearn.models.attention import Block
from metalearn.models.settings import check_pictures
from metalearn.random_streams import check_seed
from metalearn.signatures import checked

__all__ = ["ViT"]


class ViT(nn.Module):
    """Patches with learnt positions, pre-norm transformer blocks, the mean over patches, a layer.

    Maps pictures ``[N, channels, height, width]`` to logits ``[N, outputs]``, or without the last
    layer to features ``[N, D]``. Attention is written in matrix products, as torch's MATH backend
    has it, so that every derivative and vmap pass through it; no sample depends on the others.
    The weights are drawn from a generator of their own, seeded by ``seed`` (Glorot uniform,
    biases 0, positions N(0, 0.02²)).

    Args:
        input_shape: ``(channels, height, width)``, height and width multiples of ``patch``.
        outputs: C; of no concern without ``head``.
        patch: side of a square patch.
        width: D, a multiple of ``heads``.
        depth: number of blocks.
        heads: of the attention of each block.
        hidden: width of the MLP of each block, as a multiple of D.
        head: False leaves out the last layer, for learners that need features.
        seed: of the weights.

    Raises:
        SettingError: a value out of range, or sizes that do not divide.

    Source: Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021; the mean in place of a
    class token: Beyer, Zhai and Kolesnikov, "Better plain ViT baselines for ImageNet-1k", 2022.
    """

    @checked
    def __init__(
        self,
        input_shape: Sequence[int],
        outputs: int,
        *,
        patch: int = 7,
        width: int = 64,
        depth: int = 4,
        heads: int = 4,
        hidden: int = 2,
        head: bool = True,
        seed: int = 0,
    ) -> None:
        check_pictures("ViT", input_shape, outputs)
        sizes = {"patch": patch, "width": width, "depth": depth, "heads": heads, "hidden": hidden}
        for name, size in sizes.items():
            check_whole(name, size, 1)
        check_seed(seed)
        channels, *sides = input_shape
        if any(side % patch for side in sides):
            accepted = f"a divisor of the height and width, {sides[0]} and {sides[1]}, is needed"
            raise SettingError("patch", patch, accepted)
        if width % heads:
            raise SettingError("width", width, f"a multiple of heads={heads} is needed")
        patches = math.prod(side // patch for side in sides)
        weights = width * (channels * patch**2 + patches + depth * width * (4 + 2 * hidden))
        check_memory("width", width, 4 * weights)
        super().__init__()
        with torch.random.fork_rng(devices=[]):  # torch's own initialisation, overwritten below
            self.patches = nn.Conv2d(channels, width, patch, stride=patch)
            self.positions = nn.Parameter(torch.empty(patches, width))
            self.blocks = nn.Sequential(*(Block(width, heads, hidden) for _ in range(depth)))
            self.norm = nn.LayerNorm(width)
            self.head = nn.Linear(width, outputs) if head else nn.Identity()
        generator = torch.Generator().manual_seed(seed)
        nn.init.normal_(self.positions, std=0.02, generator=generator)
        for layer in self.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(layer.weight, generator=generator)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """``[N, channels, height, width]`` to ``[N, outputs]``."""
        tokens = self.patches(x).flatten(2).mT + self.positions  # [N, P, D]
        logits: Tensor = self.head(self.norm(self.blocks(tokens)).mean(1))
        return logits
