"""BatchEnsemble: members that share their weights up to factors of rank one.

Axes: M members, B samples, I inputs and O outputs of a layer.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from metalearn.core.ensemble.stacking import MemberEngine, map_members
from metalearn.core.module.copying import copy_module
from metalearn.core.module.functionalize import check_layers
from metalearn.core.module.pure_call import PureCall
from metalearn.errors import SettingError, check_whole
from metalearn.models.ensemble import Stack
from metalearn.signatures import checked

__all__ = ["BatchEnsemble", "RankOne"]

Factors = Literal["signs", "normal", "ones"]
"""How factors begin: ±1 with equal chance, N(1, 0.5²), or all 1 (every member the same)."""

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class RankOne(nn.Module):
    """A linear layer or convolution with weight W ∘ (s rᵀ), of one member: s ∘ W(r ∘ x) + b.

    Args:
        layer: gives W, which stays its own, and b.
        r: ``[I]``, one for each input (channel).
        s: ``[O]``, one for each output (channel).
    """

    @checked
    def __init__(self, layer: nn.Linear | nn.Conv2d, r: Tensor, s: Tensor) -> None:
        super().__init__()
        self.layer, self.r, self.s = layer, nn.Parameter(r), nn.Parameter(s)
        self.bias = layer.bias
        layer.bias = None
        self._after = 0 if isinstance(layer, nn.Linear) else len(layer.kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        """Inputs ``[B, I, ...]`` (``[B, ..., I]`` of a linear layer) to as many outputs."""
        z: Tensor = self.layer(x * self._along(self.r)) * self._along(self.s)
        return z if self.bias is None else z + self._along(self.bias)

    def _along(self, values: Tensor) -> Tensor:
        return values.view(-1, *(1,) * self._after)


class BatchEnsemble(nn.Module):
    """M members of one network that share the weights of linear layers and convolutions.

    Member m has W ∘ (s_m r_mᵀ) for each shared W (see `RankOne`), its own biases, and its own
    tensors of every other layer; running statistics are its own as well. All members see the same
    inputs in one pass. Trained on the mean of the members' losses, a shared weight gets the mean of
    the members' gradients and a tensor of member m gets 1/M of its own gradient, as in the paper.

    Args:
        network: copied; its weights and biases are where the members begin.
        members: M.
        factors: see `Factors`.
        seed: of the factors.

    Raises:
        SettingError: a value out of range, a network without such a layer, or one that cannot work.

    Source: Wen, Tran and Ba, "BatchEnsemble", ICLR 2020 (arXiv 2002.06715).
    """

    @checked
    def __init__(
        self, network: nn.Module, members: int = 10, *, factors: Factors = "signs", seed: int = 0
    ) -> None:
        super().__init__()
        check_whole("members", members, 1)
        check_whole("seed", seed, 0)
        if factors not in get_args(Factors):
            raise SettingError("factors", factors, f"one of {', '.join(get_args(Factors))}")
        generator = torch.Generator().manual_seed(seed)
        copies = [_with_factors(network, factors, generator) for _ in range(members)]
        self.network, self.members = Stack(copies).network, members
        self._shared = _share_weights(self.network)
        self._call = PureCall(
            self.network, partial(check_layers, running_stats=True), keeps_buffers=True
        )

    def __len__(self) -> int:
        """M."""
        return self.members

    def forward(self, *args: Any, engine: MemberEngine = "batched", **kwargs: Any) -> Any:
        """Outputs ``[M, ...]`` of all members on the same inputs.

        Args:
            args: inputs ``[B, ...]``.
            engine: see `metalearn.core.ensemble.stacking.MemberEngine`.
            kwargs: of the network.
        """
        tensors = dict(self.network.named_parameters()) | dict(self.network.named_buffers())
        own = {name: value for name, value in tensors.items() if name not in self._shared}
        shared = {name: value for name, value in tensors.items() if name in self._shared}

        def one(own: Any, shared: Any) -> Any:
            return self._call(own, shared, *args, **kwargs)

        return map_members(one, own, shared, in_dims=(0, None), engine=engine)


def _with_factors(network: nn.Module, factors: str, generator: torch.Generator) -> nn.Module:
    """A copy of the network with `RankOne` around its layers, factors drawn for one member."""
    root = nn.ModuleDict({"network": copy_module(network)})
    converted: dict[nn.Module, nn.Module] = {}  # a layer used twice stays one layer
    for name, layer in list(root.named_modules(remove_duplicate=False)):
        if type(layer) in _LAYERS:  # a subclass may be read by its owner, as in attention
            if layer not in converted:
                outputs, inputs = layer.weight.shape[:2]
                inputs *= getattr(layer, "groups", 1)
                r, s = (
                    _drawn(n, factors, generator, layer.weight.detach()) for n in (inputs, outputs)
                )
                converted[layer] = RankOne(layer, r, s).train(layer.training)
            parent, _, child = name.rpartition(".")
            setattr(root.get_submodule(parent), child, converted[layer])
    if not converted:
        kinds = ", ".join(kind.__name__ for kind in _LAYERS)
        raise SettingError("network", type(network).__name__, f"a layer of {kinds} is needed")
    check_layers(root["network"], running_stats=True)
    return root["network"]


def _drawn(size: int, factors: str, generator: torch.Generator, like: Tensor) -> Tensor:
    if factors == "ones":
        return like.new_ones(size)
    values = torch.randn(size, generator=generator)
    return (values.sign() if factors == "signs" else 1 + 0.5 * values).to(like)


def _share_weights(stacked: nn.Module) -> frozenset[str]:
    """Put one weight in place of M equal ones; the names of these weights."""
    placed: dict[nn.Parameter, nn.Parameter] = {}  # tied ones stay tied
    shared = set()
    for name, layer in stacked.named_modules():
        if isinstance(layer, RankOne):
            many = layer.layer.weight
            assert isinstance(many, nn.Parameter)
            if many not in placed:
                placed[many] = nn.Parameter(many.detach()[0].clone(), many.requires_grad)
            layer.layer.weight = placed[many]
            shared.add(f"{name}.layer.weight".lstrip("."))
    return frozenset(shared)
