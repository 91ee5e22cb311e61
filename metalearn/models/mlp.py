"""A multilayer perceptron.

Axes: N samples, H hidden units.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from metalearn.core.checks import check_number
from metalearn.core.memory import check_memory
from metalearn.errors import SettingError, check_whole
from metalearn.models.dropout import Dropout
from metalearn.models.settings import check_choice
from metalearn.random_streams import check_seed
from metalearn.signatures import checked

__all__ = ["MLP"]

Activation = Literal["relu", "gelu", "tanh"]
_ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}


class MLP(nn.Sequential):
    """Linear layers, a nonlinearity between them; inputs ``[N, *input_shape]`` are flattened first.

    The weights are drawn from a generator of their own, seeded by ``seed`` (He normal for ReLU,
    times ``init_scale``, biases N(0, ``init_bias**2``); Glorot normal and 0 for the last layer).
    A scale above 1 makes the function at initialisation vary more over its inputs (Poole et al.,
    "Exponential expressivity in deep neural networks through transient chaos", NeurIPS 2016), and
    biases let it differ where inputs are near 0: members of an ensemble then differ more where
    there are no data.

    Args:
        input_shape: shape of one sample.
        outputs: size of the output ``[N, outputs]``.
        hidden: H of each hidden layer; the MAML paper's sinusoid network has ``(40, 40)``.
        init_scale: factor of the hidden layers' weights, above 0.
        init_bias: standard deviation of the hidden layers' biases, at least 0.
        activation: ``"relu"``, or ``"gelu"`` or ``"tanh"``, which are smooth: what differentiates
            through a training, or by second derivatives, finds more in them.
        dropout: rate of a `Dropout` after each hidden layer, in [0, 1); 0 puts none there.
        seed: of the weights.

    Raises:
        SettingError: a size below 1, a scale or rate out of range.
    """

    @checked
    def __init__(
        self,
        input_shape: Sequence[int],
        outputs: int,
        *,
        hidden: Sequence[int] = (40, 40),
        init_scale: float = 1.0,
        init_bias: float = 0.0,
        activation: Activation = "relu",
        dropout: float = 0.0,
        seed: int = 0,
    ) -> None:
        for name, sizes in (("input_shape", input_shape), ("hidden", hidden)):
            for size in sizes:
                check_whole(name, size, 1)
        check_whole("outputs", outputs, 1)
        check_choice("activation", activation, Activation)
        check_number("dropout", dropout, least=0, below=1)
        check_number("init_scale", init_scale, above=0)
        check_number("init_bias", init_bias, least=0)
        if not input_shape:
            raise SettingError("input_shape", (), "at least one axis is needed")
        check_seed(seed)
        widths = [math.prod(input_shape), *hidden]
        weights = sum(wide * narrow for wide, narrow in itertools.pairwise([*widths, outputs]))
        check_memory("hidden", list(hidden), 4 * weights)
        layers: list[nn.Module] = [nn.Flatten()]
        with torch.random.fork_rng(devices=[]):  # torch's own initialisation, overwritten below
            for wide, narrow in itertools.pairwise(widths):
                layers += [nn.Linear(wide, narrow), _ACTIVATIONS[activation]()]
                if dropout:
                    layers.append(Dropout(dropout, key=(seed * 65537 + len(layers)) % 2**63))
            layers.append(nn.Linear(widths[-1], outputs))
        super().__init__(*layers)
        generator = torch.Generator().manual_seed(seed)
        *inner, last = [layer for layer in self if isinstance(layer, nn.Linear)]
        for layer in inner:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
            layer.weight.data.mul_(init_scale)
            nn.init.zeros_(layer.bias)
            if init_bias:
                nn.init.normal_(layer.bias, std=init_bias, generator=generator)
        nn.init.xavier_normal_(last.weight, generator=generator)
        nn.init.zeros_(last.bias)
