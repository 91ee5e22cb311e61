"""Gradients through a run by other libraries, each in the way that its documentation shows.

Axes: K steps, N examples, B samples of a batch, R outer losses.
"""

from __future__ import annotations

import importlib
import tempfile
import warnings
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from metalearn.benchmarks.runs.betty_problems import betty_gradient
from metalearn.benchmarks.runs.weighted_run import WeightedRun
from metalearn.benchmarks.runs.written_out import one_by_one

__all__ = ["bergson", "betty", "higher", "torchopt"]

Run = Callable[[], Tensor]


def higher(run: WeightedRun) -> Run:
    """``higher.innerloop_ctx``, one backward pass for each outer loss."""
    library: Any = importlib.import_module("higher")
    (x, _), network = run.examples, deepcopy(run.network)

    def gradient() -> Tensor:
        weights = run.weights.requires_grad_()
        inner = torch.optim.SGD(network.parameters(), lr=run.rates[0], momentum=run.momentum)
        with library.innerloop_ctx(network, inner) as (fast, optimizer):
            for rows in run.rows:
                optimizer.step(run.weighted(fast(x[rows]), weights, rows))
            return one_by_one(run.target_loss(fast(run.targets[0])), weights)

    return gradient


def torchopt(run: WeightedRun) -> Run:
    """``torchopt.MetaSGD``, one backward pass for each outer loss."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        library: Any = importlib.import_module("torchopt")
    (x, _), network = run.examples, deepcopy(run.network)

    def gradient() -> Tensor:
        weights = run.weights.requires_grad_()
        clean = library.extract_state_dict(network, by="reference")
        optimizer = library.MetaSGD(network, lr=run.rates[0], momentum=run.momentum)
        for rows in run.rows:
            optimizer.step(run.weighted(network(x[rows]), weights, rows))
        found = one_by_one(run.target_loss(network(run.targets[0])), weights)
        library.recover_state_dict(network, clean)
        return found

    return gradient


def betty(run: WeightedRun) -> Run:
    """An ``IterativeProblem`` of betty, whose outer problem goes through its steps."""
    return betty_gradient(run, "IterativeProblem", {"first_order": False}, {})


class _Weighted(nn.Module):
    """What bergson's trainer calls: the weighted loss of a batch by keyword arguments."""

    def __init__(self, run: WeightedRun) -> None:
        super().__init__()
        self.network, self.run = deepcopy(run.network), [run]  # in a list: no submodule

    def forward(self, input_ids: Tensor, rows: Tensor, example_weight: Tensor) -> Tensor:
        losses = nn.functional.cross_entropy(
            self.network(input_ids), self.run[0].examples[1][rows], reduction="none"
        )
        return (example_weight * losses).mean()


class _Stream:
    """Batches as bergson's ``DataStream`` gives them; it takes ``input_ids`` for text."""

    def __init__(self, run: WeightedRun) -> None:
        self.run, self.device = run, run.examples[0].device
        self.weights = nn.Parameter(run.weights)

    @property
    def requires_grad(self) -> bool:
        return self.weights.requires_grad

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        self.weights.requires_grad = value

    def __len__(self) -> int:
        return len(self.run.rows)

    def __getitem__(self, k: int) -> dict[str, Tensor]:
        rows = self.run.rows[k]
        inputs = self.run.examples[0][rows].flatten(1)
        return {"input_ids": inputs, "rows": rows, "example_weight": self.weights[rows]}


def bergson(run: WeightedRun) -> Run:
    """Its MAGIC trainer, states saved at √K steps; one walk back for each outer loss."""
    magic: Any = importlib.import_module("bergson.magic")
    library: Any = importlib.import_module("torchopt")
    rates = torch.tensor(run.rates)

    def gradient() -> Tensor:
        model, stream = _Weighted(run), _Stream(run)
        descent = library.sgd(lambda count: rates[int(count)], momentum=run.momentum)
        trainer, state = magic.Trainer.initialize(model, descent)
        with tempfile.TemporaryDirectory() as folder:
            stream.requires_grad = False
            state = trainer.train(state, stream, save_dir=folder, save_mode="sqrt")
            last = state.to("cpu").detach_()
            found = []
            for number in range(1 if run.mean else len(run.targets[1])):
                state.detach_()
                state.copy_(last)
                back = _cotangent(magic, run, model, state, stream, number)
                back = trainer.backward(
                    folder, stream, back, state, save_mode="sqrt", cleanup=False
                )
                found.append(back.weight_grads.detach())
        return torch.stack(found)

    return gradient


def _cotangent(
    magic: Any, run: WeightedRun, model: Any, state: Any, stream: _Stream, number: int
) -> Any:
    """The gradient of one outer loss at the end of the run, as bergson carries it back."""
    tree: Any = importlib.import_module("torchopt.pytree")
    with state.activate(model) as params:
        loss = run.target_loss(model.network(run.targets[0])).reshape(-1)[number]
        slopes = torch.autograd.grad(loss, list(params.values()))
    state.detach_()
    floats = [
        leaf
        for leaf in tree.tree_leaves(state.opt_state)
        if isinstance(leaf, Tensor) and leaf.is_floating_point()
    ]
    velocities = [torch.zeros_like(leaf) for leaf in floats]
    return magic.BackwardState(
        dict(zip(params, slopes)), velocities, torch.zeros_like(stream.weights)
    )
