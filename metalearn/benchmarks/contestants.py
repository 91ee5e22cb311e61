"""Who is timed: our engines and methods, plain torch.func, and other libraries where installed."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from metalearn.benchmarks.workloads import Workload
from metalearn.core import meta_gradient, sgd
from metalearn.core.tree import tree_map
from metalearn.types import TaskBatch

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


def available(contestant: Contestant) -> bool:
    """Whether the package that it needs is installed."""
    return contestant.needs is None or importlib.util.find_spec(contestant.needs) is not None


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


def _plain(workload: Workload, dtype: torch.dtype, *, outside: bool) -> Run:
    """The recipe of the torch.func tutorials, the gradient inside or outside the vmap."""
    module, batch = workload.module(dtype), workload.batch(dtype)
    start = {name: p.detach() for name, p in module.named_parameters()}

    def loss(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return workload.criterion(functional_call(module, params, (x,)), y)

    def task(params: dict[str, Tensor], support: Any, query: Any) -> Tensor:
        for _ in range(workload.steps):
            step = grad(loss)(params, *support)
            params = {name: p - workload.lr * step[name] for name, p in params.items()}
        return loss(params, *query)

    if outside:
        mapped = vmap(task, in_dims=(None, 0, 0))
        return lambda: grad(lambda params: mapped(params, *batch).mean())(start)
    inside = vmap(grad(task), in_dims=(None, 0, 0))
    return lambda: {name: g.mean(0) for name, g in inside(start, *batch).items()}


def _tasks(batch: TaskBatch) -> Sequence[TaskBatch]:
    count = batch.support[0].shape[0]
    return [tree_map(lambda x, t=t: x[t], batch) for t in range(count)]


def _higher(workload: Workload, dtype: torch.dtype, *, second_order: bool = True) -> Run:
    import higher

    module, tasks = workload.module(dtype), _tasks(workload.batch(dtype))

    def run() -> Mapping[str, Tensor]:
        module.zero_grad()
        inner = torch.optim.SGD(module.parameters(), lr=workload.lr)
        for (x, y), (qx, qy) in tasks:
            with higher.innerloop_ctx(
                module, inner, copy_initial_weights=False, track_higher_grads=second_order
            ) as (fast, optimizer):
                for _ in range(workload.steps):
                    optimizer.step(workload.criterion(fast(x), y))
                loss = workload.criterion(fast(qx), qy) / len(tasks)
                torch.autograd.backward(loss)
        return {n: p.grad for n, p in module.named_parameters() if p.grad is not None}

    return run


def _torchopt(workload: Workload, dtype: torch.dtype) -> Run:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torchopt

    module, tasks = workload.module(dtype), _tasks(workload.batch(dtype))
    start = dict(module.named_parameters())

    def run() -> Mapping[str, Tensor]:
        total = {name: torch.zeros_like(p) for name, p in start.items()}
        for (x, y), (qx, qy) in tasks:
            clean = torchopt.extract_state_dict(module, by="reference")
            optimizer = torchopt.MetaSGD(module, lr=workload.lr)
            for _ in range(workload.steps):
                optimizer.step(workload.criterion(module(x), y))
            loss = workload.criterion(module(qx), qy) / len(tasks)
            for name, g in zip(start, torch.autograd.grad(loss, list(start.values()))):
                total[name] += g
            torchopt.recover_state_dict(module, clean)
        return total

    return run


def _jax(workload: Workload, dtype: torch.dtype, *, batched: bool) -> Run:
    from metalearn.benchmarks.jax_maml import prepare

    return prepare(workload, dtype, batched=batched)


def _of(method: str, engine: str) -> Callable[[Workload, torch.dtype], Run]:
    return partial(_ours, method=method, engine=engine)


CONTESTANTS: dict[str, Contestant] = {
    "batched": Contestant("reverse, batched", _of("reverse", "batched")),
    "mixed": Contestant("mixed, batched", _of("mixed", "batched")),
    "vmap": Contestant("reverse, vmap", _of("reverse", "vmap")),
    "loop": Contestant("reverse, loop", _of("reverse", "loop")),
    "vmap_grad": Contestant("torch.func vmap(grad)", partial(_plain, outside=False)),
    "grad_vmap": Contestant("torch.func grad(vmap)", partial(_plain, outside=True)),
    "higher": Contestant("higher", _higher, needs="higher"),
    "torchopt": Contestant("TorchOpt", _torchopt, needs="torchopt"),
    "jax_vmap": Contestant("JAX jit(vmap(grad))", partial(_jax, batched=True), needs="jax"),
    "jax_map": Contestant("JAX jit(lax.map(grad))", partial(_jax, batched=False), needs="jax"),
    "first_order": Contestant(
        "first-order, batched", _of("first_order", "batched"), second_order=False
    ),
    "first_order_vmap": Contestant(
        "first-order, vmap", _of("first_order", "vmap"), second_order=False
    ),
    "first_order_loop": Contestant(
        "first-order, loop", _of("first_order", "loop"), second_order=False
    ),
}
