"""What the layers of a module see and what comes back to them, as a pure function.

Axes: N samples, R columns of an output factor, G groups, S shared positions, O outputs and I inputs
of a layer (of a group of it), C outputs of the module.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import vjp, vmap
from torch.nn.modules.batchnorm import _BatchNorm

from metalearn.core._functorch import current_level
from metalearn.core.checks import module_takes
from metalearn.core.chunking import chunks
from metalearn.core.curvature.fisher_problem import over_samples
from metalearn.core.curvature.likelihood import Likelihood
from metalearn.core.loss_checks import check_reached
from metalearn.core.module.functionalize import functionalize
from metalearn.core.precision import widened
from metalearn.core.samples.gradients import single
from metalearn.core.samples.layer_calls import LayerCalls, ParameterView
from metalearn.core.samples.layer_rules import GradientsOf, LayerCall
from metalearn.core.samples.sample_gradients import SampleGradients
from metalearn.core.tree import check_like
from metalearn.errors import SettingError
from metalearn.types import Batch

__all__ = ["LayerRows", "Layers", "ProbedModule", "layer_parameters"]


class LayerRows(NamedTuple):
    """What one layer saw and what came back."""

    inputs: Tensor
    """``[N, S, I (+1 with a bias)]``; of G > 1 groups ``[N, G, S, I (+1)]``."""
    gradients: Tensor
    """``[R, N, S, O]``; of G > 1 groups ``[R, N, G, S, O]``."""


class LayerParameters(NamedTuple):
    """The names of a layer's parameters."""

    weight: str
    bias: str | None


Layers = dict[str, LayerRows]

_WITH_BIAS = ("linear", "addmm", "conv1d", "conv2d", "conv3d")
"""Operations whose bias sees a 1 where the weight sees an input."""
_ACCEPTED = (
    "only matrix products and convolutions have Kronecker factors (Linear, Conv1d to Conv3d, "
    "transformers' Conv1D, transposed convolutions without a bias); freeze the parameters of "
    "others (requires_grad=False)"
)


class ProbedModule:
    """A module to whose layers' outputs zeros are added, that their gradients can be taken.

    A layer is a weight with its bias: ``weight`` and ``bias`` of a module, or ``…_weight`` and
    ``…_bias``. Layers are met where they are called, inside a vmap over samples: whatever axes a
    layer's input has there are positions of one sample, wherever the module puts its samples.

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
        self._gradients: dict[str, GradientsOf] = {}
        self.inputs_first: dict[str, bool] = {}
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

    def passes(
        self, data: Batch, likelihood: Likelihood, chunk_size: int | None, power: float
    ) -> Iterator[Layers]:
        """What `run` gives of one chunk after another, times wᵖ of each sample.

        Args:
            data: inputs, targets, noise and weights w ``[N]``.
            likelihood: of the outputs.
            chunk_size: samples of a chunk; None is all.
            power: p; with 0 nothing is multiplied.
        """
        for inputs, targets, noise, weights in chunks(data, chunk_size):
            layers = self.run(inputs, targets, noise, likelihood)
            yield _scaled(layers, weights**power) if power else layers

    def run(self, inputs: Any, targets: Tensor, noise: Tensor, likelihood: Likelihood) -> Layers:
        """Inputs and gradients of every layer for one chunk of samples."""

        def of_one(x: Any, target: Tensor, noise: Tensor) -> Any:
            outputs, seen, zeros = self._forward(x, None)
            rows = likelihood.factor(outputs, target, noise)  # [R, C]

            def probed(probes: dict[str, Tensor]) -> Tensor:
                return check_reached(self._forward(x, probes)[0], "module")

            pull_back: Any = vjp(probed, zeros)[1]
            return seen, vmap(pull_back)(rows)[0]

        with self._over_samples(inputs):
            seen, back = vmap(of_one, out_dims=(0, 1))(inputs, targets, noise)
        return {name: self._rows(name, seen[name], back[name]) for name in self._layers}

    def _over_samples(self, inputs: Any) -> AbstractContextManager[None]:
        def outputs(params: Any, inputs: Any) -> Tensor:
            found: Tensor = self._apply(params, self._buffers, inputs)
            return found

        outputs.__name__ = self._name
        return over_samples("module", outputs, self._params, inputs)

    def _rows(self, name: str, inputs: list[Tensor], back: Tensor) -> LayerRows:
        """Of a layer with inputs ``[N, ...]`` and gradients ``[R, N, ...]`` of its output."""
        inputs, gradients = [widened(x) for x in inputs], self._gradients[name]
        rows = [gradients(dz, *inputs) for dz in widened(back)]
        a = rows[0].input_rows()
        if self._layers[name].bias is not None:
            a = torch.cat([a, a.new_ones((*a.shape[:-1], 1))], dim=-1)
        return LayerRows(a, torch.stack([row.output_rows() for row in rows]))

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
            name, place = self._check_call(operation, call, views, keys, seen)
            seen[name] = [x.clone() for x in call.inputs]  # so that they stay
            output = call.run(*call.parameters)
            zeros[name] = torch.zeros_like(output)
            if probes is not None:
                return output + probes[name]
            view = views[place]
            assert view is not None
            self._gradients[name] = partial(_gradients, call.gradients[place], view)
            self._check_factors(name, operation, zeros[name], seen[name])
            return output

        calls = LayerCalls(list(self._params.values()), answer, current_level())
        with torch.enable_grad(), calls:
            outputs = self._apply(self._params, self._buffers, single(x))
        if outputs.dim() != 2:
            raise SettingError("module", tuple(outputs.shape), "outputs [N, C] are needed")
        return widened(outputs[0]), seen, zeros

    def _check_call(
        self,
        operation: str,
        call: LayerCall,
        views: Sequence[ParameterView | None],
        keys: Sequence[str],
        seen: Mapping[str, Any],
    ) -> tuple[str, int]:
        """The layer that is called, and which of the call's parameters is its weight."""
        used = [None if view is None else keys[view.number] for view in views]
        wanted = {layer.weight: name for name, layer in self._layers.items()}
        place = next((i for i, key in enumerate(used) if key in wanted), None)
        if place is None:
            name = next(key for key in used if key is not None).rpartition(".")[0]
            raise _misused(name, f"called by {operation}")
        name = wanted[used[place] or ""]
        bias, others = self._layers[name].bias, [key for i, key in enumerate(used) if i != place]
        if name in seen:
            raise _misused(name, "called twice")
        if operation == "embedding":
            raise SettingError(f"module[{name}]", "called as an embedding", _ACCEPTED)
        if bias is not None and not any(others):
            raise _misused(name, "called without its bias")
        for key in others:
            if key not in (None, bias):
                raise _misused(name, f"called with {key}")
        if bias is not None and operation not in _WITH_BIAS:
            raise SettingError(f"module[{name}]", f"called by {operation} with a bias", _ACCEPTED)
        return name, place

    def _check_factors(
        self, name: str, operation: str, output: Tensor, inputs: Sequence[Tensor]
    ) -> None:
        found = self._gradients[name](output.unsqueeze(0), *(x.unsqueeze(0) for x in inputs))
        if not found.groups:
            raise _misused(name, f"called by {operation}", f"; {_ACCEPTED}")
        self.inputs_first[name] = found.inputs_first


