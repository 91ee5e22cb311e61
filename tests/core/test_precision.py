"""Low and mixed precision: every method and engine against the same in float64.

Axes: N samples, S positions.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.core import (
    clipped_gradient,
    functionalize,
    gradient_mean,
    gradient_noise_scale,
    gradient_norms,
    gradient_sketches,
    gradient_variance,
    hessian_operator,
    meta_gradient,
    norm_quantiles,
    per_sample_gradients,
    per_sample_norms,
    reduce_per_sample,
    sgd,
    spectral_density,
    top_eigenvalues,
    trace_estimate,
)
from metalearn.core.ensemble.stacking import member_gradients, stack
from metalearn.core.precision import norms_of, widened
from metalearn.core.tree import leaves, ravel
from metalearn.types import TaskBatch
from tests.support.oracles import assert_trees, draw, generator

close = torch.testing.assert_close
METHODS: tuple[Any, ...] = ("layers", "vmap", "loop")
methods = pytest.mark.parametrize("method", METHODS)


class Sequences(nn.Module):
    """``[N, S, 6]`` through a layer at each position; the mean over positions has three outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm, self.head = nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.norm(self.inner(x)))).mean(1)


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rows, self.head = nn.Embedding(9, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = (x[..., 0] * 3).long().remainder(9)
        return self.head(torch.tanh(self.rows(tokens))).mean(1)


class Cells(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.head(state)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.MultiheadAttention(6, 2, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mix(x, x, x)[0]).mean(1)


class Pictures(nn.Module):
    """The sequence as a picture of one channel."""

    def __init__(self, norm: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 4, 3, padding=1), norm(), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.conv(x[:, None]))).mean((2, 3)))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "sequences": Sequences,
    "words": Words,
    "cells": Cells,
    "attention": Attention,
    "group norm": lambda: Pictures(lambda: nn.GroupNorm(2, 4)),
}
MIXING = {
    "batch norm": lambda: Pictures(lambda: nn.BatchNorm2d(4, track_running_stats=False)),
    "instance norm": lambda: Pictures(lambda: nn.InstanceNorm2d(4, affine=True)),
    "layers in a row": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 5)), nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, track_running_stats=False),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    ),
    "columns of data": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 5)), nn.Conv2d(1, 9, 3), nn.BatchNorm2d(9, track_running_stats=False),
        nn.ReLU(), nn.Conv2d(9, 4, 3), nn.Flatten(), nn.Linear(8, 3),
    ),
}  # fmt: skip


PAIRS = [*((name, torch.bfloat16) for name in NETWORKS), ("sequences", torch.float16)]


class Problem:
    """A cross-entropy in float32 of a network's outputs; ``scale`` makes gradients large."""

    def __init__(
        self, name: str, autocast: torch.dtype | Literal["off"] | None = None, scale: float = 1.0
    ) -> None:
        self.apply, params, self.buffers = functionalize(draw({**NETWORKS, **MIXING}[name]()))
        self.params = {n: 0.5 * v for n, v in params.items()}
        self.x = torch.randn(6, 5, 6, generator=generator(1), dtype=torch.float64)
        self.y = torch.arange(6) % 3
        self.autocast, self.scale = autocast, scale

    def loss(self, params: Any, batch: Any) -> Tensor:
        dtype = self.autocast if isinstance(self.autocast, torch.dtype) else torch.bfloat16
        inside = torch.autocast("cpu", dtype, enabled=self.autocast != "off")
        with nullcontext() if self.autocast is None else inside:
            outputs = self.apply(params, self.buffers, batch[0])
        wide = outputs if outputs.dtype == torch.float64 else outputs.float()
        return self.scale * F.cross_entropy(wide, batch[1])

    def cast(self, dtype: torch.dtype) -> Any:
        params = {n: v.to(dtype) for n, v in self.params.items()}
        return self.loss, params, (self.x.to(dtype), self.y)


def gap(found: Any, wanted: Any) -> float:
    one, other = (ravel(tree)[0].double() for tree in (found, wanted))
    return float((one - other).norm() / other.norm())


def rounding(dtype: torch.dtype) -> float:
    return 30 * torch.finfo(dtype).eps


@methods
@pytest.mark.parametrize(("name", "dtype"), PAIRS)
def test_low_precision_parameters_with_a_float32_loss(
    name: str, dtype: torch.dtype, method: Any
) -> None:
    problem = Problem(name)
    exact, given = problem.cast(torch.float64), problem.cast(dtype)
    grads = per_sample_gradients(*given, method=method)
    assert all(g.dtype == dtype for g in grads.values())
    assert gap(grads, per_sample_gradients(*exact)) < rounding(dtype)
    norms, right = per_sample_norms(*given, method=method), per_sample_norms(*exact)
    assert isinstance(norms, Tensor) and isinstance(right, Tensor)
    assert norms.dtype == torch.float32
    close(norms.double(), right, rtol=rounding(dtype), atol=0)
    cut = float(right.median())
    found = clipped_gradient(*given, max_norm=cut, method=method)
    assert all(g.dtype == dtype for g in found.grads.values())
    assert gap(found.grads, clipped_gradient(*exact, max_norm=cut).grads) < rounding(dtype)


