"""Layers that torch runs in more than one way: every entry point against plain autograd.

Axes: T tasks, M members, N samples.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from metalearn import Ensemble
from metalearn.core import (
    clipped_gradient,
    functionalize,
    hvp,
    jacobian,
    meta_gradient,
    per_sample_gradients,
    per_sample_norms,
    sgd,
)
from metalearn.core.ensemble.stacking import member_gradients, stack
from metalearn.types import TaskBatch
from tests.support.delicate_layers import CASES, Case
from tests.support.oracles import assert_trees, generator

pytestmark = pytest.mark.filterwarnings(
    "ignore:enable_nested_tensor:UserWarning",
    "ignore:`torch.nn.utils.weight_norm`:FutureWarning",
    "ignore:The PyTorch API of nested tensors:UserWarning",
)
cases = pytest.mark.parametrize("name", CASES)


class Problem:
    """A case with a loss, for the library and for plain autograd on the reference."""

    def __init__(self, name: str) -> None:
        case: Case = CASES[name]()
        self.network, self.reference = case.pair()
        self.apply, self.params, self.buffers = functionalize(self.network)
        self.x = case.inputs
        self.y = torch.randn(len(self.x), 2, generator=generator(6), dtype=torch.float64)

    def loss(self, params: Any, batch: Any) -> Tensor:
        return F.mse_loss(self.apply(params, self.buffers, batch[0]), batch[1], reduction="sum")

    def reference_loss(self, params: Any, batch: Any) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):  # the one with second derivatives
            outputs = functional_call(self.reference, params, (batch[0],))
        return (outputs - batch[1]).square().sum()

    def gradient(self, params: Any, batch: Any, create_graph: bool = False) -> dict[str, Tensor]:
        values = {n: v if create_graph else v.detach() for n, v in params.items()}
        values = {n: v if v.requires_grad else v.requires_grad_() for n, v in values.items()}
        loss = self.reference_loss(values, batch)
        return dict(zip(values, autograd(loss, list(values.values()), create_graph)))


def autograd(value: Tensor, inputs: list[Tensor], create_graph: bool = False) -> list[Tensor]:
    found = torch.autograd.grad(value, inputs, create_graph=create_graph, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, inputs)]


def tangents(params: dict[str, Tensor]) -> dict[str, Tensor]:
    draws = generator(8)
    return {n: torch.randn(v.shape, generator=draws, dtype=v.dtype) for n, v in params.items()}


@cases
@pytest.mark.parametrize("engine", ["batched", "vmap", "loop"])
def test_meta_gradients_through_two_inner_steps(name: str, engine: Any) -> None:
    problem = Problem(name)
    batches = [(problem.x, problem.y), (problem.x.flip(0), problem.y)]
    support = tuple(torch.stack(parts) for parts in zip(*batches))
    query = tuple(x.flip(0) for x in support)

    start = {n: v.clone().requires_grad_() for n, v in problem.params.items()}
    total: Any = 0
    for task, held_out in zip(batches, batches[::-1]):
        values = dict(start)
        for _ in range(2):
            slopes = problem.gradient(values, task, create_graph=True)
            values = {n: v - 0.01 * slopes[n] for n, v in values.items()}
        total = total + problem.reference_loss(values, held_out) / 2
    wanted = dict(zip(start, autograd(total, list(start.values()))))

    found = meta_gradient(
        problem.loss,
        problem.params,
        TaskBatch(support, query),
        optimizer=sgd(0.01),
        steps=2,
        engine=engine,
    )
    assert_trees(found.grads, wanted, 1e-9)


@cases
@pytest.mark.parametrize("method", ["layers", "vmap"])
def test_gradients_of_single_samples(name: str, method: Any) -> None:
    problem = Problem(name)
    batch = problem.x, problem.y
    rows = [problem.gradient(problem.params, (x[None], y[None])) for x, y in zip(*batch)]
    wanted = {n: torch.stack([row[n] for row in rows]) for n in problem.params}
    norms = torch.stack([sum(g.square().sum() for g in row.values()).sqrt() for row in rows])
    cut = float(norms.median())
    share = (cut / norms).clamp_max(1)

    given = problem.loss, problem.params, batch
    assert_trees(per_sample_gradients(*given, method=method), wanted, 1e-10)
    assert torch.allclose(per_sample_norms(*given, method=method), norms, rtol=1e-10)  # type: ignore[arg-type]
    clipped = clipped_gradient(*given, max_norm=cut, method=method).grads
    mean = {n: torch.einsum("n,n...->...", share, g) / len(norms) for n, g in wanted.items()}
    assert_trees(clipped, mean, 1e-10)


@cases
@pytest.mark.parametrize("mode", ["forward_over_reverse", "reverse_over_reverse"])
def test_hessian_products(name: str, mode: Any) -> None:
    problem = Problem(name)
    batch, along = (problem.x, problem.y), tangents(problem.params)
    values = {n: v.clone().requires_grad_() for n, v in problem.params.items()}
    slopes = problem.gradient(values, batch, create_graph=True)
    product = torch.stack([(slopes[n] * along[n]).sum() for n in slopes]).sum()
    wanted = dict(zip(values, autograd(product, list(values.values()))))
    found = hvp(lambda p: problem.loss(p, batch), problem.params, along, mode=mode)
    assert_trees(found, wanted, 1e-8)


@cases
def test_jacobians_in_both_modes(name: str) -> None:
    problem = Problem(name)
    outputs = lambda p: problem.apply(p, problem.buffers, problem.x)  # noqa: E731
    forward, reverse = (
        jacobian(outputs, mode=mode)(problem.params) for mode in ("forward", "reverse")
    )
    assert_trees(forward, reverse, 1e-9)


@cases
@pytest.mark.parametrize("engine", ["batched", "vmap", "loop"])
def test_members_and_their_gradients(name: str, engine: Any) -> None:
    problem = Problem(name)
    other = {n: 1.1 * v for n, v in problem.params.items()}
    rows, batch = [problem.params, other], (problem.x, problem.y)
    found = member_gradients(problem.loss, stack(rows), batch, in_dims=None, engine=engine)
    assert_trees(found.grads, stack([problem.gradient(r, batch) for r in rows]), 1e-9)

    own = (torch.stack([problem.x, problem.x.flip(0)]), torch.stack([problem.y, problem.y]))
    found = member_gradients(problem.loss, stack(rows), own, engine=engine)
    wanted = [problem.gradient(r, (own[0][i], own[1][i])) for i, r in enumerate(rows)]
    assert_trees(found.grads, stack(wanted), 1e-9)

    if name == "weight_norm of old":
        return  # torch cannot copy such a module
    ensemble = Ensemble.from_modules([problem.network])
    plain = functional_call(problem.reference, problem.params, (problem.x,))
    assert torch.allclose(ensemble(problem.x, engine=engine)[0], plain, rtol=1e-10)


def test_the_inference_path_of_attention_is_left_on_for_others() -> None:
    problem = Problem("encoder layer")
    before = torch.backends.mha.get_fastpath_enabled()
    with pytest.raises(AssertionError):
        problem.apply(problem.params, problem.buffers, problem.x[..., :2])
    problem.apply(problem.params, problem.buffers, problem.x)
    assert torch.backends.mha.get_fastpath_enabled() is before
    assert torch.overrides._get_current_function_mode_stack() == []


def test_weights_of_bags_and_losses_that_call_the_functions_themselves() -> None:
    ids = torch.tensor([[1, 2, 2, 0], [3, 0, 0, 0], [0, 0, 4, 4]])
    table = torch.randn(5, 3, generator=generator(9), dtype=torch.float64)
    weights = torch.rand(3, 4, generator=generator(10), dtype=torch.float64)

    def loss(p: Any, batch: Any) -> Tensor:
        bags = F.embedding_bag(
            batch[0],
            p["table"],
            mode="sum",
            per_sample_weights=batch[1] * p["slope"],
            padding_idx=0,
        )
        return bags.tanh().square().sum()

    def plain(p: Any, batch: Any) -> Tensor:
        rows = p["table"][batch[0]] * (batch[1] * p["slope"] * (batch[0] != 0))[..., None]
        return rows.sum(1).tanh().square().sum()

    params = {"table": table, "slope": torch.tensor(1.3, dtype=torch.float64)}
    for method in ("layers", "vmap"):
        found = per_sample_gradients(loss, params, (ids, weights), method=method)  # type: ignore[arg-type]
        for i in range(3):
            values = {n: v.clone().requires_grad_() for n, v in params.items()}
            value = plain(values, (ids[i : i + 1], weights[i : i + 1]))
            grads = autograd(value, list(values.values()))
            assert_trees({n: g[i] for n, g in found.items()}, dict(zip(values, grads)), 1e-10)


@pytest.mark.parametrize("width", [-1, 0, 1, 2])
def test_plain_weight_norm_is_torchs(width: int) -> None:
    from metalearn.core.ops import DecomposedOperations

    v = torch.randn(3, 4, 2, generator=generator(1), dtype=torch.float64)
    g = torch.randn(torch.norm_except_dim(v, 2, width).shape, generator=generator(2)).double()
    wanted = torch._weight_norm(v, g, width)
    with DecomposedOperations():
        assert torch.allclose(torch._weight_norm(v, g, width), wanted, rtol=1e-12)
    assert isinstance(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), nn.Linear)
