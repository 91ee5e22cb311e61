"""Who is timed: our engines and methods, plain torch.func, and other libraries where installed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, grad, grad_and_value, vmap

from metalearn.benchmarks import peers
from metalearn.benchmarks.workloads import Workload
from metalearn.core import compiled, meta_gradient, sgd

__all__ = ["CONTESTANTS", "Contestant", "Run", "available"]

Run = Callable[[], Mapping[str, Tensor]]
"""Takes one meta-gradient: the mean over tasks for each parameter, by name."""


@dataclass(frozen=True)
class Contestant:
    """A way to the meta-gradient."""

    title: str
    prepare: Callable[[Workload, torch.dtype], Run]
    second_order: bool = True
    needs: str | None = None
    """A package that has to be installed."""
    raced: bool = True
    """Whether it is after the same gradient as the others of its order."""
    of_torch: bool = True
    """Whether its tensors are torch's, whose memory on a card is known."""
    compiles: bool = False
    """Whether torch's compiler makes a program of it, which it cannot of our convolutions."""


def available(contestant: Contestant) -> bool:
    """Whether the package that it needs is installed."""
    return contestant.needs is None or peers.installed(contestant.needs)


def _ours(workload: Workload, dtype: torch.dtype, *, method: Any, engine: Any) -> Run:
    loss_fn, params = workload.problem(workload.module(dtype))
    batch, optimizer = workload.batch(dtype), sgd(workload.lr)

    def run() -> Mapping[str, Tensor]:
        result = meta_gradient(
            loss_fn,
            params,
            batch,
            optimizer=optimizer,
            steps=workload.steps,
            method=method,
            engine=engine,
        )
        grads: Mapping[str, Tensor] = result.grads
        return grads

    return run


def _compiled(workload: Workload, dtype: torch.dtype, *, method: Any) -> Run:
    """Ours, through `compiled`; the first call compiles."""
    loss_fn, params = workload.problem(workload.module(dtype))
    batch, optimizer = workload.batch(dtype), sgd(workload.lr)
    settings: Any = {"optimizer": optimizer, "steps": workload.steps, "method": method}
    step = compiled(lambda params, tasks: meta_gradient(loss_fn, params, tasks, **settings).grads)
    return lambda: step(params, batch)


def _plain(workload: Workload, dtype: torch.dtype, *, outside: bool) -> Run:
    """The recipe of the torch.func tutorials, the gradient inside or outside the vmap."""
    start, batch, task = _recipe(workload, dtype)

    def query_loss(params: dict[str, Tensor], support: Any, query: Any) -> Tensor:
        loss, adapted = task(params, support)
        value: Tensor = loss(adapted, *query)
        return value

    if outside:
        mapped = vmap(query_loss, in_dims=(None, 0, 0))
        return lambda: grad(lambda params: mapped(params, *batch).mean())(start)
    inside = vmap(grad(query_loss), in_dims=(None, 0, 0))
    return lambda: {name: g.mean(0) for name, g in inside(start, *batch).items()}


def _plain_first_order(workload: Workload, dtype: torch.dtype) -> Run:
    """The same without a gradient through the inner steps."""
    start, batch, task = _recipe(workload, dtype)

    def one(params: dict[str, Tensor], support: Any, query: Any) -> Any:
        loss, adapted = task(params, support)
        return grad_and_value(loss)(adapted, *query)

    mapped = vmap(one, in_dims=(None, 0, 0))
    return lambda: {name: g.mean(0) for name, g in mapped(start, *batch)[0].items()}


def _recipe(workload: Workload, dtype: torch.dtype) -> tuple[dict[str, Tensor], Any, Any]:
    """Parameters, tasks, and ``(params, support) → loss function, adapted parameters``."""
    module, batch = workload.module(dtype), workload.batch(dtype)
    start = {name: p.detach() for name, p in module.named_parameters()}

    def loss(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return workload.criterion(functional_call(module, params, (x,)), y)

    def adapt(params: dict[str, Tensor], support: Any) -> Any:
        for _ in range(workload.steps):
            step = grad(loss)(params, *support)
            params = {name: p - workload.lr * step[name] for name, p in params.items()}
        return loss, params

    return start, batch, adapt


def _jax(
    workload: Workload, dtype: torch.dtype, *, batched: bool, second_order: bool = True
) -> Run:
    from metalearn.benchmarks.jax_maml import prepare

    return prepare(workload, dtype, batched=batched, second_order=second_order)


def _of_jax(title: str, *, batched: bool, second_order: bool = True) -> Contestant:
    prepare = partial(_jax, batched=batched, second_order=second_order)
    return Contestant(title, prepare, second_order, needs="jax", of_torch=False)


def _of(method: str, engine: str) -> Callable[[Workload, torch.dtype], Run]:
    return partial(_ours, method=method, engine=engine)


CONTESTANTS: dict[str, Contestant] = {
    "batched": Contestant("reverse, batched", _of("reverse", "batched")),
    "mixed": Contestant("mixed, batched", _of("mixed", "batched")),
    "implicit": Contestant("implicit, batched", _of("implicit", "batched"), raced=False),
    "compiled": Contestant(
        "reverse, compiled", partial(_compiled, method="reverse"), compiles=True
    ),
    "vmap": Contestant("reverse, vmap", _of("reverse", "vmap")),
    "loop": Contestant("reverse, loop", _of("reverse", "loop")),
    "vmap_grad": Contestant("torch.func vmap(grad)", partial(_plain, outside=False)),
    "grad_vmap": Contestant("torch.func grad(vmap)", partial(_plain, outside=True)),
    "higher": Contestant("higher", peers.higher, needs="higher"),
    "torchopt": Contestant("TorchOpt", peers.torchopt, needs="torchopt"),
    "iteryne": Contestant("iteryne", peers.iteryne, needs="iteryne"),
    "parallel_metalearn": Contestant(
        "parallel-metalearn", peers.parallel_metalearn, needs="parallel-metalearn"
    ),
    "jax_vmap": _of_jax("JAX jit(vmap(grad))", batched=True),
    "jax_map": _of_jax("JAX jit(lax.map(grad))", batched=False),
    "first_order": Contestant(
        "first-order, batched", _of("first_order", "batched"), second_order=False
    ),
    "first_order_compiled": Contestant(
        "first-order, compiled",
        partial(_compiled, method="first_order"),
        second_order=False,
        compiles=True,
    ),
    "first_order_vmap": Contestant(
        "first-order, vmap", _of("first_order", "vmap"), second_order=False
    ),
    "first_order_plain": Contestant(
        "torch.func vmap(grad_and_value)", _plain_first_order, second_order=False
    ),
    "first_order_jax": _of_jax("first-order, JAX jit(vmap)", batched=True, second_order=False),
    "first_order_loop": Contestant(
        "first-order, loop", _of("first_order", "loop"), second_order=False
    ),
}
