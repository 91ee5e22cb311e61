"""Reductions of per-sample gradients chunk by chunk, against gradients held whole.

Axes: N samples, P parameters.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from metalearn.core import (
    gradient_mean,
    gradient_norms,
    gradient_sketches,
    gradient_variance,
    norm_quantiles,
    per_sample_gradients,
    reduce_per_sample,
)
from metalearn.errors import SettingError
from tests.core.networks import case, noise
from tests.oracles import assert_trees, generator

close = torch.testing.assert_close


def formed(problem: Any) -> tuple[dict[str, Tensor], Tensor]:
    """Gradients [N, ...] and [N, P]."""
    grads = per_sample_gradients(problem.loss_fn, problem.params, problem.batch, method="vmap")
    return grads, torch.cat([g.flatten(1) for g in grads.values()], 1)


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
    x, theta = noise(3, 4), noise(4) + 1
    grads = theta - x
    products = []
    for seed in range(3000):
        sketches = gradient_sketches(8, generator=generator(seed))
        state = sketches.update(sketches.init(theta), grads)
        s = sketches.finish(state)
        products.append(s @ s.T)
    deviation = (2 / 8 / 3000) ** 0.5 * grads.norm(dim=1).outer(grads.norm(dim=1))
    assert ((torch.stack(products).mean(0) - grads @ grads.T).abs() <= 4 * deviation).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: norm_quantiles((2.0,)), r"q=\(2.0,\): numbers from 0 to 1"),
        (lambda: gradient_sketches(0, generator=generator(0)), "size=0: a whole number"),
    ],
)
def test_bad_inputs_are_refused_with_a_sentence(call: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        call()
