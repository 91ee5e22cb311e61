"""Training steps of stacked networks in JAX, for networks that `jax_maml` knows.

Axes: M members, B samples of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from torch import Tensor, nn

from metalearn.benchmarks.jax_maml import network

__all__ = ["prepare"]

_BETAS, _EPS = (0.9, 0.999), 1e-8


def prepare(
    networks: Sequence[nn.Module], x: Tensor, y: Tensor, *, lr: float
) -> tuple[Callable[[], None], list[Any]]:
    """``jit`` of ``vmap(grad)`` and Adam, compiled at the first call; and what it steps.

    That is parameters by name, their two moments, and the number of the next step.
    """
    forward = network(networks[0])
    rows = [{name: p.detach().numpy() for name, p in n.named_parameters()} for n in networks]
    params = {name: jnp.stack([row[name] for row in rows]) for name in rows[0]}
    inputs, labels = jnp.asarray(x.numpy()), jnp.asarray(y.numpy())

    def loss(params: Any) -> Any:
        chosen = jnp.take_along_axis(
            jax.nn.log_softmax(forward(params, inputs)), labels[:, None], 1
        )
        return -chosen.mean()

    def adam(p: Any, g: Any, m: Any, v: Any, step: Any) -> Any:
        m = _BETAS[0] * m + (1 - _BETAS[0]) * g
        v = _BETAS[1] * v + (1 - _BETAS[1]) * g * g
        first, second = (1 - beta**step for beta in _BETAS)
        return p - lr * (m / first) / (jnp.sqrt(v / second) + _EPS), m, v

    def update(params: Any, means: Any, squares: Any, step: Any) -> Any:
        grads = jax.vmap(jax.grad(loss))(params)
        found = {k: adam(params[k], grads[k], means[k], squares[k], step) for k in params}
        return *({k: values[i] for k, values in found.items()} for i in range(3)), step + 1

    compiled = jax.jit(update, donate_argnums=(0, 1, 2))
    zeros = [{name: jnp.zeros_like(p) for name, p in params.items()} for _ in range(2)]
    state = [params, *zeros, jnp.asarray(1.0)]

    def run() -> None:
        state[:] = jax.block_until_ready(compiled(*state))

    return run, state
