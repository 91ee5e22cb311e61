"""The same meta-gradient in JAX, for Sequentials of common layers and residual blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import torch
from torch import nn
from torch.utils.dlpack import from_dlpack

from metalearn.benchmarks.workloads import Workload
from metalearn.models import ResNet12

__all__ = ["network", "prepare"]

_RESIDUAL = ["main", "shortcut", "after"]
"""Parts of a block of `metalearn.models.ResNet12`."""
_LAYERS = (
    nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.ReLU, nn.LeakyReLU,
    nn.Flatten, nn.Identity,
)  # fmt: skip


def prepare(
    workload: Workload, dtype: torch.dtype, *, batched: bool, second_order: bool = True
) -> Callable[[], Any]:
    """``jit`` of ``vmap(grad(task))``, or of ``lax.map`` over tasks; compiled at the first call.

    Without ``second_order`` inner gradients are constants, by ``lax.stop_gradient``.
    """
    if dtype == torch.float64:
        jax.config.update("jax_enable_x64", True)
    where = torch.device(workload.device)
    jax.config.update("jax_default_device", jax.devices(where.type)[where.index or 0])
    module, batch = workload.module(dtype), workload.batch(dtype)
    start = {name: jnp.asarray(p.detach().cpu().numpy()) for name, p in module.named_parameters()}
    tasks = tuple(tuple(jnp.asarray(leaf.cpu().numpy()) for leaf in half) for half in batch)
    forward = network(module)

    def loss(params: Any, batch: Any) -> Any:
        outputs = forward(params, batch[0])
        if workload.way is None:
            return jnp.mean((outputs - batch[1]) ** 2)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(outputs), batch[1][:, None], 1)
        return -chosen.mean()

    def task(params: Any, support: Any, query: Any) -> Any:
        for _ in range(workload.steps):
            step = jax.grad(loss)(params, support)
            step = step if second_order else jax.lax.stop_gradient(step)
            params = {name: p - workload.lr * step[name] for name, p in params.items()}
        return loss(params, query)

    def mean(params: Any, support: Any, query: Any) -> Any:
        if batched:
            grads = jax.vmap(jax.grad(task), in_axes=(None, 0, 0))(params, support, query)
        else:
            grads = jax.lax.map(lambda one: jax.grad(task)(params, *one), (support, query))
        return {name: g.mean(0) for name, g in grads.items()}

    compiled = jax.jit(mean)

    def run() -> dict[str, torch.Tensor]:
        grads = jax.block_until_ready(compiled(start, *tasks))
        return {name: from_dlpack(g) for name, g in grads.items()}

    return run


def network(module: nn.Module) -> Callable[[Any, Any], Any]:
    """Its outputs, as a function of parameters by name and of inputs.

    Raises:
        NotImplementedError: parts that would be computed in another way than torch does.
    """
    names = {layer: name for name, layer in module.named_modules()}
    for layer in names:
        if not layer._modules:
            _check(layer)
        elif not _in_turn(layer) and list(layer._modules) != _RESIDUAL:
            raise NotImplementedError(repr(layer))

    def forward(params: Any, x: Any) -> Any:
        owned: dict[str, dict[str, Any]] = {name: {} for name in names.values()}
        for key, value in params.items():
            name, _, own = key.rpartition(".")
            owned[name][own] = value
        return _outputs(module, lambda layer: owned[names[layer]], x)

    return forward


def _in_turn(layer: nn.Module) -> bool:
    """Whether its parts are called one after another."""
    return isinstance(layer, ResNet12) or type(layer).forward is nn.Sequential.forward


def _outputs(module: Any, own: Callable[[Any], Any], x: Any) -> Any:
    """Of a layer, of a residual block, or of its parts one after another."""
    parts = module._modules  # with those that are used twice
    if not parts:
        return _layer(module, own(module), x)
    if list(parts) == _RESIDUAL:
        inner = _outputs(module.main, own, x) + _outputs(module.shortcut, own, x)
        return _outputs(module.after, own, inner)
    for part in parts.values():
        x = _outputs(part, own, x)
    return x


def _check(layer: Any) -> None:
    """Refuse a layer that `_layer` would compute in another way than torch.

    Raises:
        NotImplementedError: names it.
    """
    known = type(layer) in _LAYERS
    if isinstance(layer, nn.Conv2d):
        settings = layer.dilation, layer.groups, layer.padding_mode
        known &= settings == ((1, 1), 1, "zeros") and not isinstance(layer.padding, str)
    if isinstance(layer, nn.BatchNorm2d):
        known &= layer.training and layer.weight is not None and layer.bias is not None
    known &= not isinstance(layer, nn.Flatten) or (layer.start_dim, layer.end_dim) == (1, -1)
    known &= not isinstance(layer, nn.Linear) or layer.bias is not None
    known &= not isinstance(layer, nn.AdaptiveAvgPool2d) or layer.output_size in (1, (1, 1))
    if isinstance(layer, nn.MaxPool2d):
        plain = layer.stride == layer.kernel_size, layer.padding == 0, layer.dilation == 1
        known &= isinstance(layer.kernel_size, int) and all(plain) and not layer.ceil_mode
    if not known:
        raise NotImplementedError(repr(layer))


def _layer(layer: Any, own: Any, x: Any) -> Any:
    if isinstance(layer, nn.Conv2d):
        padding = [(p, p) for p in layer.padding]
        z = jax.lax.conv_general_dilated(x, own["weight"], layer.stride, padding)
        return z if layer.bias is None else z + own["bias"][:, None, None]
    if isinstance(layer, nn.Linear):
        return x @ own["weight"].T + own["bias"]
    if isinstance(layer, nn.BatchNorm2d):
        axes = (0, 2, 3)
        centred = x - x.mean(axes, keepdims=True)
        y = centred * jax.lax.rsqrt((centred**2).mean(axes, keepdims=True) + layer.eps)
        return y * own["weight"][:, None, None] + own["bias"][:, None, None]
    if isinstance(layer, nn.MaxPool2d):
        window = (1, 1, layer.kernel_size, layer.kernel_size)
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, window, "VALID")
    if isinstance(layer, nn.AdaptiveAvgPool2d):
        return x.mean((2, 3), keepdims=True)
    if isinstance(layer, nn.ReLU):
        return jax.nn.relu(x)
    if isinstance(layer, nn.LeakyReLU):
        return jax.nn.leaky_relu(x, layer.negative_slope)
    if isinstance(layer, nn.Flatten):
        return x.reshape(len(x), -1)
    if isinstance(layer, nn.Identity):
        return x
    raise NotImplementedError(type(layer).__name__)
