"""The classification networks of torchvision, for pictures of any channels and any outputs.

Axes: N pictures, [channels, height, width] of a picture, C classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from metalearn.core.checks import check_number
from metalearn.errors import SettingError
from metalearn.models.dropout import convert_dropout
from metalearn.models.heads import head_of, put_head
from metalearn.models.settings import check_pictures
from metalearn.models.weight_files import SavedWeights, check_source, read_weights
from metalearn.models.weights import put_entries
from metalearn.near_names import check_known
from metalearn.random_streams import check_seed
from metalearn.signatures import checked

__all__ = ["torchvision_model"]

_BESIDE = ("aux", "AuxLogits")
"""Layers of googlenet and inception_v3 for their training alone, which are left out."""

_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the channels of ImageNet's training pictures, by which torchvision standardises."""


@checked
def torchvision_model(
    input_shape: Sequence[int],
    outputs: int,
    *,
    name: str = "resnet18",
    weights: str | None = None,
    download: bool = False,
    standardise: bool | None = None,
    head: bool = True,
    dropout: float = 0.0,
    seed: int = 0,
) -> nn.Module:
    """A network of ``torchvision.models`` for pictures, with a new last layer.

    It maps pictures ``[N, channels, height, width]`` to logits ``[N, outputs]``, or without the
    last layer to features ``[N, D]``. Weights are drawn as torchvision draws them, from a generator
    of their own; a first convolution for other than three channels too. Stochastic depth is
    switched off, and so is writing into inputs. Batch norms keep running statistics, which
    meta-learning converts (``maml.norm``).

    Args:
        input_shape: ``(channels, height, width)``; of vision transformers, height is width and a
            multiple of the patch.
        outputs: C; of no concern without ``head``.
        name: one of ``torchvision.models.list_models(module=torchvision.models)``.
        weights: a file with a ``state_dict`` of that network, see `metalearn.models.read_weights`.
        download: take the weights that torchvision offers as its default, over the network.
        standardise: whether pictures, in [0, 1], are brought to what torchvision's weights expect:
            standardised by ImageNet's channels, one channel repeated. None: with weights alone.
        head: False leaves out the last layer, for learners that need features.
        dropout: rate of the network's dropout layers, in [0, 1); 0 switches them off.
        seed: of the weights and of the masks of dropout.

    Raises:
        SettingError: a value out of range, pictures that the network cannot take.
        DataError: weights that are not of this network.
    """
    check_pictures(name if isinstance(name, str) else "torchvision", input_shape, outputs)
    check_number("dropout", dropout, least=0, below=1)
    check_seed(seed)
    if weights is not None:
        check_source("weights", weights)
        if download:
            raise SettingError("download", download, "false is needed beside a file of weights")
    if standardise is None:
        standardise = weights is not None or download
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        saved = None if weights is None else read_weights(weights)
        network = _network(name, input_shape, saved, download=download)
        if not standardise:
            _take_channels(network, input_shape[0])
    if standardise:
        if input_shape[0] not in (1, 3):
            accepted = "1 or 3 channels are needed for weights of torchvision's"
            raise SettingError("input_shape", tuple(input_shape), accepted)
        network.register_forward_pre_hook(_standardised)
    put_head(network, outputs if head else None, head_of(network), seed=seed)
    return _without_noise(network, dropout, seed)


def _network(
    name: str, input_shape: Sequence[int], saved: SavedWeights | None, *, download: bool
) -> nn.Module:
    """The network as torchvision makes it, with the weights that were asked for."""
    from torchvision import models  # an import of seconds

    check_known("name", name, models.list_models(module=models))
    settings = _settings(models.get_model_builder(name), name, input_shape)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # how googlenet and inception draw their weights
            network: nn.Module
            if download:
                network = models.get_model(name, weights="DEFAULT", **settings)
                return network
            network = models.get_model(name, weights=None, **settings)
            if saved is None:
                return network
            last = f"{head_of(network)}.weight"
            classes = len(saved.entries[last]) if last in saved.entries else 1000
            if classes != 1000:
                network = models.get_model(name, weights=None, num_classes=classes, **settings)
    except (ValueError, AssertionError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise SettingError("name", name, f"torchvision cannot make it: {reason}") from error
    entries = {n: v for n, v in saved.entries.items() if not n.startswith(_BESIDE)}
    put_entries(network.state_dict(), entries, (), path=saved.path)
    return network


def _settings(make: Any, name: str, input_shape: Sequence[int]) -> dict[str, Any]:
    """Arguments of a network that are not left to torchvision."""
    _, height, width = input_shape
    if name.startswith("vit_"):
        patch = 14 if name.endswith("14") else int(name.rpartition("_")[2])
        if height != width or height % patch:
            accepted = f"{name} takes squares of a multiple of {patch}"
            raise SettingError("input_shape", tuple(input_shape), accepted)
        return {"image_size": height}
    if name.startswith("maxvit"):
        return {"input_size": (height, width)}
    beside = name in ("googlenet", "inception_v3")
    return {"aux_logits": False, "init_weights": True} if beside else {}


def _standardised(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The pictures as torchvision's weights expect them."""
    pictures, *rest = inputs
    mean, deviation = pictures.new_tensor(_MEAN), pictures.new_tensor(_DEVIATION)
    return (pictures - mean[:, None, None]) / deviation[:, None, None], *rest


def _take_channels(network: nn.Module, channels: int) -> None:
    """Put a first convolution of other channels in the place of one of three."""
    first = next(n for n, layer in network.named_modules() if isinstance(layer, nn.Conv2d))
    old = network.get_submodule(first)
    assert isinstance(old, nn.Conv2d)
    if channels == old.in_channels:
        return
    new = nn.Conv2d(
        channels,
        old.out_channels,
        old.kernel_size,  # type: ignore[arg-type]
        stride=old.stride,  # type: ignore[arg-type]
        padding=old.padding,  # type: ignore[arg-type]
        bias=old.bias is not None,
    )
    parent, _, child = first.rpartition(".")
    setattr(network.get_submodule(parent), child, new)


class Hardsigmoid(nn.Module):
    """ReLU6(x + 3) / 6: `nn.Hardsigmoid` with the second derivative that torch lacks."""

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise."""
        return nn.functional.relu6(x + 3) / 6


def _without_noise(network: nn.Module, dropout: float, seed: int) -> nn.Module:
    """The network without random depth and without layers that write into their input."""
    from torchvision.ops import StochasticDepth

    for layer in list(network.modules()):
        for name, part in layer.named_children():
            if isinstance(part, nn.Hardsigmoid):
                setattr(layer, name, Hardsigmoid())
        if isinstance(layer, StochasticDepth):
            layer.p = 0.0
        elif isinstance(layer, nn.modules.dropout._DropoutNd):
            layer.p = dropout
        elif isinstance(layer, nn.MultiheadAttention):
            layer.dropout = 0.0
        if getattr(layer, "inplace", False):
            setattr(layer, "inplace", False)  # noqa: B010 - of many kinds
    return convert_dropout(network, seed=seed) if dropout else network
