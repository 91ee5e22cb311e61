"""A conditional neural process: a network in the context of a set of examples.

Axes: N examples, B queries, R entries of a representation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from metalearn.errors import SettingError, check_whole
from metalearn.models.context import WithContext
from metalearn.models.mlp import MLP
from metalearn.random_streams import check_seed
from metalearn.signatures import checked

__all__ = ["NeuralProcess"]


class NeuralProcess(nn.Module):
    """``module(x, inputs, targets)`` predicts x ``[B, ...]`` from the N examples of a set.

    r = 1/N Σ_i h(x_i, y_i), ``[R]``, and the mean is g(x, r), ``[B, outputs]``: g is the network,
    with r concatenated to the inputs of its first layer, and h a multilayer perceptron. With
    ``variance`` a second one gives log-variances of the same shape, beside the means on a last
    axis: ``[B, outputs, 2]``. Where there are no examples r is zero, which is the bare network;
    that is also the answer of ``module(x)``, means alone. The order of examples is of no matter.

    Args:
        network: of linear first and last layers, from ``[B, ...]`` (flattened) to values.
        representation: R.
        hidden: units of the hidden layers of h.
        variance: whether to give log-variances.
        seed: of the weights but those of the network.

    Raises:
        SettingError: a network of other layers, a size below 1.

    Source: Garnelo et al., "Conditional Neural Processes", ICML 2018.
    """

    @checked
    def __init__(
        self,
        network: nn.Module,
        *,
        representation: int = 64,
        hidden: Sequence[int] = (64, 64),
        variance: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_whole("representation", representation, 1)
        check_seed(seed)
        layers = [m for m in network.modules() if isinstance(m, nn.Linear)]
        others = [m for m in network.modules() if _has_axes(m)]
        if not layers or others:
            accepted = "a network of linear layers is needed, such as the mlp"
            raise SettingError("module", type(network).__name__, accepted)
        self.inputs, self.outputs = layers[0].in_features, layers[-1].out_features
        like, size = layers[0].weight, self.inputs + self.outputs
        self.decoder = WithContext(network, representation, seed=seed)
        self.encoder = MLP((size,), representation, hidden=hidden, seed=seed).to(like)
        self.spread: nn.Module | None = None
        if variance:
            wide = (self.inputs + representation,)
            self.spread = MLP(wide, self.outputs, hidden=hidden, seed=seed + 1).to(like)

    def forward(
        self, queries: Tensor, inputs: Tensor | None = None, targets: Tensor | None = None
    ) -> Tensor:
        """Means ``[B, outputs]``, or with log-variances ``[B, outputs, 2]``.

        Args:
            queries: ``[B, ...]``.
            inputs: of the examples, ``[N, ...]``.
            targets: ``[N, outputs]``.
        """
        if inputs is None or targets is None:
            bare: Tensor = self.decoder(queries)
            return bare
        pairs = torch.cat([inputs.flatten(1), targets.flatten(1)], 1)
        context = self.encoder(pairs).sum(0) / max(1, len(pairs))
        means: Tensor = self.decoder(queries, context)
        if self.spread is None:
            return means
        flat = queries.flatten(1)
        both = torch.cat([flat, context.expand(len(flat), -1)], 1)
        return torch.stack([means, self.spread(both)], -1)


def _has_axes(layer: nn.Module) -> bool:
    """Whether a layer has parameters and is not linear."""
    return not isinstance(layer, nn.Linear) and any(
        math.prod(p.shape) for p in layer.parameters(recurse=False)
    )
