"""Norms without gradients, clipping, noise scale and streaming: closed forms and formed gradients.

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
    gradient_mean,
    gradient_noise_scale,
    gradient_norms,
    gradient_sketches,
    gradient_variance,
    noise_average,
    norm_quantiles,
    per_sample_gradients,
    per_sample_norms,
    reduce_per_sample,
)
from metalearn.core.memory import peak_memory
from metalearn.errors import SettingError
from tests.core.networks import CASES, case, noise, scaled, tiny_bert
from tests.oracles import assert_trees, generator

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
        bound = float(norms.median())
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
    assert not any(ghosts.values())  # all are used twice, or by another way
    loss_fn, params, batch, _ = case("convolutions")
    ghosts = ghost_parameters(loss_fn, params, batch)
    weights = {key for key, ghost in ghosts.items() if ghost and key.endswith("weight")}
    assert weights == {"0.weight", "3.weight", "8.weight", "12.weight"}  # not grouped ones, norms
    loss_fn, params, batch, _ = case("attention")
    ghosts = ghost_parameters(loss_fn, params, batch)
    assert ghosts["table.weight"] and ghosts["head.weight"] and not ghosts["norm.weight"]


def test_tiny_bert() -> None:
    pytest.importorskip("transformers")
    problem = tiny_bert()
    _, flat = formed(problem)
    loss_fn, params, batch, _ = problem
    close(per_sample_norms(loss_fn, params, batch), flat.norm(dim=1))
    ghosts = ghost_parameters(loss_fn, params, batch)
    assert ghosts["bert.embeddings.word_embeddings.weight"] and ghosts["classifier.weight"]


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
        return torch.autograd.grad(F.cross_entropy(module(x), batch[1]), list(module.parameters()))

    cpu = torch.device("cpu")
    norms = peak_memory(lambda: per_sample_norms(loss_fn, params, batch), cpu)
    clipped = peak_memory(lambda: clipped_gradient(loss_fn, params, batch, max_norm=1.0), cpu)
    allowed = 1.1 * peak_memory(plain, cpu) + 2**21  # and a slice of columns and products
    assert max(norms, clipped) < allowed


def test_noise_scale_in_closed_form() -> None:
    theta, x = noise(3), noise(8, 3) * 2
    grads = per_sample_gradients(pull, theta, x)
    found = gradient_noise_scale({"theta": grads})
    noises = x.var(0).sum()
    signal = (theta - x.mean(0)).square().sum() - noises / 8
    close(found.noise, noises)
    close(found.signal, signal)
    close(found.scale, noises / signal)
    close(found.scale_by_leaf["theta"], noises / signal)
    groups = gradient_noise_scale(grads.view(4, 2, 3).mean(1), group_size=2)
    pairs = x.view(4, 2, 3).mean(1)
    close(groups.noise, 2 * pairs.var(0).sum())
    close(groups.signal, (theta - x.mean(0)).square().sum() - pairs.var(0).sum() / 4)


def test_noise_and_signal_are_unbiased() -> None:
    """Over many batches of 4: tr Σ = 3·4 and |G|² = 3."""
    x = 2 * torch.randn(4000, 4, 3, generator=generator(0), dtype=torch.float64)
    found = vmap(gradient_noise_scale)(1 - x)
    assert abs(float(found.noise.mean()) / 12 - 1) < 0.03
    assert abs(float(found.signal.mean()) / 3 - 1) < 0.1
    average = noise_average()
    state = average.init(torch.ones(3, dtype=torch.float64))
    for step in range(200):
        state = average.update(state, gradient_noise_scale(1 - x[step]))
    close(average.value(state).scale, found.noise[:200].mean() / found.signal[:200].mean())


def test_noise_averages_leave_out_single_gradients_and_correct_their_start() -> None:
    single, pair = gradient_noise_scale(noise(1, 3)), gradient_noise_scale(noise(2, 3) + 5)
    assert all(torch.isnan(value) for value in single[:3])
    for decay in (None, 0.9):
        average = noise_average(decay)
        state = average.init(noise(3))
        assert torch.isnan(average.value(state).scale)
        state = average.update(average.update(state, single), pair)
        close(average.value(state).scale, pair.scale)
    lost = gradient_noise_scale(torch.tensor([[1.0], [-1.0]]))
    assert float(lost.signal) < 0 and float(lost.scale) == float("inf")


@pytest.mark.parametrize("chunk_size", [None, 1, 3])
def test_streams_equal_the_whole(chunk_size: Any) -> None:
    problem = case("mlp")
    grads, flat = formed(problem)
    reductions = {
        "mean": gradient_mean(),
        "variance": gradient_variance(),
        "norms": gradient_norms(),
        "quantiles": norm_quantiles((0.0, 0.5, 0.9)),
        "sketches": gradient_sketches(7, generator=generator(0)),
    }
    found = reduce_per_sample(
        problem.loss_fn, problem.params, problem.batch, reductions, chunk_size=chunk_size
    )
    assert_trees(found["mean"], {key: g.mean(0) for key, g in grads.items()})
    assert_trees(found["variance"], {key: g.var(0) for key, g in grads.items()})
    close(found["norms"], flat.norm(dim=1))
    close(found["quantiles"], flat.norm(dim=1).quantile(flat.new_tensor([0.0, 0.5, 0.9])))
    whole = reduce_per_sample(
        problem.loss_fn, problem.params, problem.batch,
        {"sketches": gradient_sketches(7, generator=generator(0))}, chunk_size=None,
    )  # fmt: skip
    close(found["sketches"], whole["sketches"])
    assert found["sketches"].shape == (len(flat), 7)


def test_products_of_sketches_are_unbiased() -> None:
    x, theta = noise(3, 4), noise(4)
    grads = theta - x
    products = []
    for seed in range(3000):
        sketches = gradient_sketches(8, generator=generator(seed))
        state = sketches.update(sketches.init(theta), grads)
        s = sketches.finish(state)
        products.append(s @ s.T)
    deviation = (2 / 8 / 3000) ** 0.5 * grads.norm(dim=1).outer(grads.norm(dim=1))
    assert ((torch.stack(products).mean(0) - grads @ grads.T).abs() < 4 * deviation).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: clipped_gradient(pull, noise(2), noise(3, 2), max_norm=0), "max_norm=0: a number"),
        (lambda: per_sample_norms(pull, noise(2), {}), r"batch=\{\}: the same number of samples"),
        (lambda: gradient_noise_scale([noise(2), noise(3)]), "leaves with the same leading axis"),
        (lambda: gradient_noise_scale(noise(2), group_size=0), "group_size=0: a whole number"),
        (lambda: noise_average(1.0), "decay=1.0: a number from 0 to below 1"),
        (lambda: norm_quantiles((2.0,)), r"q=\(2.0,\): numbers from 0 to 1"),
        (lambda: gradient_sketches(0, generator=generator(0)), "size=0: a whole number"),
    ],
)
def test_bad_inputs_are_refused_with_a_sentence(call: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        call()
