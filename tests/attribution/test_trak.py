"""TRAK against plain loops with the same projections, and the projections themselves.

Axes: M models, R targets, N examples, P parameters, k numbers of a projection.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from metalearn.attribution import projections as projections_room
from metalearn.attribution import trak_scores
from metalearn.attribution.projections import gradient_projections
from metalearn.core.tree import tree_map
from metalearn.errors import NonFiniteError, SettingError
from tests.support.attribution_oracles import (
    Trained,
    chosen,
    classifier,
    gradient_rows,
    others,
    samples,
)
from tests.support.oracles import generator

close = torch.testing.assert_close
KINDS: Any = ["signs", "sketch"]


def matrix_of(kind: Any, size: int, seed: int, params: dict[str, Tensor]) -> Tensor:
    """The projection as a matrix ``[P, k]``: what it makes of unit vectors."""
    count = sum(p.numel() for p in params.values())
    rows, parts, start = torch.eye(count, dtype=torch.float64), {}, 0
    for name, p in params.items():
        parts[name] = rows[:, start : start + p.numel()].reshape(count, *p.shape)
        start += p.numel()
    init, update, finish = gradient_projections(kind, size, seed)
    return finish(update(init(params), parts))


def margin(known: Trained, params: Any, batch: Any) -> Tensor:
    """log(p/(1 − p)) of one sample, as it is written."""
    chance = known.outputs_fn(params, batch[0]).softmax(1)[0, int(batch[1])]
    return torch.log(chance / (1 - chance))


def by_loops(
    known: Trained, models: list[Any], kind: Any, size: int, seed: int, damping: float, mask: Any
) -> Tensor:
    total, shortfall = torch.zeros(()), torch.zeros(())
    eye = torch.eye(size, dtype=torch.float64)

    def rows(params: Any, batch: Any, projection: Tensor) -> Tensor:
        found = gradient_rows(lambda p, b: margin(known, p, b), params, batch)
        return found[:, mask] @ projection

    for number, params in enumerate(models):
        part = {n: p for n, p in params.items() if mask is ... or n.startswith("2.")}
        projection = matrix_of(kind, size, seed + number, part)
        left = rows(params, known.targets, projection)
        right = rows(params, known.examples, projection)
        kernel = torch.linalg.inv(sum(torch.outer(r, r) for r in right) + damping * eye)
        total = total + torch.stack([torch.stack([a @ kernel @ b for b in right]) for a in left])
        chances = [
            known.outputs_fn(params, x).softmax(1)[0, int(y)] for x, y in samples(known.examples)
        ]
        shortfall = shortfall + 1 - torch.stack(chances)
    return total / len(models) * (shortfall / len(models))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("models", [1, 3])
@pytest.mark.parametrize("parameters", [None, "2.*"])
@pytest.mark.parametrize("chunk_size", [None, 2, "auto"])
def test_scores_are_those_of_loops(
    kind: Any, models: int, parameters: Any, chunk_size: Any
) -> None:
    known = classifier(3, 9)
    places = others(known.params, models)
    mask = chosen(known.params, "2.") if parameters else ...
    settings: Any = {"size": 5, "seed": 4, "damping": 0.1, "projection": kind}
    found = trak_scores(
        known.outputs_fn, places, known.targets, known.examples,
        parameters=parameters, chunk_size=chunk_size, **settings,
    )  # fmt: skip
    expected = by_loops(known, places, kind, 5, 4, 0.1, mask)
    close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (1, 7)])
def test_one_target_or_one_example(shape: tuple[int, int]) -> None:
    known = classifier(*shape)
    found = trak_scores(
        known.outputs_fn, [known.params], known.targets, known.examples, size=4, seed=0, damping=1.0
    )
    assert found.shape == shape
    close(found, by_loops(known, [known.params], "signs", 4, 0, 1.0, ...))


def test_without_damping_the_examples_have_an_inverse_of_their_own() -> None:
    """With k = N, s_rᵀ·(ΦᵀΦ)⁻¹·Φᵀ of the examples themselves is the identity."""
    known = classifier(3, 4)
    found = trak_scores(
        known.outputs_fn, [known.params], known.examples, known.examples, size=4, seed=1
    )
    chances = known.outputs_fn(known.params, known.examples[0]).softmax(1)
    own = chances.gather(1, known.examples[1][:, None])[:, 0]
    close(found, torch.diag(1 - own), rtol=1e-6, atol=1e-8)


def test_two_classes_are_a_logistic_regression() -> None:
    """Without a projection to speak of, the step is that of Newton for the features."""
    x = torch.randn(12, 3, generator=generator(0), dtype=torch.float64)
    y = torch.arange(12) % 2

    def outputs_fn(params: Any, inputs: Tensor) -> Tensor:
        half = inputs @ params["w"]
        return torch.stack([torch.zeros_like(half), half], dim=1)

    params = {"w": torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64)}
    seed = next(s for s in range(99) if matrix_of("signs", 3, s, params).det().abs() > 0.1)
    found = trak_scores(outputs_fn, [params], (x, y), (x, y), size=3, seed=seed)
    side = (2 * y - 1).double()[:, None] * x  # the gradient of the margin
    chance = torch.sigmoid(side @ params["w"])
    close(found, side @ torch.linalg.inv(x.mT @ x) @ side.mT * (1 - chance))


@pytest.mark.parametrize("kind", KINDS)
def test_projections_keep_products_in_the_mean(kind: Any) -> None:
    params = {"a": torch.zeros(3, 4).double(), "b": torch.zeros(5).double()}
    eye = torch.eye(17, dtype=torch.float64)
    mean = sum(
        (m := matrix_of(kind, 16, seed, params)) @ m.mT for seed in range(400)
    ) / 400  # fmt: skip
    assert (mean - eye).abs().max() < 6 * (1 / 16 / 400) ** 0.5
    close(mean.diagonal(), torch.ones(17, dtype=torch.float64))


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_is_an_address(kind: Any) -> None:
    known = classifier()
    first = matrix_of(kind, 8, 3, known.params)
    torch.manual_seed(5)
    assert torch.equal(matrix_of(kind, 8, 3, known.params), first)
    assert not torch.equal(matrix_of(kind, 8, 4, known.params), first)
    init, update, finish = gradient_projections(kind, 8, 3)
    grads = {n: torch.randn(4, *p.shape, dtype=p.dtype) for n, p in known.params.items()}
    halves = [tree_map(lambda x, s=s: x[s], grads) for s in (slice(1), slice(1, None))]
    state = init(known.params)
    for half in halves:
        state = update(state, half)
    twice = finish(update(init(known.params), grads))  # asked for again
    close(finish(state), twice)
    close(twice, torch.cat([g.flatten(1) for g in grads.values()], 1) @ first)


def test_blocks_that_are_not_kept_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    known = classifier()
    monkeypatch.setattr(projections_room, "_BLOCK", 5 * 8)  # five rows, across no leaf's end
    kept = matrix_of("signs", 8, 3, known.params)
    monkeypatch.setattr(projections_room, "_KEPT", 0)
    close(matrix_of("signs", 8, 3, known.params), kept)
    assert set((kept * 8**0.5).round(decimals=9).flatten().tolist()) == {-1.0, 1.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": []}, "models=0: at least one is needed"),
        ({"size": 0}, "size=0: a whole number of at least 1"),
        ({"size": 8}, "size=8: at most 7 is needed, or a damping above 0"),
        ({"seed": -1}, "seed=-1: a whole number in 0"),
        ({"projection": "dense"}, "projection='dense': one of signs, sketch"),
        ({"damping": -0.1}, "damping=-0.1: "),
        ({"parameters": "2.bias"}, "size=4: at most 3 is needed, or a damping above 0"),
        ({"outputs_fn": lambda p, x: x[:, :1]}, "outputs_fn=.*: two or more classes are needed"),
        ({"outputs_fn": lambda p, x: x[:, 0]}, r"outputs_fn=\(7,\): logits"),
    ],
)
def test_mistakes_are_one_sentence(changes: dict[str, Any], message: str) -> None:
    known = classifier()
    zeros = tuple(torch.zeros_like(x) for x in known.targets)
    given = {
        "outputs_fn": known.outputs_fn,
        "models": [known.params],
        "targets": zeros,
        "examples": (known.examples[0], torch.zeros(7).long()),
        "size": 4,
        "seed": 0,
        "chunk_size": None,
    }
    with pytest.raises(SettingError, match=message):
        trak_scores(**{**given, **changes})


def test_examples_that_depend_on_each_other_and_those_that_are_not_finite_are_refused() -> None:
    known = classifier()
    same = tuple(x[:1].expand(7, *x.shape[1:]) for x in known.examples)
    given: Any = (known.outputs_fn, [known.params], known.targets)
    zeros = torch.zeros_like(known.examples[0]), known.examples[1]
    with pytest.raises(SettingError, match="damping=0.0: a larger one is needed, or a smaller"):
        trak_scores(*given, zeros, size=7, seed=0, parameters="0.weight")
    assert trak_scores(*given, same, size=4, seed=0, damping=1.0).isfinite().all()
    wrong = torch.full_like(known.examples[0], torch.nan), known.examples[1]
    with pytest.raises(NonFiniteError, match="a gradient of an example is infinite or NaN"):
        trak_scores(*given, wrong, size=2, seed=0)
