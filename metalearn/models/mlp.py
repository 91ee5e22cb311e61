"""A multilayer perceptron.

Axes: N samples, H hidden units.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import nn

from metalearn.errors import SettingError

__all__ = ["MLP"]


class MLP(nn.Sequential):
    """Linear layers with ReLU between them; inputs ``[N, *input_shape]`` are flattened first.

    The weights are drawn from a generator of their own, seeded by ``seed`` (He normal for ReLU,
    Glorot normal for the last layer, biases 0).

    Args:
        input_shape: shape of one sample.
        outputs: size of the output ``[N, outputs]``.
        hidden: H of each hidden layer; the MAML paper's sinusoid network has ``(40, 40)``.
        seed: of the weights.

    Raises:
        SettingError: a size below 1.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        outputs: int,
        *,
        hidden: Sequence[int] = (40, 40),
        seed: int = 0,
    ) -> None:
        for name, sizes in (("hidden", hidden), ("input_shape", input_shape)):
            if any(isinstance(s, bool) or not isinstance(s, int) or s < 1 for s in sizes):
                raise SettingError(name, list(sizes), "whole numbers of at least 1 are needed")
        widths = [math.prod(input_shape), *hidden]
        layers: list[nn.Module] = [nn.Flatten()]
        for wide, narrow in itertools.pairwise(widths):
            layers += [nn.Linear(wide, narrow), nn.ReLU()]
        super().__init__(*layers, nn.Linear(widths[-1], outputs))
        generator = torch.Generator().manual_seed(seed)
        *inner, last = [layer for layer in self if isinstance(layer, nn.Linear)]
        for layer in inner:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
            nn.init.zeros_(layer.bias)
        nn.init.xavier_normal_(last.weight, generator=generator)
        nn.init.zeros_(last.bias)
