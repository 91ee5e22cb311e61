"""What holds for every score function, whatever it computes.

Axes: R targets, N examples.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from metalearn import attribution, core
from tests.support.attribution_oracles import Trained, classifier

close = torch.testing.assert_close


def _fisher(known: Trained) -> Any:
    return core.fisher_kfac(
        known.module.to(known.params["0.weight"].dtype), known.params, known.examples,
        likelihood="categorical", kind="exact", corrected=True,
    )  # fmt: skip


def _index(known: Trained) -> Tensor:
    with tempfile.TemporaryDirectory() as folder:
        return attribution.build_gradient_index(
            Path(folder), known.loss_fn, known.params, known.examples, size=5, seed=0
        ).query(known.targets)


FOR_TARGETS: dict[str, Callable[[Trained], Tensor]] = {
    "conjugate gradients": lambda k: (
        attribution.conjugate_gradient_influence(
            k.loss_fn, k.params, k.targets, k.examples, damping=3.0, tolerance=1e-6
        ).scores
    ),
    "Kronecker factors": lambda k: attribution.kronecker_influence(
        k.loss_fn, k.params, k.targets, k.examples, fisher=_fisher(k), damping=0.1
    ),
    "TracIn": lambda k: attribution.tracin_scores(
        k.loss_fn, [k.params], k.targets, k.examples, learning_rates=[0.1]
    ),
    "TRAK": lambda k: attribution.trak_scores(
        k.outputs_fn, [k.params], k.targets, k.examples, size=4, seed=0, damping=0.1
    ),
    "cosine": lambda k: attribution.gradient_similarity(k.loss_fn, k.params, k.targets, k.examples),
    "representations": lambda k: attribution.representation_similarity(
        k.outputs_fn, k.params, k.targets[0], k.examples[0]
    ),
    "index": _index,
}
BY_THEMSELVES: dict[str, Callable[[Trained], Tensor]] = {
    "Kronecker factors, self": lambda k: attribution.kronecker_self_influence(
        k.loss_fn, k.params, k.examples, fisher=_fisher(k), damping=0.1
    ),
    "TracIn, self": lambda k: attribution.tracin_self_influence(
        k.loss_fn, [k.params], k.examples, learning_rates=[0.1]
    ),
    "GraNd": lambda k: attribution.grand_scores(k.loss_fn, [k.params], k.examples),
    "EL2N": lambda k: attribution.el2n_scores(k.outputs_fn, [k.params], k.examples),
}
EVERY = FOR_TARGETS | BY_THEMSELVES
every = pytest.mark.parametrize("name", EVERY)


def taken(batch: Any, order: Any) -> Any:
    return tuple(x[order] for x in batch)


@every
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_is_the_same_where_autograd_records_nothing(name: str, mode: Any) -> None:
    known = classifier()
    expected = EVERY[name](known)
    with mode():
        found = EVERY[name](known)
    close(found, expected)


@every
def test_nothing_is_recorded_and_no_global_number_is_drawn(name: str) -> None:
    known = classifier()
    params = {n: p.clone().requires_grad_() for n, p in known.params.items()}
    before, state = {n: p.clone() for n, p in params.items()}, torch.get_rng_state()
    found = EVERY[name](known._replace(params=params))
    assert not found.requires_grad
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None and torch.equal(p, before[n]) for n, p in params.items())
    close(found, EVERY[name](known))


@every
def test_examples_in_another_order_have_their_scores_in_that_order(name: str) -> None:
    known = classifier()
    order = torch.tensor([4, 0, 6, 2, 5, 1, 3])
    shuffled = known._replace(examples=taken(known.examples, order))
    close(EVERY[name](shuffled), EVERY[name](known)[..., order], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", FOR_TARGETS)
def test_targets_do_not_know_of_each_other(name: str) -> None:
    known = classifier()
    alone = [
        FOR_TARGETS[name](known._replace(targets=taken(known.targets, slice(r, r + 1))))
        for r in range(3)
    ]
    close(FOR_TARGETS[name](known), torch.cat(alone), rtol=1e-4, atol=1e-8)


@every
def test_float32_is_close_to_float64(name: str) -> None:
    known = classifier()
    expected = EVERY[name](known)
    narrow = known._replace(
        params={n: p.float() for n, p in known.params.items()},
        targets=(known.targets[0].float(), known.targets[1]),
        examples=(known.examples[0].float(), known.examples[1]),
    )
    found = EVERY[name](narrow)
    assert found.dtype == torch.float32
    assert (found - expected).norm() < 1e-3 * expected.norm()
