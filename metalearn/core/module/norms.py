"""Normalisation layers: which a module has, and others put in their place.

Axes: N samples, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from metalearn.core.module.copying import copy_module
from metalearn.core.module.step_norms import (
    StepNorm,
    batch_moments,
    normalized_by,
    reading_statistics,
)
from metalearn.errors import SettingError
from metalearn.signatures import checked

__all__ = [
    "Norm",
    "RunningNorm",
    "convert_norm",
    "moved_statistics",
    "norm_parameters",
    "normalization_of",
    "without_noting",
]

Norm = Literal["batch_stats", "running", "group", "layer"]

Moments = dict[int, tuple[Tensor, Tensor]]
"""New running mean and variance, by the key of a layer."""
_moved: ContextVar[Moments | None] = ContextVar("statistics of layers that are called")


@checked
def convert_norm(module: nn.Module, norm: Norm) -> nn.Module:
    """A copy of the module whose batch and instance norms write no running statistics.

    Scale and shift are kept.

    Args:
        module: left as it is.
        norm: ``"batch_stats"`` keeps the layers and normalises with the statistics of the batch
            at hand (as MAML does); ``"running"`` puts `RunningNorm` in the place of batch norms,
            and lets instance norms be without running statistics; ``"group"`` puts GroupNorm in
            their place, with as many groups, at most 8, as divide the channels; ``"layer"``
            GroupNorm with one group, over channels and positions of a sample.

    Raises:
        SettingError: an unknown norm; ``"running"`` of a module without batch norms, or of one
            that averages over all batches.
    """
    if norm not in get_args(Norm):
        raise SettingError("norm", norm, f"one of {', '.join(get_args(Norm))} is needed")
    root = nn.ModuleDict({"module": copy_module(module)})
    converted: dict[nn.Module, nn.Module] = {}  # a layer used twice stays one layer
    for name, layer in list(root.named_modules(remove_duplicate=False)):
        if isinstance(layer, _NormBase):
            if layer not in converted:
                converted[layer] = _CONVERSIONS[norm](layer)
                _number(converted[layer], len(converted))
            parent, _, child = name.rpartition(".")
            setattr(root.get_submodule(parent), child, converted[layer])
    if norm == "running" and not any(isinstance(m, RunningNorm) for m in root.modules()):
        accepted = "batch normalisation is needed for norm='running'"
        raise SettingError("module", type(module).__name__, accepted)
    return root["module"]


class RunningNorm(nn.Module):
    """y = γ·(x − m)/√(v + eps) + β with moments m and v that stay as they are in a forward pass.

    `moved_statistics` moves them. Inputs are ``[N, C, ...]``; parameters and buffers are called as
    those of the layer in whose place it stands.

    Args:
        layer: gives channels, eps, momentum, scale and shift, and the moments to begin with; 0 and
            1 where it has none.

    Raises:
        SettingError: a layer without momentum, which averages over all batches.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, layer: _BatchNorm) -> None:
        super().__init__()
        if layer.momentum is None:
            accepted = "a momentum is needed for norm='running'; without, all batches are averaged"
            raise SettingError("module", type(layer).__name__, accepted)
        self.eps, self.momentum, self.key = layer.eps, float(layer.momentum), 0
        self.weight, self.bias = layer.weight, layer.bias
        known = [t for t in (layer.running_mean, layer.weight) if t is not None]
        like = known[0] if known else torch.empty(0)
        zeros = torch.zeros(layer.num_features, dtype=like.dtype, device=like.device)
        for name, start in (("running_mean", zeros), ("running_var", zeros + 1)):
            held = getattr(layer, name)
            self.register_buffer(name, start if held is None else held.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        moved = _moved.get(None)
        if moved is not None:
            moved[self.key] = self._towards(x, *moved.get(self.key, self.moments))
        return normalized_by(x, *self.moments, self.weight, self.bias, eps=self.eps)

    def extra_repr(self) -> str:
        """Channels, eps and momentum."""
        return f"{len(self.running_mean)}, eps={self.eps}, momentum={self.momentum}"

    @property
    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance, ``[C]``."""
        return self.running_mean, self.running_var

    def _towards(self, x: Tensor, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """Moments moved towards those of a batch, by the momentum; the variance is unbiased."""
        pairs = zip((mean, variance), batch_moments(x))
        one, other = (torch.lerp(old, new, self.momentum) for old, new in pairs)
        return one, other


def moved_statistics(module: nn.Module, call: Callable[[], object]) -> dict[str, Tensor]:
    """By the name of a buffer, the running statistics of a module after one more batch.

    Each moves towards the moments of what its `RunningNorm` is called with, by the momentum.

    Args:
        module: has the layers.
        call: a forward pass of the module, or of copies of it, outside transforms.
    """
    names = {m.key: n for n, m in module.named_modules() if isinstance(m, RunningNorm)}
    found: dict[str, Tensor] = {}
    if names:
        moved: Moments = {}
        with _noting(moved), torch.no_grad():
            call()
        for key, pair in moved.items():
            for kind, value in zip(("running_mean", "running_var"), pair):
                found[".".join(filter(None, (names[key], kind)))] = value
    return found


@contextmanager
def without_noting() -> Iterator[None]:
    """A block in which a forward pass is none of the passes that move statistics."""
    with _noting(None), reading_statistics(None):
        yield


def normalization_of(module: nn.Module) -> str:
    """What a module normalises with, in a word; several are joined by commas.

    ``"batch_stats"``, ``"running"``, ``"running_per_step"``, ``"group"``, ``"layer"``,
    ``"instance"``, ``"rms"``; ``"none"`` where it has no layer of torch's that does.
    """
    kinds = [_kind(layer) for layer in module.modules()]
    return ", ".join(dict.fromkeys(kind for kind in kinds if kind)) or "none"


def _kind(layer: nn.Module) -> str:
    """Of one layer; empty where it does not normalise."""
    if isinstance(layer, StepNorm):
        return "running_per_step"
    if isinstance(layer, _BatchNorm):
        return "batch_stats" if layer.training or layer.running_mean is None else "running"
    if isinstance(layer, nn.GroupNorm):
        return "layer" if layer.num_groups == 1 else "group"
    others: dict[type[nn.Module], str] = {
        RunningNorm: "running",
        nn.LayerNorm: "layer",
        nn.RMSNorm: "rms",
        _NormBase: "instance",
    }
    return next((name for kind, name in others.items() if isinstance(layer, kind)), "")


def norm_parameters(module: nn.Module) -> list[str]:
    """Names of scales and shifts of a module's normalisation layers."""
    layers = [(name, layer) for name, layer in module.named_modules() if _kind(layer)]
    return [
        ".".join(filter(None, (name, own)))
        for name, layer in layers
        for own, _ in layer.named_parameters(recurse=False)
    ]


@contextmanager
def _noting(moved: Moments | None) -> Iterator[None]:
    """A block in which layers note where their statistics go; None has them note nothing."""
    token = _moved.set(moved)
    try:
        yield
    finally:
        _moved.reset(token)


def _number(layer: nn.Module, key: int) -> None:
    """Have a layer known by a number, by which copies of it are known too."""
    if isinstance(layer, RunningNorm):
        layer.key = key


def _without_statistics(layer: _NormBase) -> nn.Module:
    layer.track_running_stats = False
    layer.running_mean = layer.running_var = layer.num_batches_tracked = None
    return layer


def _in_groups(layer: _NormBase, groups: int | None = None) -> nn.Module:
    groups = groups or max(g for g in range(1, 9) if layer.num_features % g == 0)
    new = nn.GroupNorm(groups, layer.num_features, layer.eps, layer.affine)
    if layer.affine:
        new.weight, new.bias = layer.weight, layer.bias
    return new


def _with_running_statistics(layer: _NormBase) -> nn.Module:
    return RunningNorm(layer) if isinstance(layer, _BatchNorm) else _without_statistics(layer)


_CONVERSIONS: dict[str, Callable[[_NormBase], nn.Module]] = {
    "batch_stats": _without_statistics,
    "running": _with_running_statistics,
    "group": _in_groups,
    "layer": lambda layer: _in_groups(layer, 1),
}
