"""The classification networks of torchvision, for pictures of any channels and any outputs.

Axes: N pictures, [channels, height, width] of a picture, C classes.
"""

from __future__ import annotations

import re
import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
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

__all__ = ["put_saved", "standardisation", "torchvision_model"]

_BESIDE = ("aux", "AuxLogits")
"""Layers of googlenet and inception_v3 for their training alone, which are left out."""

_OLD_NAMES = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")
"""Of layers in the files that torchvision offers for its densenets."""


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
        standardise: whether pictures, in [0, 1], are brought to what torchvision's weights of that
            network expect: each channel standardised, one channel repeated. None: with weights
            alone.
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
        saved = _saved(name, weights, download=download)
        network = _network(name, _settings(name, input_shape, standardise), saved)
        if not standardise:
            _take_channels(network, input_shape[0])
    if standardise:
        if input_shape[0] not in (1, 3):
            accepted = "1 or 3 channels are needed for weights of torchvision's"
            raise SettingError("input_shape", tuple(input_shape), accepted)
        network.register_forward_pre_hook(standardisation(name))
    put_head(network, outputs if head else None, head_of(network), seed=seed)
    return _without_noise(network, dropout, seed)


def _network(name: str, settings: Mapping[str, Any], saved: SavedWeights | None) -> nn.Module:
    """The network as torchvision makes it, with the weights that were asked for."""
    from torchvision import models

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # how googlenet and inception draw their weights
            network: nn.Module = models.get_model(name, weights=None, **settings)
            if saved is None:
                return network
            last = next(network.get_submodule(head_of(network)).parameters())
            given = saved.entries.get(f"{head_of(network)}.weight", last)
            fits = given.dim() and given.shape[1:] == last.shape[1:]
            if fits and len(given) not in (0, len(last)):
                network = models.get_model(name, weights=None, num_classes=len(given), **settings)
    except (ValueError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise SettingError("name", name, f"torchvision cannot make it: {reason}") from error
    put_saved(network, saved)
    return network


def _saved(name: str, weights: str | None, *, download: bool) -> SavedWeights | None:
    """The weights of a file, or those that torchvision offers as its default."""
    from torchvision import models  # an import of seconds

    check_known("name", name, models.list_models(module=models))
    if weights is not None:
        return read_weights(weights)
    if not download:
        return None
    offered = models.get_model_weights(name).DEFAULT
    try:
        return SavedWeights(Path(name), offered.get_state_dict(check_hash=True), {}, "")
    except (OSError, RuntimeError) as error:
        accepted = "torchvision cannot fetch it: " + str(error).partition("\n")[0]
        raise SettingError("download", True, accepted) from error


def put_saved(network: nn.Module, saved: SavedWeights) -> None:
    """Put weights into a network, in the names of earlier releases of torchvision too.

    Layers take what they had then: no counters of batches, other names of an MLP's layers.
    """
    entries = {_OLD_NAMES.sub(r"\1\2", n): v for n, v in saved.entries.items()}
    entries = {n: v for n, v in entries.items() if not n.startswith(_BESIDE)}
    state: Any = OrderedDict(entries)
    state._metadata = {"": network.state_dict()._metadata[""]}  # type: ignore[attr-defined]
    try:
        network.load_state_dict(state)
    except RuntimeError:
        put_entries(network.state_dict(), entries, (), path=saved.path)  # or says what is amiss


def _settings(name: str, input_shape: Sequence[int], standardise: bool) -> dict[str, Any]:
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
    if name in ("googlenet", "inception_v3"):
        return {"aux_logits": False, "init_weights": True, "transform_input": standardise}
    return {}


def standardisation(name: str) -> Any:
    """What brings pictures to what torchvision's weights of a network expect."""
    from torchvision import models

    offered = models.get_model_weights(name).DEFAULT.transforms()
    return partial(_standardised, mean=tuple(offered.mean), deviation=tuple(offered.std))


def _standardised(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    *,
    mean: Sequence[float],
    deviation: Sequence[float],
) -> tuple[Tensor, ...]:
    pictures, *rest = inputs
    shift, scale = (pictures.new_tensor(v)[:, None, None] for v in (mean, deviation))
    return (pictures - shift) / scale, *rest


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
