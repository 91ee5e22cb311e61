"""What the layers of a module see and what comes back to them, as a pure function.

Axes: N samples, R columns of an output factor, S shared positions, O outputs and I inputs of a
layer, C outputs of the module.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.nn.modules.batchnorm import _BatchNorm

from metalearn.core._functorch import current_level
from metalearn.core.checks import module_takes
from metalearn.core.curvature.fisher_problem import over_samples
from metalearn.core.curvature.likelihood import Likelihood
from metalearn.core.loss_checks import check_reached
from metalearn.core.module.functionalize import functionalize
from metalearn.core.precision import widened
from metalearn.core.samples.gradients import single
from metalearn.core.samples.layer_io import Convolution, Embedding
from metalearn.core.samples.layer_substitution import Call, LayerCalls
from metalearn.core.tree import check_like
from metalearn.errors import SettingError

__all__ = ["Layers", "ProbedModule"]

Layers = dict[str, tuple[Tensor, Tensor]]
"""Of each layer: inputs ``[N, S, I (+1 with a bias)]`` and gradients ``[R, N, S, O]``."""


class ProbedModule:
    """A module to whose layers' outputs zeros are added, that their gradients can be taken.

    Layers are met where they are called, inside a vmap over samples: whatever axes a layer's input
    has there are positions of one sample, wherever the module puts its samples.

    Raises:
        SettingError: a layer whose parameters have no Kronecker factors, by name.
    """

    def __init__(
        self, module: nn.Module, params: Mapping[str, Tensor], buffers: Mapping[str, Tensor] | None
    ) -> None:
        self._apply, own, held = functionalize(module)
        check_like(dict(params), own, "params")
        self._params = dict(params)
        self._buffers = held if buffers is None else dict(buffers)
        self._layers = _layers(module, own)
        self._name = type(module).__name__

    def outputs(self, inputs: Any) -> Tensor:
        """Outputs ``[N, C]``; refuses layers that are never called or called twice."""
        called: set[str] = set()

        def of_one(x: Any) -> Tensor:
            outputs, seen, _ = self._forward(x, None)
            called.update(seen)
            return outputs

        with module_takes("batch inputs", inputs), self._over_samples(inputs):
            outputs: Tensor = vmap(of_one)(inputs)
        for name in self._layers:
            if name not in called:
                raise SettingError(f"module[{name}]", "never called", "freeze what is not used")
        return outputs

    def run(self, inputs: Any, targets: Tensor, noise: Tensor, likelihood: Likelihood) -> Layers:
        """Inputs and gradients of every layer for one chunk of samples."""

        def of_one(x: Any, target: Tensor, noise: Tensor) -> Any:
            outputs, seen, zeros = self._forward(x, None)
            rows = likelihood.factor(outputs, target, noise)  # [R, C]

            def along(probes: dict[str, Tensor], row: Tensor) -> Tensor:
                return check_reached((self._forward(x, probes)[0] * row).sum(), "module")

            return seen, vmap(grad(along), in_dims=(None, 0))(zeros, rows)

        with self._over_samples(inputs):
            seen, back = vmap(of_one, out_dims=(0, 1))(inputs, targets, noise)
        return {
            name: (seen[name], _positions(layer, back[name]))
            for name, layer in self._layers.items()
        }

    def _over_samples(self, inputs: Any) -> AbstractContextManager[None]:
        def outputs(params: Any, inputs: Any) -> Tensor:
            found: Tensor = self._apply(params, self._buffers, inputs)
            return found

        outputs.__name__ = self._name
        return over_samples("module", outputs, self._params, inputs)

    def _forward(
        self, x: Any, probes: dict[str, Tensor] | None
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Outputs ``[C]`` of one sample; what its layers see ``[S, I (+1)]``; zeros of outputs."""
        seen: dict[str, Tensor] = {}
        zeros: dict[str, Tensor] = {}
        keys = list(self._params)

        def answer(index: int, bias: int | None, call: Call) -> Tensor:
            name = keys[index].rpartition(".")[0]
            self._check_call(name, name in seen, None if bias is None else keys[bias], call)
            seen[name] = widened(_inputs(call, bias is not None))  # a copy, so that it stays
            output = call[0].forward(*call[1:])
            zeros[name] = torch.zeros_like(output)
            return output if probes is None else output + probes[name]

        calls = LayerCalls(list(self._params.values()), answer, current_level())
        with torch.enable_grad(), calls:
            outputs = self._apply(self._params, self._buffers, single(x))
        if outputs.dim() != 2:
            raise SettingError("module", tuple(outputs.shape), "outputs [N, C] are needed")
        return widened(outputs[0]), seen, zeros

    def _check_call(self, name: str, again: bool, bias: str | None, call: Call) -> None:
        own = f"{name}.bias" if name else "bias"
        got = ""
        if again:
            got = "called twice"
        elif isinstance(call[0], Embedding):
            got = "called as an embedding"
        elif bias != (own if own in self._params else None):
            got = "called without its bias" if bias is None else f"called with {bias}"
        if got:
            needed = "a layer that is used once is needed, with its own weight and bias"
            raise SettingError(f"module[{name}]", got, needed)


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


def _inputs(call: Call, bias: bool) -> Tensor:
    """Inputs of a layer as ``[S, I]``, a copy, with a column of ones for a bias."""
    layer, x, *_ = call
    if isinstance(layer, Convolution):
        size, stride, ((top, _), (left, _)), dilation = layer.window
        x = nn.functional.unfold(x, size, dilation, (top, left), stride).mT
    x = x.reshape(-1, x.shape[-1])
    return torch.cat([x, x.new_ones((len(x), 1))], dim=-1) if bias else x.clone()


def _positions(layer: nn.Module, gradients: Tensor) -> Tensor:
    """Gradients ``[R, N, ...]`` of a layer's outputs as ``[R, N, S, O]``."""
    gradients = widened(gradients)
    if isinstance(layer, nn.Conv2d):
        gradients = gradients.movedim(3, -1)
    return gradients.reshape(*gradients.shape[:2], -1, gradients.shape[-1])