def _gradients(
    rule: GradientsOf, view: ParameterView, dz: Tensor, *inputs: Tensor
) -> SampleGradients:
    """Gradients of a weight for all samples, as what makes them up."""
    return view.widened(rule(dz, *inputs))


def _misused(name: str, got: str, further: str = "") -> SettingError:
    needed = "a layer that is used once is needed, with its own weight and bias"
    return SettingError(f"module[{name}]", got, needed + further)


def _layers(module: nn.Module, params: Mapping[str, Tensor]) -> dict[str, LayerParameters]:
    """The layers that own ``params``; what has no Kronecker factors for sure is refused."""
    found: dict[str, LayerParameters] = {}
    for name, layer in module.named_modules():
        kind = type(layer).__name__
        if isinstance(layer, _BatchNorm) and (layer.training or layer.running_mean is None):
            reason = "it mixes samples; use convert_norm(module, 'group') or eval mode"
            raise SettingError(f"module[{name}]", kind, reason)
        prefix = f"{name}." if name else ""
        own = {n: p for n, p in layer.named_parameters(recurse=False) if p.requires_grad}
        if list(own) == ["bias"]:
            raise SettingError(f"module[{name}]", "bias alone", "freeze the bias as well")
        if any(prefix + n not in params for n in own):
            raise SettingError(f"module[{name}]", kind, "tied weights have no factors of their own")
        for weight in [n for n, p in own.items() if n.endswith("weight") and p.dim() > 1]:
            stem = weight.removesuffix("weight")
            bias = prefix + f"{stem}bias" if own.pop(f"{stem}bias", None) is not None else None
            found[(prefix + stem).rstrip("._")] = LayerParameters(prefix + weight, bias)
            del own[weight]
        if own:
            raise SettingError(f"module[{name}]", kind, _ACCEPTED)
    if not found:
        raise SettingError("module", type(module).__name__, "no layer has parameters to take")
    return found


def layer_parameters(layer: str, params: Mapping[str, Any]) -> LayerParameters | None:
    """The names of a layer's parameters among ``params``; None where its weight is not there."""
    for prefix in (f"{layer}." if layer else "", f"{layer}_"):
        if f"{prefix}weight" in params:
            bias = f"{prefix}bias"
            return LayerParameters(f"{prefix}weight", bias if bias in params else None)
    return None


def _scaled(layers: Layers, shares: Tensor) -> Layers:
    """Inputs and gradients of every layer, each times the number ``[N]`` of its sample."""

    def times(rows: Tensor, axis: int) -> Tensor:
        return rows * shares.to(rows).reshape(-1, *(1,) * (rows.dim() - 1 - axis))

    return {n: LayerRows(times(a, 0), times(g, 1)) for n, (a, g) in layers.items()}
