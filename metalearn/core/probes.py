"""What the layers of a module see and what comes back to them, as a pure function.

Axes: N samples, R columns of an output factor, S shared positions, O outputs and I inputs of a
layer, C outputs of the module.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.nn.modules.batchnorm import _BatchNorm

from metalearn.core.checks import check_reached
from metalearn.core.likelihood import Likelihood
from metalearn.core.module import functionalize
from metalearn.errors import SettingError

__all__ = ["Layers", "ProbedModule"]

Layers = dict[str, tuple[Tensor, Tensor]]
"""Of each layer: inputs ``[N, S, I (+1 with a bias)]`` and gradients ``[R, N, S, O]``."""


class ProbedModule:
    """A module to whose layers' outputs zeros are added, that their gradients can be taken.

    Raises:
        SettingError: a layer whose parameters have no Kronecker factors, by name.
    """

    def __init__(
        self, module: nn.Module, params: Mapping[str, Tensor], buffers: Mapping[str, Tensor] | None
    ) -> None:
        self._apply, own, held = functionalize(module)
        self._module, self._params = module, dict(params)
        self._buffers = held if buffers is None else dict(buffers)
        self._layers = _layers(module, own)

    def outputs(self, inputs: Any) -> Tensor:
        """Outputs ``[N, C]``; refuses layers that are never called or called twice."""
        outputs, seen, _ = self._forward(inputs, None)
        for name in self._layers:
            if name not in seen:
                raise SettingError(f"module[{name}]", "never called", "freeze what is not used")
        if outputs.dim() != 2:
            raise SettingError("module", tuple(outputs.shape), "outputs [N, C] are needed")
        return outputs

    def run(self, inputs: Any, targets: Tensor, noise: Tensor, likelihood: Likelihood) -> Layers:
        """Inputs and gradients of every layer for one chunk of samples."""
        outputs, seen, sizes = self._forward(inputs, None)
        factors = vmap(likelihood.factor, out_dims=1)(outputs, targets, noise)  # [R, N, C]
        zeros = {name: outputs.new_zeros(size) for name, size in sizes.items()}

        def along(probes: dict[str, Tensor], factor: Tensor) -> Tensor:
            return check_reached((self._forward(inputs, probes)[0] * factor).sum(), "module")

        back = vmap(grad(along), in_dims=(None, 0))(zeros, factors)
        return {
            name: (_inputs(layer, seen[name], self._has_bias(name)), _positions(layer, back[name]))
            for name, layer in self._layers.items()
        }

    def _forward(
        self, inputs: Any, probes: dict[str, Tensor] | None
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, torch.Size]]:
        seen: dict[str, Tensor] = {}
        sizes: dict[str, torch.Size] = {}

        def watch(name: str) -> Any:
            def hook(layer: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
                if name in seen:
                    raise SettingError(
                        f"module[{name}]", "called twice", "a layer that is used once is needed"
                    )
                seen[name], sizes[name] = given[0], output.shape
                return output if probes is None else output + probes[name]

            return hook

        handles = [layer.register_forward_hook(watch(n)) for n, layer in self._layers.items()]
        try:
            outputs = self._apply(self._params, self._buffers, inputs)
        finally:
            for handle in handles:
                handle.remove()
        return outputs, seen, sizes

    def _has_bias(self, name: str) -> bool:
        return (f"{name}.bias" if name else "bias") in self._params


def _layers(module: nn.Module, params: Mapping[str, Tensor]) -> dict[str, nn.Module]:
    """The layers that own ``params``; what has no Kronecker factors is refused."""
    found: dict[str, nn.Module] = {}
    for name, layer in module.named_modules():
        kind = type(layer).__name__
        if isinstance(layer, _BatchNorm) and (layer.training or layer.running_mean is None):
            reason = "it mixes samples; use convert_norm(module, 'group') or eval mode"
            raise SettingError(f"module[{name}]", kind, reason)
        prefix = f"{name}." if name else ""
        own = [n for n, p in layer.named_parameters(recurse=False) if p.requires_grad]
        if not own:
            continue
        if type(layer) not in (nn.Linear, nn.Conv2d):
            reason = "only Linear and Conv2d have Kronecker factors; freeze its parameters"
            raise SettingError(f"module[{name}]", kind, f"{reason} (requires_grad=False)")
        if isinstance(layer, nn.Conv2d) and layer.groups != 1:
            raise SettingError(f"module[{name}].groups", layer.groups, "groups=1 is needed")
        if "weight" not in own:
            raise SettingError(f"module[{name}]", "bias alone", "freeze the bias as well")
        if any(prefix + n not in params for n in own):
            raise SettingError(f"module[{name}]", kind, "tied weights have no factors of their own")
        found[name] = layer
    if not found:
        raise SettingError("module", type(module).__name__, "no layer has parameters to take")
    return found


def _inputs(layer: nn.Module, x: Tensor, bias: bool) -> Tensor:
    """Inputs of a layer as ``[N, S, I]``, with a column of ones for a bias."""
    if isinstance(layer, nn.Conv2d):
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        x = nn.functional.pad(x, layer._reversed_padding_repeated_twice, mode)
        patches = nn.functional.unfold(x, layer.kernel_size, layer.dilation, 0, layer.stride)
        x = patches.mT
    else:
        x = x.reshape(len(x), -1, x.shape[-1])
    return torch.cat([x, x.new_ones((*x.shape[:2], 1))], dim=-1) if bias else x


def _positions(layer: nn.Module, gradients: Tensor) -> Tensor:
    """Gradients ``[R, N, ...]`` of a layer's outputs as ``[R, N, S, O]``."""
    if isinstance(layer, nn.Conv2d):
        return gradients.flatten(3).mT
    return gradients.reshape(*gradients.shape[:2], -1, gradients.shape[-1])
