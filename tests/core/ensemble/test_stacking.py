"""Stacked parameters: gradients of all members at once against one member after another."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import vmap

from metalearn.core import functionalize
from metalearn.core.ensemble.stacking import (
    map_members,
    member_count,
    member_gradients,
    stack,
    take_member,
    unstack,
)
from metalearn.errors import SettingError
from tests.support.oracles import assert_trees, conv, generator, mlp

ENGINES = ("batched", "vmap", "loop")
engines = pytest.mark.parametrize("engine", ENGINES)


def problem(kind: str, members: int = 3, samples: int = 4) -> Any:
    """A loss of one member, stacked parameters, inputs and targets of each member."""
    make, shape = (conv, (1, 4, 4)) if kind == "conv" else (mlp, (2,))
    apply, _, buffers = functionalize(make())
    trees = [functionalize(make(seed=seed))[1] for seed in range(members)]
    x = torch.randn((members, samples, *shape), generator=generator(7), dtype=torch.float64)
    y = (torch.arange(samples) % 2).repeat(members, 1)

    def loss(params: Any, x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
        return weight * torch.nn.functional.cross_entropy(apply(params, buffers, x), y)

    weights = torch.linspace(0.5, 2, members, dtype=torch.float64)
    return loss, trees, x, y, weights


def one_by_one(loss: Any, trees: Any, *rows: Any) -> tuple[Any, Tensor]:
    """Ordinary autograd, member after member."""
    grads, losses = [], []
    for params, *own in zip(trees, *rows):
        leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
        value = loss(leaves, *own)
        found = torch.autograd.grad(value, list(leaves.values()), materialize_grads=True)
        grads.append(dict(zip(leaves, found)))
        losses.append(value.detach())
    return {n: torch.stack([g[n] for g in grads]) for n in grads[0]}, torch.stack(losses)


# --- trees ----------------------------------------------------------------------------------------


def test_stacked_and_taken_apart_again() -> None:
    trees = [{"a": torch.full((2,), float(i)), "b": [torch.tensor(i)]} for i in range(3)]
    stacked = stack(trees)
    assert stacked["a"].shape == (3, 2)
    assert stacked["b"][0].tolist() == [0, 1, 2]
    assert member_count(stacked) == 3
    for index, (tree, row) in enumerate(zip(trees, unstack(stacked))):
        for found in (row, take_member(stacked, index)):
            assert torch.equal(found["a"], tree["a"])
            assert torch.equal(found["b"][0], tree["b"][0])
    take_member(stacked, 1)["a"].zero_()  # a view
    assert stacked["a"].tolist() == [[0, 0], [0, 0], [2, 2]]


@pytest.mark.parametrize(
    ("trees", "message"),
    [
        ([], "members=0: at least one is needed"),
        (
            [{"w": torch.zeros(2)}, {"w": torch.zeros(3)}],
            r"members\[1\].w='torch.float32 \[3\]': torch.float32 \[2\] is needed, as in members",
        ),
        (
            [{"w": torch.zeros(2)}, {"w": torch.zeros(2).double()}],
            r"members\[1\].w='torch.float64 \[2\]': torch.float32 \[2\] is needed",
        ),
        (
            [{"w": torch.zeros(2)}, {"v": torch.zeros(2)}],
            r"members\[1\]=\['v'\]: \['w'\]",
        ),
    ],
)
def test_trees_that_differ_are_not_stacked(trees: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        stack(trees)


@pytest.mark.parametrize(
    "tree", [{"a": torch.zeros(2), "b": torch.zeros(3)}, torch.zeros(0, 2), torch.tensor(1.0)]
)
def test_leaves_need_one_number_of_members(tree: Any) -> None:
    with pytest.raises(SettingError, match="every leaf needs the same leading axis of at least 1"):
        member_count(tree)


# --- values and gradients -------------------------------------------------------------------------


@engines
@pytest.mark.parametrize("chunk_size", [None, 1, 2, 5])
@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_gradients_are_those_of_each_member(kind: str, chunk_size: int | None, engine: Any) -> None:
    loss, trees, x, y, weights = problem(kind)
    found = member_gradients(
        loss, stack(trees), x, y, weights, engine=engine, chunk_size=chunk_size
    )
    grads, losses = one_by_one(loss, trees, x, y, weights)
    assert_trees(found.grads, grads)
    torch.testing.assert_close(found.losses, losses, rtol=1e-12, atol=1e-12)
    assert not found.losses.requires_grad


@engines
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_arguments_may_be_shared(chunk_size: int | None, engine: Any) -> None:
    loss, trees, x, y, weights = problem("conv")
    found = member_gradients(
        loss, stack(trees), x[0], y[0], weights,
        in_dims=(None, None, 0), engine=engine, chunk_size=chunk_size,
    )  # fmt: skip
    grads, losses = one_by_one(loss, trees, [x[0]] * 3, [y[0]] * 3, weights)
    assert_trees(found.grads, grads)
    torch.testing.assert_close(found.losses, losses, rtol=1e-12, atol=1e-12)


def test_one_member_is_the_single_gradient() -> None:
    loss, trees, x, y, weights = problem("conv", members=1)
    for engine in ENGINES:
        found = member_gradients(loss, stack(trees), x, y, weights, engine=engine)  # type: ignore[arg-type]
        grads, _ = one_by_one(loss, trees, x, y, weights)
        assert_trees(found.grads, grads)


def test_gradients_inside_an_outer_vmap() -> None:
    loss, trees, x, y, weights = problem("conv")
    params = stack(trees)
    scales = torch.tensor([1.0, 0.9, 1.2], dtype=torch.float64)

    def at(scale: Tensor) -> Any:
        moved = {name: scale * value for name, value in params.items()}
        return member_gradients(loss, moved, x, y, weights, engine="vmap")

    found = vmap(at)(scales)
    for row, scale in enumerate(scales):
        moved = [{n: scale * v for n, v in tree.items()} for tree in trees]
        grads, losses = one_by_one(loss, moved, x, y, weights)
        assert_trees({n: g[row] for n, g in found.grads.items()}, grads)
        torch.testing.assert_close(found.losses[row], losses, rtol=1e-12, atol=1e-12)


@engines
def test_values_of_all_members(engine: Any) -> None:
    loss, trees, x, y, weights = problem("conv")
    found = map_members(loss, stack(trees), x, y, weights, engine=engine)
    _, losses = one_by_one(loss, trees, x, y, weights)
    torch.testing.assert_close(found, losses, rtol=1e-12, atol=1e-12)


def test_a_member_that_is_not_finite_stays_alone() -> None:
    loss, trees, x, y, weights = problem("conv")
    sound, _ = one_by_one(loss, trees, x, y, weights)
    x[1] = torch.nan
    for engine in ENGINES:
        found = member_gradients(loss, stack(trees), x, y, weights, engine=engine)  # type: ignore[arg-type]
        assert found.losses.isnan().tolist() == [False, True, False]
        for row in (0, 2):
            assert_trees(
                {n: g[row] for n, g in found.grads.items()}, {n: g[row] for n, g in sound.items()}
            )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"engine": "fast"}, "engine='fast': one of batched, vmap, loop is needed"),
        ({"chunk_size": 0}, "chunk_size=0: a whole number of at least 1"),
    ],
)
def test_bad_settings(change: dict[str, Any], message: str) -> None:
    loss, trees, x, y, weights = problem("mlp")
    with pytest.raises(SettingError, match=message):
        member_gradients(loss, stack(trees), x, y, weights, **change)
    with pytest.raises(SettingError, match="every leaf needs the same leading axis"):
        member_gradients(loss, stack(trees), x[:2], y, weights)
