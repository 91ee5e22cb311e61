"""Norms without gradients and clipped gradients: closed forms, formed gradients, memory.

Axes: N samples, P parameters.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, vmap

from metalearn.core import (
    clipped_gradient,
    ghost_parameters,
    per_sample_gradients,
    per_sample_norms,
)
from metalearn.core.memory import peak_memory
from metalearn.errors import SettingError
from tests.support.networks import CASES, case, noise, scaled, tiny_bert
from tests.support.oracles import assert_trees, generator

EVERY = pytest.mark.parametrize("name", list(CASES))
close = torch.testing.assert_close


def formed(problem: Any) -> tuple[dict[str, Tensor], Tensor]:
    """Gradients [N, ...] and [N, P]."""
    grads = per_sample_gradients(problem.loss_fn, problem.params, problem.batch, method="vmap")
    return grads, torch.cat([g.flatten(1) for g in grads.values()], 1)


def pull(theta: Tensor, x: Tensor) -> Tensor:
    """½‖θ − x‖², whose gradients are θ − x_i."""
    return 0.5 * (theta - x).square().sum(-1).mean()


@EVERY
def test_norms_and_clipping_equal_those_of_formed_gradients(name: str) -> None:
    problem = case(name)
    loss_fn, params, batch, _ = problem
    grads, flat = formed(problem)
    norms = flat.norm(dim=1)
    for settings in ({}, {"chunk_size": 3}, {"method": "vmap"}):
        close(per_sample_norms(loss_fn, params, batch, **settings), norms)
        tree = per_sample_norms(loss_fn, params, batch, by_leaf=True, **settings)
        assert_trees(tree, {k: g.flatten(1).norm(dim=1) for k, g in grads.items()}, 1e-7)
        bound = float(norms.sort().values[1:3].mean())  # between two of four
        found = clipped_gradient(loss_fn, params, batch, max_norm=bound, **settings)
        share = (bound / norms).clamp(max=1)
        exact = {k: torch.einsum("n,n...->...", share, g) / len(g) for k, g in grads.items()}
        assert_trees(found.grads, exact)
        close(found.norms, norms)
        assert float(found.clipped_fraction) == 0.5
    free = clipped_gradient(loss_fn, params, batch, max_norm=float("inf"))
    assert_trees(free.grads, grad(loss_fn)(params, batch))
    assert float(free.clipped_fraction) == 0.0


@EVERY
def test_inside_an_outer_vmap_over_members(name: str) -> None:
    loss_fn, params, batch, _ = case(name)
    members, other = scaled(params), {key: 1.1 * value for key, value in params.items()}
    norms = vmap(lambda p: per_sample_norms(loss_fn, p, batch))(members)
    close(norms[1], per_sample_norms(loss_fn, other, batch, method="vmap"))
    clip = lambda p: clipped_gradient(loss_fn, p, batch, max_norm=0.5)  # noqa: E731
    found, exact = vmap(clip)(members), clip(other)
    assert_trees({k: v[1] for k, v in found.grads.items()}, exact.grads)


def test_which_parameters_go_without_gradients() -> None:
    loss_fn, params, batch, _ = case("tied")
    ghosts = ghost_parameters(loss_fn, params, batch)
    assert {key for key, ghost in ghosts.items() if not ghost} == {"shift.weight"}  # unused
    loss_fn, params, batch, _ = case("convolutions")
    ghosts = ghost_parameters(loss_fn, params, batch)
    assert all(ghosts.values())
    loss_fn, params, batch, _ = case("attention")
    ghosts = ghost_parameters(loss_fn, params, batch)
    assert all(ghosts.values())


def test_tiny_bert() -> None:
    pytest.importorskip("transformers")
    problem = tiny_bert()
    _, flat = formed(problem)
    loss_fn, params, batch, _ = problem
    close(per_sample_norms(loss_fn, params, batch), flat.norm(dim=1))
    ghosts = ghost_parameters(loss_fn, params, batch)
    assert all(ghosts.values())


def test_clipping_in_closed_form_with_a_gradient_of_zero() -> None:
    """Sample i has the gradient i."""
    loss = lambda theta, i: (theta * i).mean()  # noqa: E731
    samples = torch.arange(5, dtype=torch.float64)
    found = clipped_gradient(loss, torch.zeros((), dtype=torch.float64), samples, max_norm=2.5)
    close(found.grads, samples.new_tensor((0 + 1 + 2 + 2.5 + 2.5) / 5))
    close(found.norms, samples)
    close(found.clipped_fraction, samples.new_tensor(0.4))
    vector = torch.zeros(2, dtype=torch.float64)
    none = clipped_gradient(pull, vector, torch.zeros(3, 2, dtype=torch.float64), max_norm=1.0)
    close(none.grads, vector)
    assert not none.norms.any()


@pytest.mark.parametrize("samples", [64, 256])
def test_memory_stays_near_that_of_a_plain_step(samples: int) -> None:
    loss_fn, params, _, module = case("large_pictures")
    x = torch.randn(samples, 8, 14, 14, generator=generator(0), dtype=torch.float64)
    batch = (x, torch.arange(samples) % 3)

    def plain() -> Any:
        return torch.autograd.grad(
            F.cross_entropy(module(x.view_as(x)), batch[1]), list(module.parameters())
        )

    cpu = torch.device("cpu")
    norms = peak_memory(lambda: per_sample_norms(loss_fn, params, batch), cpu)
    clipped = peak_memory(lambda: clipped_gradient(loss_fn, params, batch, max_norm=1.0), cpu)
    allowed = 1.1 * peak_memory(plain, cpu) + 2**21  # and a slice of columns and products
    assert max(norms, clipped) < allowed


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: clipped_gradient(pull, noise(2), noise(3, 2), max_norm=0), "max_norm=0: a number"),
        (lambda: per_sample_norms(pull, noise(2), {}), r"batch=\{\}: the same number of samples"),
    ],
)
def test_bad_inputs_are_refused_with_a_sentence(call: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        call()
