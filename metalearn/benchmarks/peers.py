"""Other libraries, each in the way that its documentation shows, on the same weights and data.

learn2learn is not here: neither its wheel nor its source builds on Python 3.11.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metalearn.benchmarks.workloads import Workload
from metalearn.core.tree import tree_map
from metalearn.types import TaskBatch

__all__ = ["higher", "installed", "iteryne", "parallel_metalearn", "torchopt"]

Run = Callable[[], Mapping[str, Tensor]]

_FOLDER = "PARALLEL_METALEARN"


def installed(package: str) -> bool:
    """Whether a package can be imported; parallel-metalearn, from the folder that is named."""
    if package == "parallel-metalearn":
        folder = os.environ.get(_FOLDER)
        return bool(folder) and Path(folder or "", "metalearn", "algorithms").is_dir()
    return importlib.util.find_spec(package) is not None


def higher(workload: Workload, dtype: torch.dtype, *, second_order: bool = True) -> Run:
    """``higher.innerloop_ctx``, one task after another."""
    library: Any = importlib.import_module("higher")
    module, tasks = workload.module(dtype), _tasks(workload.batch(dtype))

    def run() -> Mapping[str, Tensor]:
        module.zero_grad()
        inner = torch.optim.SGD(module.parameters(), lr=workload.lr)
        for (x, y), (qx, qy) in tasks:
            with library.innerloop_ctx(
                module, inner, copy_initial_weights=False, track_higher_grads=second_order
            ) as (fast, optimizer):
                for _ in range(workload.steps):
                    optimizer.step(workload.criterion(fast(x), y))
                loss = workload.criterion(fast(qx), qy) / len(tasks)
                torch.autograd.backward(loss)
        return {n: p.grad for n, p in module.named_parameters() if p.grad is not None}

    return run


def torchopt(workload: Workload, dtype: torch.dtype) -> Run:
    """``torchopt.MetaSGD``, one task after another."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        library: Any = importlib.import_module("torchopt")
    module, tasks = workload.module(dtype), _tasks(workload.batch(dtype))
    start = dict(module.named_parameters())

    def run() -> Mapping[str, Tensor]:
        total = {name: torch.zeros_like(p) for name, p in start.items()}
        for (x, y), (qx, qy) in tasks:
            clean = library.extract_state_dict(module, by="reference")
            optimizer = library.MetaSGD(module, lr=workload.lr)
            for _ in range(workload.steps):
                optimizer.step(workload.criterion(module(x), y))
            loss = workload.criterion(module(qx), qy) / len(tasks)
            for name, g in zip(start, torch.autograd.grad(loss, list(start.values()))):
                total[name] += g
            library.recover_state_dict(module, clean)
        return total

    return run


def iteryne(workload: Workload, dtype: torch.dtype) -> Run:
    """``iteryne.MAML``, one task after another."""
    library: Any = importlib.import_module("iteryne")
    module, tasks = workload.module(dtype), _tasks(workload.batch(dtype))
    maml = library.MAML(module, inner_lr=workload.lr, inner_steps=workload.steps)

    def run() -> Mapping[str, Tensor]:
        module.zero_grad()
        for support, query in tasks:
            learner = maml.clone()
            learner.adapt_on(workload.criterion, *support)
            loss = workload.criterion(learner(query[0]), query[1]) / len(tasks)
            torch.autograd.backward(loss)
        return {n: p.grad for n, p in module.named_parameters() if p.grad is not None}

    return run


def parallel_metalearn(workload: Workload, dtype: torch.dtype) -> Run:
    """``MAML.step`` of parallel-metalearn, backward through a vmapped loss.

    Batch norms are exchanged for its own, as it asks for; its outer optimiser has a step size of 0.
    Its import name is that of this package, so it lies in a folder of its own, named by the
    environment variable PARALLEL_METALEARN.
    """
    with _instead_of_ours(os.environ[_FOLDER]):
        theirs: list[Any] = [
            importlib.import_module(f"metalearn.{name}")
            for name in (
                "algorithms.MAML",
                "model_wrappers",
                "inner_optimizers",
                "loss",
                "nn_models.basic_layers.BatchNormalization",
            )
        ]
    algorithms, wrappers, optimizers, losses, norms = theirs

    base: Any = losses.BaseLoss

    class Loss(base):  # type: ignore[misc]
        def forward(self, out_dict: Any, targets: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
            loss = workload.criterion(out_dict["logits"], targets)
            return loss, loss.detach()

    module = workload.module(dtype)
    for name, layer in list(module.named_modules()):
        if isinstance(layer, nn.BatchNorm2d):
            own = norms.BatchNorm(layer.num_features, eps=layer.eps, track_running_stats=False)
            own.load_state_dict(layer.state_dict())
            module.set_submodule(name, own.to(workload.device, dtype))
    model = wrappers.MAML_Model(backbone=_Part(module), head=_Part(nn.Identity()))
    inner = optimizers.InnerSGD(model.get_fast_weights(), inner_lr=workload.lr, learn_lr=False)
    inner.to(workload.device, dtype)
    for rate in inner.parameters():
        rate.data.fill_(workload.lr)
    maml = algorithms.MAML(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.0),
        inner_optimizer=inner,
        support_loss_fn=Loss(),
        inner_steps=workload.steps,
        device=torch.device(workload.device),
    )
    support, query = workload.batch(dtype)

    def run() -> Mapping[str, Tensor]:
        maml.step(iter([(*support, *query)]), training=True)
        return {n: p.grad for n, p in module.named_parameters() if p.grad is not None}

    return run


class _Part(nn.Module):
    """A module that is called with settings it does not know."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, **_: Any) -> Tensor:
        y: Tensor = self.layer(x)
        return y


@contextmanager
def _instead_of_ours(folder: str) -> Iterator[None]:
    """Let ``metalearn`` be the package of that name in ``folder`` for a while."""

    def take() -> dict[str, Any]:
        names = [n for n in sys.modules if n == "metalearn" or n.startswith("metalearn.")]
        return {name: sys.modules.pop(name) for name in names}

    ours = take()
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
        take()
        sys.modules.update(ours)


def _tasks(batch: TaskBatch) -> Sequence[TaskBatch]:
    count = batch.support[0].shape[0]
    return [tree_map(lambda x, t=t: x[t], batch) for t in range(count)]