@methods
@pytest.mark.parametrize("outer", [torch.float32, torch.float64])
def test_parameters_and_losses_of_two_wider_types(outer: torch.dtype, method: Any) -> None:
    problem = Problem("sequences")
    inner = torch.float64 if outer == torch.float32 else torch.float32

    def loss(params: Any, batch: Any) -> Tensor:
        return problem.loss({n: v.to(inner) for n, v in params.items()}, batch).to(inner)

    _, params, batch = problem.cast(outer)
    given = loss, params, (batch[0].to(inner), batch[1])
    exact = problem.cast(torch.float64)
    norms, right = per_sample_norms(*given, method=method), per_sample_norms(*exact)
    close(norms, right.to(outer), rtol=1e-4, atol=0)  # type: ignore[union-attr]
    found = clipped_gradient(*given, max_norm=0.1, method=method)
    assert gap(found.grads, clipped_gradient(*exact, max_norm=0.1).grads) < 1e-4
    assert all(g.dtype == outer for g in found.grads.values())


@methods
def test_types_that_differ_between_parameters(method: Any) -> None:
    problem = Problem("words")

    def loss(params: Any, batch: Any) -> Tensor:
        return problem.loss({n: v.float() for n, v in params.items()}, batch)

    params = problem.cast(torch.float32)[1]
    first = next(iter(params))
    mixed = {n: v.bfloat16() if n == first else v for n, v in params.items()}
    batch = (problem.x.float(), problem.y)
    norms = per_sample_norms(loss, mixed, batch, method=method)
    close(norms, per_sample_norms(loss, params, batch), rtol=0.02, atol=0)
    found = clipped_gradient(loss, mixed, batch, max_norm=0.1, method=method).grads
    assert {n: g.dtype for n, g in found.items()} == {n: v.dtype for n, v in mixed.items()}


@methods
def test_float16_norms_beyond_its_range_are_finite(method: Any) -> None:
    problem = Problem("sequences", scale=3000.0)
    given, exact = problem.cast(torch.float16), problem.cast(torch.float64)
    right = per_sample_norms(*exact)
    assert isinstance(right, Tensor) and float(right.square().max()) > 65504
    close(per_sample_norms(*given, method=method).double(), right, rtol=0.02, atol=0)  # type: ignore[union-attr]
    found = clipped_gradient(*given, max_norm=1.0, method=method)
    assert gap(found.grads, clipped_gradient(*exact, max_norm=1.0).grads) < 0.02

    reductions = {
        "mean": gradient_mean(),
        "variance": gradient_variance(),
        "norms": gradient_norms(),
        "quantiles": norm_quantiles((0.5, 1.0)),
        "sketches": gradient_sketches(8, generator=generator(3)),
    }
    narrow = reduce_per_sample(*given, reductions, method=method, chunk_size=4)
    reductions["sketches"] = gradient_sketches(8, generator=generator(3))
    wide = reduce_per_sample(*exact, reductions, chunk_size=4)
    for name in reductions:
        one, other = (
            r[name] if isinstance(r[name], dict) else {"": r[name]} for r in (narrow, wide)
        )
        assert all(value.dtype == torch.float32 for value in one.values())
        assert gap(one, other) < 0.03, name

    scales = [gradient_noise_scale(per_sample_gradients(*g)) for g in (given, exact)]
    close(scales[0].noise.double(), scales[1].noise, rtol=0.03, atol=0)
    close(scales[0].signal.double(), scales[1].signal, rtol=0.03, atol=0)


@methods
@pytest.mark.parametrize("where", ["inside", "around"])
@pytest.mark.parametrize(("name", "dtype"), PAIRS)
def test_autocast_over_samples(name: str, where: str, dtype: torch.dtype, method: Any) -> None:
    exact = Problem(name).cast(torch.float64)
    given = Problem(name, dtype if where == "inside" else None).cast(torch.float32)
    with torch.autocast("cpu", dtype) if where == "around" else nullcontext():
        grads = per_sample_gradients(*given, method=method)
        norms = per_sample_norms(*given, method=method)
        clipped = clipped_gradient(*given, max_norm=0.3, method=method)
    assert all(g.dtype == torch.float32 for g in grads.values())
    assert gap(grads, per_sample_gradients(*exact)) < rounding(dtype)
    close(norms.double(), per_sample_norms(*exact), rtol=rounding(dtype), atol=0)  # type: ignore[union-attr]
    assert gap(clipped.grads, clipped_gradient(*exact, max_norm=0.3).grads) < rounding(dtype)


