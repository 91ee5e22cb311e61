"""What a user writes without a library: loops of autograd and of torch.func.

Axes: K steps, N examples, R outer losses, M subsets, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, jacrev, vjp, vmap

from metalearn.benchmarks.runs.weighted_run import WeightedRun

__all__ = ["one_by_one", "retrained", "torch_training", "trained", "unrolled", "walked"]

State = tuple[dict[str, Tensor], dict[str, Tensor]]
"""Parameters and velocities."""


def unrolled(run: WeightedRun) -> Callable[[], Tensor]:
    """Steps with ``create_graph``, then one backward pass for each outer loss; ``[R, N]``."""

    def gradient() -> Tensor:
        weights = run.weights.requires_grad_()
        params = {name: p.requires_grad_() for name, p in run.params.items()}
        speed: list[Tensor] | None = None
        for rows, rate in zip(run.rows, run.rates):
            loss = run.batch_loss(params, weights, rows)
            found = torch.autograd.grad(loss, list(params.values()), create_graph=True)
            pairs = zip(found if speed is None else speed, found)
            speed = [g if speed is None else run.momentum * v + g for v, g in pairs]
            params = {n: p - rate * v for (n, p), v in zip(params.items(), speed)}
        return one_by_one(run.outer(params), weights)

    return gradient


def one_by_one(losses: Tensor, weights: Tensor) -> Tensor:
    """Gradients ``[R, N]`` of a scalar or of R losses through one graph."""
    rows = losses.reshape(-1)
    last = len(rows) - 1
    found = [
        torch.autograd.grad(loss, weights, retain_graph=r < last)[0]
        for r, loss in enumerate(rows.unbind())
    ]
    return torch.stack(found).detach()


def walked(run: WeightedRun) -> Callable[[], Tensor]:
    """All states kept; ``vjp`` of one step at a time on the way back, R cotangents at once."""

    def gradient() -> Tensor:
        weights, states = run.weights, list[State]()
        with torch.no_grad():
            state = _start(run.params)
            for k in range(len(run.rows)):
                states.append(state)
                state = _step(run, state, weights, k)
        slopes = jacrev(lambda params: run.outer(params).reshape(-1))(state[0])
        back = slopes, {name: torch.zeros_like(slope) for name, slope in slopes.items()}
        total = weights.new_zeros(len(next(iter(slopes.values()))), len(weights))
        for k in reversed(range(len(states))):
            pull = vjp(lambda s, w, k=k: _step(run, s, w, k), states[k], weights)[1]
            back, share = vmap(pull)(back)
            total = total + share
        return total

    return gradient


def trained(run: WeightedRun) -> Callable[[], Tensor]:
    """One training by ``torch.func.grad``; the targets' logits ``[R, C]``."""

    def train() -> Tensor:
        with torch.no_grad():
            state = _trained(run, _start(run.params), run.weights, _step)
            return run.logits(state[0], run.targets[0])

    return train


def retrained(run: WeightedRun, weights: Tensor) -> Callable[[], Tensor]:
    """One training for each row ``[M, N]``, as one stack; the targets' losses ``[R, M]``."""

    def each(run: WeightedRun, state: State, weights: Tensor, k: int) -> State:
        found: State = vmap(lambda s, w: _step(run, s, w, k))(state, weights)
        return found

    def train() -> Tensor:
        with torch.no_grad():
            start = {n: p.expand(len(weights), *p.shape).clone() for n, p in run.params.items()}
            params, _ = _trained(run, _start(start), weights, each)
            logits = vmap(lambda params: run.logits(params, run.targets[0]))(params)
            labels = run.targets[1].expand(len(weights), -1)
            losses: Tensor = F.cross_entropy(logits.mT, labels, reduction="none")
        return losses.T

    return train


def torch_training(run: WeightedRun) -> Callable[[], Tensor]:
    """One training as tutorials have it: a module, ``backward``, ``torch.optim.SGD``."""

    def train() -> Tensor:
        network = deepcopy(run.network)
        optimizer = torch.optim.SGD(network.parameters(), lr=run.rates[0], momentum=run.momentum)
        (x, y), weights = run.examples, run.weights
        for rows, rate in zip(run.rows, run.rates):
            optimizer.param_groups[0]["lr"] = rate
            optimizer.zero_grad()
            losses = F.cross_entropy(network(x[rows]), y[rows], reduction="none")
            torch.autograd.backward((weights[rows] * losses).mean())
            optimizer.step()
        with torch.no_grad():
            found: Tensor = network(run.targets[0])
        return found

    return train


def _start(params: dict[str, Tensor]) -> State:
    return params, {name: torch.zeros_like(p) for name, p in params.items()}


def _trained(run: WeightedRun, state: State, weights: Tensor, step: Callable[..., Any]) -> State:
    for k in range(len(run.rows)):
        state = step(run, state, weights, k)
    return state


def _step(run: WeightedRun, state: State, weights: Tensor, k: int) -> State:
    params, speeds = state
    slopes = grad(run.batch_loss)(params, weights, run.rows[k])
    speeds = {name: run.momentum * v + slopes[name] for name, v in speeds.items()}
    return {name: p - run.rates[k] * speeds[name] for name, p in params.items()}, speeds
