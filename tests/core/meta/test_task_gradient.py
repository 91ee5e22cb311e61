"""Gradients of losses of whole tasks against a loop of ordinary autograd, in float64."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from metalearn.core import (
    Plan,
    functionalize,
    member_task_gradient,
    meta_gradient,
    plan_task_gradient,
    sgd,
    task_gradient,
)
from metalearn.core.ensemble.stacking import stack, unstack
from metalearn.core.vectorization import VectorizationError, no_transform_active
from metalearn.errors import SettingError
from metalearn.types import TaskBatch, TaskLoss
from tests.support import oracles
from tests.support.oracles import Tree, assert_trees, task_list

engines = pytest.mark.parametrize("engine", ["auto", "batched", "vmap", "loop"])

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": lambda channels: nn.BatchNorm2d(channels, track_running_stats=False),
    "layer": lambda channels: nn.LayerNorm([channels, 2, 2]),
    "instance": lambda channels: nn.InstanceNorm2d(channels, affine=True),
    "group": lambda channels: nn.GroupNorm(1, channels),
}
norms = pytest.mark.parametrize("norm", NORMS)


class Case(NamedTuple):
    """A loss of a task, parameters and tasks."""

    task_loss: TaskLoss
    params: Tree
    tasks: TaskBatch


def features(norm: str = "batch", seed: int = 0) -> nn.Module:
    """A convolution, a norm, a smooth activation: four-dimensional features of 1×4×4 pictures."""
    layers = (nn.Conv2d(1, 2, 3, stride=2, padding=1), NORMS[norm](2), nn.Softplus(), nn.Flatten())
    return oracles.draw(nn.Sequential(*layers, nn.Linear(8, 4)), seed)


def distances_to_means(outputs: Any, support: Any, query: Any, classes: int = 2) -> Tensor:
    """−‖f(x) − c_k‖² with c_k the mean feature of class k in the support set: logits [N, C]."""
    members = nn.functional.one_hot(support[1], classes).to(torch.float64)
    means = (members.T @ outputs(support[0])) / members.sum(0)[:, None]
    return -(outputs(query[0])[:, None] - means).square().sum(-1)


def prototypes(norm: str = "batch", *, tasks: int = 3) -> Case:
    """A prototypical network: no inner loop."""
    shared = oracles.classification(features(norm), (1, 4, 4), tasks=tasks)
    apply, params, buffers = functionalize(features(norm))

    def task_loss(params: Tree, support: Any, query: Any) -> Tensor:
        logits = distances_to_means(lambda x: apply(params, buffers, x), support, query)
        return nn.functional.cross_entropy(logits, query[1])

    return Case(task_loss, params, shared.tasks)


def own_loop(norm: str = "batch") -> Case:
    """Two inner steps of its own, by torch.func."""
    case = oracles.classification(oracles.conv(NORMS[norm]), (1, 4, 4), tasks=3)

    def task_loss(params: Tree, support: Any, query: Any) -> Tensor:
        for _ in range(2):
            grads = torch.func.grad(case.loss_fn)(params, support)
            params = {name: value - 0.4 * grads[name] for name, value in params.items()}
        return case.loss_fn(params, query)

    return Case(task_loss, case.params, case.tasks)


def by_loop(case: Case) -> tuple[Tree, Tensor]:
    """Mean gradient, and losses ``[T]``."""
    start = {name: value.detach().clone().requires_grad_() for name, value in case.params.items()}
    losses = torch.stack([case.task_loss(start, *pair) for pair in task_list(case.tasks)])
    grads = torch.autograd.grad(losses.mean(), list(start.values()), materialize_grads=True)
    return dict(zip(start, grads)), losses.detach()


@norms
@engines
@pytest.mark.parametrize("make", [prototypes, own_loop])
def test_equals_a_loop_of_autograd(make: Callable[[str], Case], engine: str, norm: str) -> None:
    case = make(norm)
    result = task_gradient(*case, engine=engine)
    grads, losses = by_loop(case)
    assert_trees(result.grads, grads)
    torch.testing.assert_close(result.query_losses, losses, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(result.loss, losses.mean(), rtol=1e-10, atol=1e-12)
    assert result.support_losses.shape == (3, 0)
    assert result.optimizer_grads == () and result.diagnostics == {}
    assert not any(value.requires_grad for value in (result.loss, *result.grads.values()))


@engines
def test_an_inner_loop_of_ones_own_is_that_of_meta_gradient(engine: str) -> None:
    own, case = own_loop(), oracles.classification(oracles.conv(), (1, 4, 4), tasks=3)
    found = task_gradient(*own, engine=engine)
    expected = meta_gradient(*case, optimizer=sgd(0.4), steps=2, engine=engine)
    assert_trees(found.grads, expected.grads)
    torch.testing.assert_close(found.query_losses, expected.query_losses)


@engines
@pytest.mark.parametrize("chunk_size", [1, 2, 3, 5, 8])
def test_chunked_equals_whole(engine: str, chunk_size: int) -> None:
    case = prototypes(tasks=5)
    whole = task_gradient(*case, engine=engine)
    parts = task_gradient(*case, engine=engine, chunk_size=chunk_size)
    assert_trees(parts.grads, whole.grads, 1e-12)
    torch.testing.assert_close(parts.query_losses, whole.query_losses, rtol=1e-12, atol=1e-12)


@engines
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_named_tensors_come_back_for_each_task(engine: str, chunk_size: int | None) -> None:
    case = prototypes()

    def with_outputs(params: Tree, support: Any, query: Any) -> tuple[Tensor, dict[str, Tensor]]:
        loss = case.task_loss(params, support, query)
        return loss, {"twice": 2 * loss, "targets": query[1], "size": params["4.weight"].norm()}

    found = task_gradient(
        with_outputs, *case[1:], engine=engine, chunk_size=chunk_size, has_aux=True
    )
    grads, losses = by_loop(case)
    assert_trees(found.grads, grads)
    assert set(found.diagnostics) == {"twice", "targets", "size"}
    torch.testing.assert_close(found.diagnostics["twice"], 2 * losses)
    assert torch.equal(found.diagnostics["targets"], case.tasks.query[1])
    size = case.params["4.weight"].norm().detach()
    torch.testing.assert_close(found.diagnostics["size"], size.expand(3))
    assert not any(value.requires_grad for value in found.diagnostics.values())


@engines
def test_unused_parameters_have_gradients_of_zero(engine: str) -> None:
    case, spare = prototypes(), torch.ones(3, dtype=torch.float64)
    found = task_gradient(
        case.task_loss, {"spare": spare, **case.params}, case.tasks, engine=engine
    )
    assert_trees(found.grads, {"spare": torch.zeros_like(spare), **by_loop(case)[0]})


@engines
@pytest.mark.parametrize("chunk_size", [None, 1, 2])
@pytest.mark.parametrize("make", [prototypes, own_loop])
def test_members_are_loops_of_their_own(
    make: Callable[[], Case], engine: str, chunk_size: int | None
) -> None:
    case = make()
    rows = [case.params]
    for seed in (1, 2):
        source = oracles.generator(seed)
        noise = {n: torch.randn(p.shape, generator=source).double() for n, p in case.params.items()}
        rows.append({n: p.detach() + 0.3 * noise[n] for n, p in case.params.items()})

    def named(params: Tree, support: Any, query: Any) -> tuple[Tensor, dict[str, Tensor]]:
        loss = case.task_loss(params, support, query)
        return loss, {"pair": torch.stack([loss, 2 * loss])}

    found = member_task_gradient(
        named, stack(rows), case.tasks, engine=engine, chunk_size=chunk_size, has_aux=True
    )
    assert found.loss.shape == (3,) and found.query_losses.shape == (3, 3)
    assert found.support_losses.shape == (3, 3, 0) and found.optimizer_grads == ()
    for index, (row, grads) in enumerate(zip(rows, unstack(found.grads))):
        expected, losses = by_loop(case._replace(params=row))
        assert_trees(grads, expected)
        torch.testing.assert_close(found.query_losses[index], losses, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(
            found.diagnostics["pair"][index], torch.stack([losses, 2 * losses], 1)
        )


def test_inside_an_outer_vmap() -> None:
    case = prototypes()
    scales = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)

    def grads(scale: Tensor) -> Any:
        params = {name: scale * value for name, value in case.params.items()}
        return task_gradient(case.task_loss, params, case.tasks).grads

    batched = torch.func.vmap(grads)(scales)
    for index, scale in enumerate(scales):
        params = {name: scale * value.detach() for name, value in case.params.items()}
        row = {name: value[index] for name, value in batched.items()}
        assert_trees(row, by_loop(case._replace(params=params))[0])


def test_under_inference_mode() -> None:
    case = prototypes()
    with torch.inference_mode():
        found = task_gradient(*case)
    assert_trees(found.grads, by_loop(case)[0])


def test_what_vmap_cannot_take_is_sent_to_the_loop() -> None:
    case = prototypes()

    def reading(params: Tree, support: Any, query: Any) -> Tensor:
        loss = case.task_loss(params, support, query)
        return loss * (2.0 if loss.item() > 0 else 1.0)

    found = task_gradient(reading, *case[1:], engine="loop")
    assert_trees(found.grads, {n: 2 * g for n, g in by_loop(case)[0].items()})
    for engine in ("auto", "batched", "vmap"):
        with pytest.raises(VectorizationError, match="reads a value of a tensor.*engine='loop'"):
            task_gradient(reading, *case[1:], engine=engine)
        with pytest.raises(VectorizationError, match="reads a value of a tensor.*engine='loop'"):
            member_task_gradient(reading, stack([case.params]), case.tasks, engine=engine)


# --- plans -----------------------------------------------------------------------------------


def test_a_plan_finds_the_engine_by_trial() -> None:
    case = prototypes()
    assert plan_task_gradient(*case) == Plan("batched", "auto", None, (), None)
    assert str(plan_task_gradient(*case)) == "task gradient: engine batched, all tasks at once"

    def reading(params: Tree, support: Any, query: Any) -> Tensor:
        loss = case.task_loss(params, support, query)
        return loss * (2.0 if loss.item() > 0 else 1.0)

    found = plan_task_gradient(reading, *case[1:])
    assert found.engine == "loop" and len(found.notes) == 2
    assert all("it reads a value of a tensor" in note for note in found.notes)
    assert plan_task_gradient(*case, engine="vmap").engine == "vmap"

    def differing(params: Tree, support: Any, query: Any) -> Tensor:
        loss = case.task_loss(params, support, query)
        return loss if no_transform_active() else 2 * loss

    found = plan_task_gradient(differing, *case[1:])
    assert found.engine == "loop" and "batched differs from a plain loop" in found.notes[0]


def test_a_plan_fits_the_memory() -> None:
    case = prototypes(tasks=6)
    whole = plan_task_gradient(*case, memory=10**9)
    assert whole.chunk_size is None and whole.peak is not None and whole.notes == ()
    tight = plan_task_gradient(*case, memory=int(whole.peak * 0.7))
    assert tight.chunk_size in (1, 2, 3) and tight.peak is not None
    assert tight.peak <= 0.7 * whole.peak
    assert re.fullmatch(r"a gradient with all tasks would need .* of .*", tight.notes[0])
    assert_trees(
        task_gradient(*case, engine=tight.engine, chunk_size=tight.chunk_size).grads,
        by_loop(case)[0],
    )
    with pytest.raises(SettingError, match=r"^memory='\d+ bytes': at least .* with chunk_size=1$"):
        plan_task_gradient(*case, memory=100)


# --- what is refused -------------------------------------------------------------------------

ONE, TWO, EMPTY = torch.ones(1, 3), torch.ones(2, 3), torch.ones(2, 0)
SCALAR = "a scalar is needed, a tensor without axes"
PAIR = "a pair of a loss and a dict of named tensors is needed with has_aux=True"


def dot(params: Tree, support: Tensor, query: Tensor) -> Tensor:
    return (params["w"] * (support + query)).sum()


@pytest.mark.parametrize("call", [task_gradient, member_task_gradient])
@pytest.mark.parametrize("engine", ["batched", "vmap", "loop"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": TaskBatch(ONE, TWO)}, r"^tasks=\[1, 2\]: every leaf of support and query"),
        ({"tasks": TaskBatch(EMPTY, TWO)}, r"^support=.*: it needs samples"),
        ({"tasks": TaskBatch(TWO, EMPTY)}, r"^query=.*: it needs samples"),
        ({"params": {"w": torch.ones(2, 3).long()}}, r"^params\[w\]=torch\.int64: a floating-poi"),
        ({"chunk_size": 0}, r"^chunk_size=0: a whole number of at least 1"),
        ({"engine": "fast"}, r"^engine='fast': one of auto, batched, vmap, loop is needed"),
        ({"task_loss": lambda p, s: s.sum()}, r"^task_loss=.*: a function of 3 arguments"),
        ({"task_loss": None}, r"^task_loss=None: a function of 3 arguments is needed"),
        ({"task_loss": lambda p, s, q: p["w"]}, rf"^task_loss=.*: {SCALAR}"),
        ({"task_loss": lambda p, s, q: 1.0}, rf"^task_loss='float': {SCALAR}"),
        ({"task_loss": lambda p, s, q: q.sum()}, r"^task_loss='no parameter reached': a loss is"),
        ({"has_aux": True}, rf"^task_loss='Tensor': {PAIR}"),
        (
            {"has_aux": True, "task_loss": lambda *x: (dot(*x), dot(*x))},
            rf"^task_loss='tuple': {PAIR}",
        ),
        (
            {"has_aux": True, "task_loss": lambda *x: (dot(*x), {"hits": 3})},
            r"^task_loss\[hits\]='int': a torch\.Tensor is needed",
        ),
        (
            {"has_aux": True, "task_loss": lambda *x: (x[0]["w"], {})},
            rf"^task_loss=.*: {SCALAR}",
        ),
    ],
)
def test_bad_input_is_refused(
    changes: dict[str, Any], message: str, engine: str, call: Callable[..., Any]
) -> None:
    settings = {
        "task_loss": dot, "params": {"w": torch.ones(2, 3)}, "tasks": TaskBatch(ONE, ONE),
        "engine": engine, **changes,
    }  # fmt: skip
    if call is task_gradient:
        settings["params"] = {"w": settings["params"]["w"][0]}
    with pytest.raises(SettingError, match=message):
        call(**settings)
