"""Low-rank adapters: a network whose weights stay, and small matrices beside them that train.

Axes: N samples, I inputs and O outputs (channels) of a layer, r the rank.
"""

from __future__ import annotations

import fnmatch
import math

import torch
from torch import Tensor, nn

from metalearn.core.checks import check_number
from metalearn.core.module.copying import copy_module
from metalearn.errors import SettingError, check_whole
from metalearn.models.heads import last_head
from metalearn.random_streams import check_seed
from metalearn.signatures import checked

__all__ = ["LowRank", "with_lora"]


class LowRank(nn.Module):
    """A linear layer or convolution with weight W + (α/r) B A, of which A and B train.

    y = layer(x) + (α/r)·up(down(x)): ``down`` has the weight A ``[r, I, ...]`` and the stride,
    padding and dilation of the layer, ``up`` the weight B ``[O, r]``, at one position. A is drawn
    uniformly as torch draws a layer's weight, B is zero, so that the layer answers as it did.

    Args:
        layer: becomes ``layer``; its parameters do not train.
        rank: r, at least 1.
        alpha: α, above 0.
        generator: for A.

    Raises:
        SettingError: a value out of range, a convolution with groups.
    """

    @checked
    def __init__(
        self, layer: nn.Linear | nn.Conv2d, rank: int, alpha: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        check_whole("rank", rank, 1)
        check_number("alpha", alpha, above=0)
        if getattr(layer, "groups", 1) != 1:
            raise SettingError("layer", layer, "a layer without groups is needed")
        self.layer, self.scale = layer.requires_grad_(False), alpha / rank
        self.down: nn.Linear | nn.Conv2d
        self.up: nn.Linear | nn.Conv2d
        with torch.random.fork_rng(devices=[]):  # torch's own initialisation, overwritten below
            if isinstance(layer, nn.Linear):
                self.down = nn.Linear(layer.in_features, rank, bias=False)
                self.up = nn.Linear(rank, layer.out_features, bias=False)
            else:
                self.down = nn.Conv2d(
                    layer.in_channels,
                    rank,
                    layer.kernel_size,  # type: ignore[arg-type]
                    stride=layer.stride,  # type: ignore[arg-type]
                    padding=layer.padding,  # type: ignore[arg-type]
                    dilation=layer.dilation,  # type: ignore[arg-type]
                    padding_mode=layer.padding_mode,
                    bias=False,
                )
                self.up = nn.Conv2d(rank, layer.out_channels, 1, bias=False)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5), generator=generator)
        nn.init.zeros_(self.up.weight)
        for part in (self.down, self.up):
            part.to(layer.weight)

    @property
    def weight(self) -> Tensor:
        """W + (α/r) B A, for networks that read a layer's weight in place of calling the layer."""
        up, down = self.up.weight.flatten(1), self.down.weight
        change = (up @ down.flatten(1)).view(len(up), *down.shape[1:])
        return self.layer.weight + self.scale * change

    @property
    def bias(self) -> Tensor | None:
        """That of the layer."""
        return self.layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """As the layer, ``[N, ...]``."""
        y: Tensor = self.layer(x) + self.scale * self.up(self.down(x))
        return y


@checked
def with_lora(
    module: nn.Module,
    rank: int,
    *,
    alpha: float | None = None,
    layers: str = "*",
    seed: int = 0,
) -> nn.Module:
    """A copy of a network of which `LowRank` adapters and the last layer alone train.

    Adapted are linear layers and convolutions without groups whose names match, but for the last
    layer (see `metalearn.models.with_head`), which trains whole where there is one; layers within
    `nn.MultiheadAttention`, which reads its weights itself, are left. All else keeps its values:
    normalisation, biases, depthwise convolutions. The copy answers as the network does.

    Args:
        module: left as it is.
        rank: r, at least 1.
        alpha: α, above 0; None is r, which makes the factor 1.
        layers: a shell-style pattern for the names of the layers.
        seed: of the adapters.

    Raises:
        SettingError: a value out of range, no layer of such a name.

    Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022
    (arXiv 2106.09685).
    """
    check_whole("rank", rank, 1)
    check_seed(seed)
    alpha = float(rank) if alpha is None else alpha
    check_number("alpha", alpha, above=0)
    root = nn.ModuleDict({"module": copy_module(module)})
    head = last_head(module)
    names = [n for n in _adaptable(module) if n != head]
    chosen = fnmatch.filter(names, layers)
    if not chosen:
        shown = ", ".join(names[:8]) or "none here"
        raise SettingError("layers", layers, f"a pattern for layers among {shown} is needed")
    root.requires_grad_(False)
    if head is not None:
        root["module"].get_submodule(head).requires_grad_(True)
    generator = torch.Generator().manual_seed(seed)
    adapted: dict[nn.Module, nn.Module] = {}  # a layer used twice stays one layer
    for name in chosen:
        layer = root["module"].get_submodule(name)
        assert isinstance(layer, nn.Linear | nn.Conv2d)
        adapted[layer] = LowRank(layer, rank, alpha, generator).train(layer.training)
    for name, layer in list(root.named_modules(remove_duplicate=False)):
        if layer in adapted:
            parent, _, child = name.rpartition(".")
            setattr(root.get_submodule(parent), child, adapted[layer])
    return root["module"]


def _adaptable(module: nn.Module) -> list[str]:
    within = [n for n, part in module.named_modules() if isinstance(part, nn.MultiheadAttention)]
    return [
        name
        for name, layer in module.named_modules()
        if type(layer) in (nn.Linear, nn.Conv2d)
        and getattr(layer, "groups", 1) == 1
        and name
        and not any(name.startswith(f"{owner}.") for owner in within)
    ]