@pytest.mark.parametrize("engine", ["batched", "vmap", "loop"])
@pytest.mark.parametrize("where", ["inside", "around", "around, left"])
@pytest.mark.parametrize(("name", "dtype"), [*PAIRS, *((n, torch.bfloat16) for n in MIXING)])
def test_autocast_over_tasks_and_members(
    name: str, where: str, dtype: torch.dtype, engine: Any
) -> None:
    """A loss may leave autocast, whose backward pass is under it all the same."""
    loss, params, (x, y) = Problem(name).cast(torch.float64)
    tasks = TaskBatch(
        (x.view(2, 3, 5, 6), y.view(2, 3)), (x.flip(0).view(2, 3, 5, 6), y.view(2, 3))
    )
    settings: dict[str, Any] = {"optimizer": sgd(0.1), "steps": 2}
    exact = meta_gradient(loss, params, tasks, engine="loop", **settings)

    inside: dict[str, Any] = {"inside": dtype, "around": None, "around, left": "off"}
    narrow = Problem(name, inside[where])
    loss32, params32, _ = narrow.cast(torch.float32)
    tasks32 = TaskBatch(*((a.float(), b) for a, b in tasks))
    rows = stack([params32, {n: 2 * v for n, v in params32.items()}])
    with torch.autocast("cpu", dtype, enabled=where != "inside"):
        found = meta_gradient(loss32, params32, tasks32, engine=engine, **settings)
        members = member_gradients(loss32, rows, (x.float(), y), in_dims=None, engine=engine)
    assert all(g.dtype == torch.float32 for g in found.grads.values())
    assert gap(found.grads, exact.grads) < 2 * rounding(dtype)
    wide = stack([params, {n: 2 * v for n, v in params.items()}])
    right = member_gradients(loss, wide, (x, y), in_dims=None, engine="loop")
    assert gap(members.grads, right.grads) < rounding(dtype)


def _picture(*layers: nn.Module) -> Callable[[], nn.Module]:
    """Layers on the sequence as a picture of one channel, with three outputs."""
    return lambda: nn.Sequential(nn.Unflatten(1, (1, 5)), *layers, nn.Flatten())


def _batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, track_running_stats=False)


LEAVING: dict[str, Callable[[], nn.Module]] = {
    "products": _picture(nn.Conv2d(1, 9, 3), _batch_norm(9), nn.ReLU(), nn.Conv2d(9, 3, (3, 4))),
    "bias": _picture(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.Conv2d(4, 3, (3, 4))),
    "pooled": _picture(
        nn.Conv2d(1, 40, 2), _batch_norm(40), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(40, 3, 2)
    ),
}


@pytest.mark.parametrize("name", LEAVING)
@pytest.mark.parametrize("method", ["reverse", "mixed", "first_order"])
def test_convolutions_and_norms_of_a_loss_that_leaves_autocast_have_its_type(
    name: str, method: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their backward passes too, which autograd takes under autocast.

    Not of linear layers, nor of a first convolution that is folded with its norm without pooling:
    torch's products there have torch's own backward passes, which are narrow.
    """
    monkeypatch.setitem(MIXING, name, LEAVING[name])
    loss, params, (x, y) = Problem(name, "off").cast(torch.float32)
    tasks = TaskBatch(
        (x.view(2, 3, 5, 6), y.view(2, 3)), (x.flip(0).view(2, 3, 5, 6), y.view(2, 3))
    )
    settings: dict[str, Any] = {"optimizer": sgd(0.1), "steps": 2, "method": method}
    wanted = meta_gradient(loss, params, tasks, engine="batched", **settings)
    with torch.autocast("cpu", torch.bfloat16):
        found = meta_gradient(loss, params, tasks, engine="batched", **settings)
    assert gap(found.grads, wanted.grads) < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_spectra_of_low_precision_are_computed_in_float32(dtype: torch.dtype) -> None:
    problem = Problem("sequences")
    found, wanted = [], []
    for kind, results in ((dtype, found), (torch.float64, wanted)):
        loss, params, batch = problem.cast(kind)
        operator = hessian_operator(loss, params, [batch])
        top = top_eigenvalues(operator, params, count=2, iterations=40, generator=generator(4))
        settings: dict[str, Any] = {"generator": generator(5)}
        density = spectral_density(operator, params, iterations=6, points=4, **settings)
        trace = trace_estimate(operator, params, products=30, **settings)
        results.extend((top.values, top.vectors, density.nodes, trace.trace))
    assert all(value.dtype == torch.float32 for value in leaves(found))
    scale = float(wanted[0][0])
    close(found[0].double(), wanted[0], rtol=0, atol=0.1 * scale)
    close(found[3].double(), wanted[3], rtol=0, atol=scale)


def test_only_narrow_floating_point_types_are_widened() -> None:
    for dtype in (torch.float32, torch.float64, torch.long, torch.bool):
        x = torch.ones(2, dtype=dtype)
        assert widened(x) is x
    assert {widened(torch.ones(2, dtype=d)).dtype for d in (torch.half, torch.bfloat16)} == {
        torch.float32
    }
    mixed = norms_of([torch.full((2,), 9.0), torch.full((2,), 16.0, dtype=torch.float64)])
    assert_trees({"": mixed}, {"": torch.full((2,), 5.0, dtype=torch.float64)})
