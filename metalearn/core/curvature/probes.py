"""What the layers of a module see and what comes back to them, as a pure function.

Axes: N samples, R columns of an output factor, S shared positions, O outputs and I inputs of a
layer, C outputs of the module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from metalearn.core.samples.layer_calls import LayerCalls, ParameterView
from metalearn.core.samples.layer_rules import GradientsOf, LayerCall
from metalearn.core.tree import check_like
from metalearn.errors import SettingError

__all__ = ["Layers", "ProbedModule"]

Layers = dict[str, tuple[Tensor, Tensor]]
"""Of each layer: inputs ``[N, S, I (+1 with a bias)]`` and gradients ``[R, N, S, O]``."""


_MODULES = (nn.Linear, nn.Conv2d)
_OPERATIONS = ("linear", "conv2d")


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
        self._rules: dict[str, GradientsOf] = {}
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
        return {name: self._factors(name, seen[name], back[name]) for name in self._layers}

    def _over_samples(self, inputs: Any) -> AbstractContextManager[None]:
        def outputs(params: Any, inputs: Any) -> Tensor:
            found: Tensor = self._apply(params, self._buffers, inputs)
            return found

        outputs.__name__ = self._name
        return over_samples("module", outputs, self._params, inputs)

    def _factors(self, name: str, inputs: list[Tensor], back: Tensor) -> tuple[Tensor, Tensor]:
        """What `Layers` has of a layer, from inputs ``[N, ...]`` and gradients ``[R, N, ...]``."""
        back = widened(back)
        a = self._rules[name](back[0], *map(widened, inputs)).input_rows()
        if f"{name}.bias".lstrip(".") in self._params:
            a = torch.cat([a, a.new_ones((*a.shape[:2], 1))], dim=-1)
        if isinstance(self._layers[name], nn.Conv2d):
            back = back.movedim(3, -1)
        return a, back.reshape(*back.shape[:2], -1, back.shape[-1])

    def _forward(
        self, x: Any, probes: dict[str, Tensor] | None
    ) -> tuple[Tensor, dict[str, list[Tensor]], dict[str, Tensor]]:
        """Outputs ``[C]`` of one sample; inputs of its layers, copied; zeros like their outputs."""
        seen: dict[str, list[Tensor]] = {}
        zeros: dict[str, Tensor] = {}
        keys = list(self._params)

        def answer(
            operation: str, call: LayerCall, views: Sequence[ParameterView | None]
        ) -> Tensor | None:
            used = [None if view is None else keys[view.number] for view in views]
            name = next(key for key in used if key is not None).rpartition(".")[0]
            self._check_call(name, name in seen, operation, call, used)
            self._rules[name] = call.gradients[0]
            seen[name] = [x.clone() for x in call.inputs]  # so that they stay
            output = call.run(*call.parameters)
            zeros[name] = torch.zeros_like(output)
            return output if probes is None else output + probes[name]

        calls = LayerCalls(list(self._params.values()), answer, current_level())
        with torch.enable_grad(), calls:
            outputs = self._apply(self._params, self._buffers, single(x))
        if outputs.dim() != 2:
            raise SettingError("module", tuple(outputs.shape), "outputs [N, C] are needed")
        return widened(outputs[0]), seen, zeros

    def _check_call(
        self, name: str, again: bool, operation: str, call: LayerCall, used: list[str | None]
    ) -> None:
        prefix = f"{name}." if name else ""
        bias = f"{prefix}bias" if f"{prefix}bias" in self._params else None
        weight, given = used[0], used[1] if len(used) > 1 else None
        got = ""
        if again:
            got = "called twice"
        elif operation not in _OPERATIONS or weight != f"{prefix}weight":
            got = "called as an embedding" if operation == "embedding" else f"called by {operation}"
        elif given != bias or (len(used) > 1 and given is None and call.parameters[1] is not None):
            got = "called without its bias" if given is None else f"called with {given}"
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
        if type(layer) not in _MODULES:
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
