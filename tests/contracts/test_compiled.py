"""What is compiled gives what plain loops give: meta-gradients, members, samples, curvature."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from metalearn.core import (
    clipped_gradient,
    compiled,
    hvp,
    member_gradients,
    meta_gradient,
    per_sample_gradients,
    per_sample_norms,
    sgd,
)
from metalearn.core.tree import leaves, tree_map
from tests.contracts import test_meta_gradient_contract as meta
from tests.support import oracles
from tests.support.oracles import assert_trees


def moved(tree: Any) -> Any:
    """Other values of the same kind, as a later step has: whole numbers stay."""
    return tree_map(lambda x: (x * 0.9 + 0.02) if x.is_floating_point() else x, tree)


EVERY = list(product(meta.PROBLEMS, meta.OPTIMIZERS, meta.METHODS, ["batched", "vmap"]))
OFTEN = [
    ("mlp", "sgd", "mixed", "batched"),
    ("mlp", "sgd", "first_order", "batched"),
    ("mlp", "momentum", "reverse", "vmap"),
    ("mlp", "adam", "first_order", "batched"),
    ("conv", "sgd", "reverse", "batched"),
]
"""Cases of every run; all of them are a campaign, as tracing one takes seconds."""


@pytest.mark.parametrize(
    ("problem", "optimizer", "method", "engine"),
    [pytest.param(*c, marks=[] if c in OFTEN else pytest.mark.campaign) for c in EVERY],
)
def test_a_compiled_meta_gradient_is_that_of_loops(
    problem: str, optimizer: str, method: Any, engine: Any
) -> None:
    case, (pair, rule) = meta.PROBLEMS[problem](), meta.OPTIMIZERS[optimizer]
    settings: dict[str, Any] = {"optimizer": pair, "steps": 2, "method": method, "engine": engine}
    step = compiled(
        lambda params, tasks: meta_gradient(case.loss_fn, params, tasks, **settings),
        compiler="aot_eager",
    )
    step(case.params, case.tasks)
    later = case._replace(params=moved(case.params), tasks=moved(case.tasks))
    found = step(later.params, later.tasks)
    first = method == "first_order"
    grads, queries, supports = oracles.maml(later, rule, 2, first_order=first)
    assert step.seconds > 0
    assert_trees(found.grads, grads, meta.tolerance_of(optimizer))
    torch.testing.assert_close(found.query_losses, queries, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.support_losses, supports, rtol=1e-9, atol=1e-9)
    assert not any(value.requires_grad for value in leaves(found))


@pytest.mark.parametrize(
    "norm",
    [pytest.param(n, marks=[] if n == "batch" else pytest.mark.campaign) for n in meta.NORMS],
)
def test_compiled_second_order_through_norms_equals_finite_differences(norm: str) -> None:
    case = meta.normalised(norm)
    step = compiled(
        lambda params, tasks: (
            meta_gradient(case.loss_fn, params, tasks, optimizer=sgd(0.4), steps=2).grads
        ),
        compiler="aot_eager",
    )
    step(moved(case.params), moved(case.tasks))
    assert_trees(step(case.params, case.tasks), meta.differences(norm), 1e-7)


@pytest.mark.parametrize("method", ["implicit", "reptile"])
def test_compiled_approximations_are_what_they_are_by_themselves(method: Any) -> None:
    case = meta.PROBLEMS["mlp"]()

    def function(params: Any, tasks: Any) -> Any:
        return meta_gradient(
            case.loss_fn, params, tasks, optimizer=sgd(0.2), steps=1, method=method
        ).grads

    step = compiled(function, compiler="aot_eager")
    step(case.params, case.tasks)
    later = moved(case.params), moved(case.tasks)
    assert_trees(step(*later), function(*later))
    assert step.seconds > 0


def regression(params: Any, batch: Any) -> Tensor:
    hidden = torch.tanh(batch[0] @ params["first"])
    return ((hidden @ params["second"] - batch[1]) ** 2).mean()


def drawn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


PARAMS = {"first": drawn(3, 4), "second": drawn(4, 2, seed=1)}
BATCH = drawn(5, 3, seed=2), drawn(5, 2, seed=3)
STACKED = tree_map(lambda x: torch.stack([x, 2 * x, -x]), PARAMS)
FUNCTIONS: dict[str, Any] = {
    "hvp": (lambda p, b: hvp(lambda q: regression(q, b), (p,), (PARAMS,)), PARAMS),
    "samples": (lambda p, b: per_sample_gradients(regression, p, b), PARAMS),
    "norms": (lambda p, b: per_sample_norms(regression, p, b), PARAMS),
    "clipped": (lambda p, b: clipped_gradient(regression, p, b, max_norm=0.5), PARAMS),
    "members": (
        lambda p, b: member_gradients(
            lambda q, x, y: regression(q, (x, y)), p, *b, in_dims=(None, None)
        ),
        STACKED,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_compiled_functions_of_samples_members_and_curvature(name: str) -> None:
    function, params = FUNCTIONS[name]
    step = compiled(function, compiler="aot_eager")
    step(params, BATCH)
    found, wanted = (given(moved(params), moved(BATCH)) for given in (step, function))
    assert step.seconds > 0
    torch.testing.assert_close(leaves(found), leaves(wanted), rtol=1e-10, atol=1e-12)
