"""Meta-gradients of stacked members against MAML's plain loop, member after member."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metalearn.core import adam, functionalize, meta_gradient, sgd
from metalearn.core.ensemble.stacking import stack
from metalearn.core.meta.adapted_task import Implicit
from metalearn.core.meta.inner_optimizers import InnerOptimizer
from metalearn.core.meta.members import member_meta_gradient
from metalearn.core.tree import tree_map
from metalearn.errors import SettingError
from tests.support.oracles import (
    Problem,
    adam_rule,
    classification,
    conv,
    draw,
    maml,
    mlp,
    sgd_rule,
)

ENGINES = ("auto", "batched", "vmap", "loop")
MEMBERS = 3


def deep(seed: int = 0) -> nn.Module:
    """Two convolutions, so that weights of convolutions lie otherwise in memory."""
    layers: list[nn.Module] = []
    for channels in (1, 3):
        norm = nn.BatchNorm2d(3, track_running_stats=False)
        layers += [nn.Conv2d(channels, 3, 3, stride=2, padding=1), norm, nn.Softplus()]
    return draw(nn.Sequential(*layers, nn.Flatten(), nn.Linear(3, 2)), seed)


KINDS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "mlp": (mlp, (2,)),
    "conv": (conv, (1, 4, 4)),
    "deep": (deep, (1, 4, 4)),
}


def problems(kind: str) -> tuple[list[Problem], Any]:
    """The same tasks and loss for members of their own parameters."""
    make, shape = KINDS[kind]
    shared = classification(make(), shape, tasks=3)
    rows = [functionalize(make(seed=seed))[1] for seed in range(MEMBERS)]
    return [shared._replace(params=params) for params in rows], stack(rows)


def distance(found: dict[str, Tensor], expected: list[dict[str, Tensor]]) -> float:
    """Relative, by the norm over all leaves: a bias before a norm has a gradient of zero."""
    pairs = [(found[n], torch.stack([e[n] for e in expected])) for n in expected[0]]
    assert set(found) == set(expected[0])
    error = torch.stack([(a - b).norm() for a, b in pairs]).norm()
    return float(error / torch.stack([b.norm() for _, b in pairs]).norm())


@pytest.mark.parametrize("chunk_size", [None, 1, 2])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("method", ["auto", "reverse", "mixed", "first_order"])
@pytest.mark.parametrize("kind", KINDS)
def test_members_are_plain_loops(
    kind: str, method: Any, engine: Any, chunk_size: int | None
) -> None:
    each, params = problems(kind)
    found = member_meta_gradient(
        each[0].loss_fn, params, each[0].tasks, optimizer=sgd(0.3), steps=2,
        method=method, engine=engine, chunk_size=chunk_size,
    )  # fmt: skip
    oracles = [maml(p, sgd_rule(0.3), 2, first_order=method == "first_order") for p in each]
    assert distance(found.grads, [grads for grads, *_ in oracles]) < 1e-10
    query, support = (torch.stack([o[i] for o in oracles]) for i in (1, 2))
    assert found.query_losses.shape == (MEMBERS, 3)
    assert found.support_losses.shape == (MEMBERS, 3, 2)
    torch.testing.assert_close(found.query_losses, query, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.support_losses, support, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.loss, query.mean(1), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("method", ["reverse", "mixed", "first_order"])
def test_frozen_parameters_and_adam(method: Any, engine: Any) -> None:
    each, params = problems("conv")
    found = member_meta_gradient(
        each[0].loss_fn, params, each[0].tasks, optimizer=adam(0.05), steps=2, method=method,
        engine=engine, frozen="0.*", chunk_size=2,
    )  # fmt: skip
    frozen = [name for name in each[0].params if name.startswith("0.")]
    assert frozen
    first = method == "first_order"
    expected = [maml(p, adam_rule(0.05), 2, first_order=first, frozen=frozen)[0] for p in each]
    assert distance(found.grads, expected) < 1e-9


@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("frozen", [None, "0.*"])
@pytest.mark.parametrize("engine", ENGINES)
def test_the_implicit_method_of_each_member(
    engine: Any, frozen: str | None, chunk_size: int | None
) -> None:
    """Its own oracle is held against closed forms elsewhere; here, members against one alone."""
    each, params = problems("conv")
    settings: dict[str, Any] = {
        "optimizer": sgd(0.2), "steps": 5, "method": "implicit", "frozen": frozen,
        "implicit": Implicit(regularization=2.0, iterations=4),
    }  # fmt: skip
    found = member_meta_gradient(
        each[0].loss_fn, params, each[0].tasks, engine=engine, chunk_size=chunk_size, **settings
    )
    alone = [meta_gradient(p.loss_fn, p.params, p.tasks, engine="loop", **settings) for p in each]
    assert distance(found.grads, [one.grads for one in alone]) < 1e-9
    for name, value in found.diagnostics.items():
        expected = torch.stack([one.diagnostics[name] for one in alone])
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("engine", ENGINES)
def test_no_steps_give_the_ordinary_gradient(engine: Any) -> None:
    each, params = problems("conv")
    found = member_meta_gradient(
        each[0].loss_fn, params, each[0].tasks, optimizer=sgd(0.3), steps=0, engine=engine
    )
    assert distance(found.grads, [maml(p, sgd_rule(0.3), 0)[0] for p in each]) < 1e-10
    assert found.support_losses.shape == (MEMBERS, 3, 0)


def of_ones_own(lr: Tensor) -> InnerOptimizer:
    """Gradient descent as a user would write it, with a rate that is learnt."""

    def update(grads: Any, state: Any, params: Any) -> Any:
        return tree_map(lambda g: -lr * g, grads), state

    return InnerOptimizer(lambda params: (), update, lr, of_ones_own, elementwise=True)


@pytest.mark.parametrize("make", [sgd, of_ones_own])
@pytest.mark.parametrize("engine", ENGINES)
def test_learnt_step_sizes_have_a_gradient_for_each_member(engine: Any, make: Any) -> None:
    if engine == "batched" and make is of_ones_own:
        pytest.skip("refused; see below")
    each, params = problems("conv")
    optimizer: InnerOptimizer = make(torch.tensor(0.3, dtype=torch.float64))
    settings: dict[str, Any] = {"optimizer": optimizer, "steps": 2}
    found = member_meta_gradient(each[0].loss_fn, params, each[0].tasks, engine=engine, **settings)
    alone = [meta_gradient(p.loss_fn, p.params, p.tasks, engine="loop", **settings) for p in each]
    assert distance(found.grads, [one.grads for one in alone]) < 1e-10
    for leaf, *rows in zip(
        *(torch.utils._pytree.tree_leaves(r.optimizer_grads) for r in (found, *alone))
    ):
        torch.testing.assert_close(leaf, torch.stack(rows), rtol=1e-9, atol=1e-12)


def test_one_member_is_the_single_meta_gradient() -> None:
    each, params = problems("conv")
    one = {name: value[:1] for name, value in params.items()}
    loss_fn, alone, tasks = each[0]
    for engine in ENGINES:
        settings: dict[str, Any] = {"optimizer": sgd(0.3), "steps": 2, "engine": engine}
        found = member_meta_gradient(loss_fn, one, tasks, **settings)
        expected = meta_gradient(loss_fn, alone, tasks, **settings)
        assert distance(found.grads, [expected.grads]) < 1e-12


def test_members_may_be_permuted() -> None:
    each, params = problems("deep")
    order = [2, 0, 1]
    permuted = {name: value[order] for name, value in params.items()}
    settings: dict[str, Any] = {"optimizer": sgd(0.3), "steps": 2}
    found, other = (
        member_meta_gradient(each[0].loss_fn, p, each[0].tasks, **settings)
        for p in (params, permuted)
    )
    rows = [{n: g[i] for n, g in found.grads.items()} for i in order]
    assert distance(other.grads, rows) < 1e-12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"engine": "fast"}, "engine='fast': one of auto, batched, vmap, loop is needed"),
        ({"method": "exact"}, "method='exact': one of auto, reverse, mixed"),
        ({"steps": -1}, "steps=-1: a whole number of at least 0"),
        ({"chunk_size": 0}, "chunk_size=0: a whole number of at least 1"),
        ({"frozen": "nothing"}, "frozen='nothing': a pattern that matches a parameter"),
        (
            {"engine": "batched", "optimizer": of_ones_own(torch.tensor(0.1))},
            "engine='batched': an inner optimiser that learns needs auto, vmap or loop",
        ),
    ],
)
@pytest.mark.parametrize("engine", ["batched", "vmap", "loop"])
def test_bad_settings(engine: str, change: dict[str, Any], message: str) -> None:
    each, params = problems("mlp")
    settings = {"optimizer": sgd(0.1), "steps": 1, "engine": engine, **change}
    with pytest.raises(SettingError, match=message):
        member_meta_gradient(each[0].loss_fn, params, each[0].tasks, **settings)


def test_members_need_one_leading_axis() -> None:
    each, params = problems("mlp")
    params["0.bias"] = params["0.bias"][:2]
    with pytest.raises(SettingError, match="every leaf needs the same leading axis"):
        member_meta_gradient(each[0].loss_fn, params, each[0].tasks, optimizer=sgd(0.1), steps=1)
