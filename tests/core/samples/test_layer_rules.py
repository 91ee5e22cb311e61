"""Every rule against a loop of ordinary backward passes: norms, clipped sums, members, chunks.

Axes: N samples, M members.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from metalearn.core import (
    clipped_gradient,
    ghost_parameters,
    per_sample_gradients,
    per_sample_norms,
)
from metalearn.core.tree import tree_map
from tests.support.layer_rule_cases import RULE_CASES
from tests.support.sample_oracles import looped, norms_of

close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-10)
EVERY = pytest.mark.parametrize("name", RULE_CASES)
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")


def total_of(norms: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(norms.values())).norm(dim=0)


def assert_clipped(found: Any, wanted: dict[str, Tensor], total: Tensor, bound: float) -> None:
    factors = (bound / total.clamp_min(1e-30)).clamp(max=1)
    for n, g in wanted.items():
        close(found.grads[n], torch.tensordot(factors, g, 1) / len(total), msg=n)
    close(found.norms, total)


@EVERY
def test_norms_and_clipped_sums_without_gradients(name: str) -> None:
    loss, params, batch = RULE_CASES[name]()
    wanted = looped(loss, params, batch)
    norms, total = norms_of(wanted), total_of(norms_of(wanted))
    bound = float(total.median()) or 1.0
    assert all(ghost_parameters(loss, params, batch).values())
    by_leaf: Any = per_sample_norms(loss, params, batch, by_leaf=True)
    for n in params:
        close(by_leaf[n], norms[n], msg=n)
    for size in (None, 1, 3):
        close(per_sample_norms(loss, params, batch, chunk_size=size), total)
        found = clipped_gradient(loss, params, batch, max_norm=bound, chunk_size=size)
        assert_clipped(found, wanted, total, bound)
        alone = [tree_map(lambda x, i=i: x[i : i + 1], batch) for i in range(len(total))]
        close(found.losses, torch.stack([loss(params, one) for one in alone]))
    grads = per_sample_gradients(loss, params, batch)
    for n in params:
        close(grads[n], wanted[n], msg=n)


@EVERY
def test_one_sample_alone(name: str) -> None:
    loss, params, batch = RULE_CASES[name]()
    one = tree_map(lambda x: x[1:2], batch)
    wanted = looped(loss, params, one)
    total = total_of(norms_of(wanted))
    assert_clipped(clipped_gradient(loss, params, one, max_norm=0.1), wanted, total, 0.1)
    close(per_sample_norms(loss, params, one), total)


@EVERY
def test_members_and_tasks_at_once(name: str) -> None:
    """M parameter sets on the same samples, and one on the samples of T tasks."""
    loss, params, batch = RULE_CASES[name]()
    sets = {n: torch.stack([p, p.sin()]) for n, p in params.items()}
    tasks = tree_map(lambda x: torch.stack([x, x.flip(0)]), batch)
    take = lambda p, b: tuple(clipped_gradient(loss, p, b, max_norm=0.5))  # noqa: E731
    of_sets = torch.func.vmap(take, in_dims=(0, None))(sets, batch)
    of_tasks = torch.func.vmap(take, in_dims=(None, 0))(params, tasks)
    for i in range(2):
        member = {n: p[i] for n, p in sets.items()}
        task = tree_map(lambda x, i=i: x[i], tasks)
        for found, (own, shown) in ((of_sets, (member, batch)), (of_tasks, (params, task))):
            wanted = looped(loss, own, shown)
            total = total_of(norms_of(wanted))
            close(found[1][i], total)
            factors = (0.5 / total.clamp_min(1e-30)).clamp(max=1)
            for n, g in wanted.items():
                close(found[0][n][i], torch.tensordot(factors, g, 1) / len(total), msg=n)


@EVERY
def test_what_is_made_of_norms_has_a_derivative(name: str) -> None:
    """Σ ‖g_i‖² + ‖clipped‖² along a direction, by differences."""
    loss, params, batch = RULE_CASES[name]()

    def value(params: Any) -> Tensor:
        norms: Any = per_sample_norms(loss, params, batch)
        clipped = clipped_gradient(loss, params, batch, max_norm=0.7)
        return norms.square().sum() + sum(g.square().sum() for g in clipped.grads.values())

    ends = [{n: p + h * p.cos() for n, p in params.items()} for h in (1e-6, -1e-6)]
    found = torch.func.grad(value)(params)
    slope = sum((params[n].cos() * g).sum() for n, g in found.items())
    wanted = (value(ends[0]) - value(ends[1])) / 2e-6
    torch.testing.assert_close(slope, wanted, rtol=2e-5, atol=1e-6)
