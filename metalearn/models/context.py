"""A network that answers in a context: a vector that shifts, or scales and shifts, one layer.

Axes: N samples, D entries of a context, F features or channels of a layer.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from metalearn.errors import SettingError, check_whole
from metalearn.random_streams import check_seed
from metalearn.signatures import checked

__all__ = ["WithContext"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BATCH_NORMS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
)
_ACCEPTED = "the name of a Linear, convolution, batch, instance or group norm layer is needed"


class WithContext(nn.Module):
    """``module(x, c)`` is the network on x ``[N, ...]`` in the context c ``[D]``.

    A linear layer h = W x + b becomes W x + V c + b, which is the layer on x and c concatenated;
    the channels of a convolution or norm are scaled and shifted, (1 + V c) ⊙ h + V' c (FiLM). Where
    c is zero, or None, the network answers as it is. V is drawn from a generator of its own
    (normal, variance 2 / (inputs + D) for a linear layer, 1 / D for channels); there are no biases.

    Args:
        network: is held as ``network``; its parameters are shared.
        size: D.
        layer: its name in the network. None takes the first linear layer of a network without
            convolutions, which concatenates c to the inputs, else the third convolution, or the
            last where there are fewer, or the norm that follows it.
        seed: of V.

    Raises:
        SettingError: a layer that is not there or of another kind, a convolution whose norm would
            take the context out again.

    Source: Perez et al., "FiLM: Visual Reasoning with a General Conditioning Layer", AAAI 2018.
    """

    @checked
    def __init__(
        self, network: nn.Module, size: int, *, layer: str | None = None, seed: int = 0
    ) -> None:
        super().__init__()
        check_whole("size", size, 1)
        check_seed(seed)
        self.size = size
        self.layer = _default_layer(network) if layer is None else _given_layer(network, layer)
        found = network.get_submodule(self.layer)
        self.scales = not isinstance(found, nn.Linear)
        features = _features(found) or 0
        variance = 1 / size
        if isinstance(found, nn.Linear):
            variance = 2 / (found.in_features + size)
        like = next((p for p in network.parameters()), torch.zeros(()))
        draws = torch.Generator().manual_seed(seed)
        start = torch.randn((1 + self.scales) * features, size, generator=draws)
        self.network = network
        self.weight = nn.Parameter((start * math.sqrt(variance)).to(like))

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        """Outputs of inputs ``[N, ...]`` in a context ``[D]``."""
        if context is None:
            outputs: Tensor = self.network(inputs)
            return outputs
        found = self.network.get_submodule(self.layer)
        change = self.weight @ context
        handle = found.register_forward_hook(lambda layer, given, h: self._changed(h, change))
        try:
            outputs = self.network(inputs)
        finally:
            handle.remove()
        return outputs

    def _changed(self, features: Tensor, change: Tensor) -> Tensor:
        """Features of the layer, ``[N, ..., F]`` or ``[N, F, ...]``, in the context."""
        if not self.scales:
            return features + change
        scale, shift = change.reshape(2, -1, *[1] * (features.dim() - 2))
        changed: Tensor = features * (1 + scale) + shift
        return changed


def _features(layer: nn.Module) -> int | None:
    """F of a layer that can be in a context; None of others."""
    if isinstance(layer, nn.Linear):
        return layer.out_features
    if isinstance(layer, _CONVOLUTIONS):
        return layer.out_channels
    if isinstance(layer, _BATCH_NORMS):
        return int(layer.num_features)
    return layer.num_channels if isinstance(layer, nn.GroupNorm) else None


def _default_layer(network: nn.Module) -> str:
    """The layer that is taken where none is named."""
    layers: list[tuple[str, nn.Module]]
    layers = [(name, layer) for name, layer in network.named_modules() if _features(layer)]
    convolutions = [i for i, (_, layer) in enumerate(layers) if isinstance(layer, _CONVOLUTIONS)]
    if convolutions:
        place = convolutions[:3][-1]
        follows = layers[place + 1 : place + 2]
        if follows and isinstance(follows[0][1], (*_BATCH_NORMS, nn.GroupNorm)):
            return follows[0][0]
        return layers[place][0]
    linear = [name for name, layer in layers if isinstance(layer, nn.Linear)]
    if linear:
        return linear[0]
    raise SettingError("layer", None, f"{_ACCEPTED}; {type(network).__name__} has none")


def _given_layer(network: nn.Module, name: str) -> str:
    """A named layer, if it can be in a context."""
    layers = dict(network.named_modules())
    names: list[str] = [known for known, layer in layers.items() if _features(layer)]
    if name not in names:
        raise SettingError("layer", name, f"{_ACCEPTED}, one of {', '.join(names) or 'none here'}")
    after = names[names.index(name) + 1 :][:1]
    norms = after and isinstance(layers[after[0]], _BATCH_NORMS)
    if norms and isinstance(layers[name], _CONVOLUTIONS):
        accepted = f"{after[0]} is needed, since that norm takes scale and shift out again"
        raise SettingError("layer", name, accepted)
    return name
