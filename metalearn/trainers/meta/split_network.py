"""A network whose last layer is its head, taken apart: features of the body, outputs of the head.

Axes: N samples, D features, C classes (or outputs).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.core import functionalize
from metalearn.errors import SettingError
from metalearn.trainers.meta.network import LearnerNetwork
from metalearn.types import Params

__all__ = ["SplitNetwork", "split_at_head"]


class SplitNetwork(NamedTuple):
    """Two functions of a network's parameters, which one after the other are the network."""

    features: Callable[[Params, Tensor], Tensor]
    """``[N, ..., D]`` of inputs ``[N, ...]``."""
    outputs: Callable[[Params, Tensor], Tensor]
    """``[N, ..., C]`` of features."""


def split_at_head(
    network: LearnerNetwork, head: Sequence[str], inputs: Tensor
) -> SplitNetwork | None:
    """The network in two functions; None where it is not a body and a linear layer after it.

    It is where these parameters are those of one linear layer that is called once, on what a
    network without it gives, and whose output is that of the network. A trial shows that, at the
    weights and beside them, so that a branch that starts at zero does not pass for none.

    Args:
        network: of a learner.
        head: names of its parameters that are the head.
        inputs: ``[N, ...]`` of a task.
    """
    layers = {name.rpartition(".")[0] for name in head}
    place = layers.pop()
    if layers or not place or network.buffers:  # what buffers hold may change
        return None
    whole = network.copies()[0]
    layer = dict(whole.named_modules()).get(place)
    if type(layer) is not nn.Linear or len(list(layer.parameters())) != len(head):
        return None
    if not _gives_the_output(layer, whole, inputs):
        return None
    whole.set_submodule(place, nn.Identity())
    try:
        body, own, buffers = functionalize(whole, vectorize=not network.only_loop)
    except SettingError:
        return None
    row = network.rows()[0]
    every = set(network.names) if network.learnt is None else set(network.learnt.without(row))
    if buffers or set(own) != every - set(head):  # a weight that is tied to one of the head's
        return None
    weight, bias = f"{place}.weight", f"{place}.bias"

    def features(params: Params, inputs: Tensor) -> Tensor:
        found: Tensor = body({name: params[name] for name in own}, buffers, inputs)
        return found

    def outputs(params: Params, features: Tensor) -> Tensor:
        return F.linear(features, params[weight], params.get(bias))

    split = SplitNetwork(features, outputs)
    return split if _agrees(split, network, row, inputs) else None


def _gives_the_output(layer: nn.Module, whole: nn.Module, inputs: Tensor) -> bool:
    """Whether the layer is called once, and what it gives is what the network gives."""
    given: list[Any] = []
    handle = layer.register_forward_hook(lambda _layer, _inputs, output: given.append(output))
    try:
        with torch.no_grad():
            output = whole(inputs)
    except Exception:  # inputs that the network cannot take are refused where it is used
        return False
    finally:
        handle.remove()
    return len(given) == 1 and given[0] is output


def _agrees(
    split: SplitNetwork, network: LearnerNetwork, row: Mapping[str, Tensor], inputs: Tensor
) -> bool:
    """Whether both functions are the network at its weights, and at others near them."""
    draws = torch.Generator().manual_seed(0)
    noise = {name: torch.randn(value.shape, generator=draws) for name, value in row.items()}
    for size in (0.0, 0.1):
        params = {name: value + size * noise[name].to(value) for name, value in row.items()}
        try:
            with torch.no_grad():
                found = split.outputs(params, split.features(params, inputs))
        except Exception:  # a forward pass that asks for what the head alone has
            return False
        wanted = network.apply(params, network.buffers, inputs)
        if found.shape != wanted.shape or not torch.allclose(found, wanted, rtol=1e-4, atol=1e-5):
            return False
    return True
