"""Multi-step losses: weighted query losses along the inner loop, against plain loops in float64."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from metalearn.core import (
    InnerOptimizer,
    adam,
    member_meta_gradient,
    meta_gradient,
    plan_meta_gradient,
    sgd,
    stack,
    task_meta_gradients,
    unstack,
)
from metalearn.core.tree import leaves
from metalearn.errors import SettingError
from tests.support import hyper_oracles, oracles
from tests.support.oracles import Problem, assert_trees
from tests.support.sampled import sampled

ENGINES = ["batched", "vmap", "loop"]
METHODS = ["reverse", "mixed", "first_order"]
engines = pytest.mark.parametrize("engine", ENGINES)
methods = pytest.mark.parametrize("method", METHODS)
STEPS = 3
WEIGHTS: dict[str, list[float]] = {
    "all": [0.1, 0.2, 0.3, 0.4],
    "some": [0.0, 0.7, 0.0, 0.5],
    "not the last": [0.0, 1.0, 0.5, 0.0],
    "the first alone": [2.0, 0.0, 0.0, 0.0],
    "one below zero": [0.5, -0.5, 0.0, 1.0],
    "none": [0.0, 0.0, 0.0, 0.0],
}
weights_of = pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
OPTIMIZERS: dict[str, tuple[InnerOptimizer, hyper_oracles.Update]] = {
    "sgd": (sgd(0.3), hyper_oracles.sgd(lambda *_: 0.3)),
    "momentum": (
        sgd(0.2, momentum=0.9, weight_decay=0.05),
        hyper_oracles.sgd(lambda *_: 0.2, momentum=0.9, weight_decay=0.05),
    ),
    "adam": (adam(0.05, eps=1e-3), hyper_oracles.adam(lambda *_: 0.05, eps=1e-3)),
}


def problem(tasks: int = 3) -> Problem:
    return oracles.classification(oracles.mlp(), (2,), tasks=tasks)


@sampled(3, engine=ENGINES, method=METHODS, optimizer=list(OPTIMIZERS), weights=WEIGHTS)
def test_equals_a_plain_loop(
    engine: str, method: str, optimizer: str, weights: list[float]
) -> None:
    case, (pair, update) = problem(), OPTIMIZERS[optimizer]
    found = meta_gradient(
        *case, optimizer=pair, steps=STEPS, method=method, engine=engine, step_weights=weights,
        chunk_size=2,
    )  # fmt: skip
    wanted = hyper_oracles.unrolled(
        case, update, STEPS, weights=weights, first_order=method == "first_order"
    )
    assert_trees(found.grads, wanted.grads, 1e-9)
    torch.testing.assert_close(found.query_losses, wanted.query_losses)
    torch.testing.assert_close(found.loss, wanted.query_losses.mean())
    plain = meta_gradient(*case, optimizer=pair, steps=STEPS)
    torch.testing.assert_close(found.support_losses, plain.support_losses)


@methods
@engines
def test_through_convolutions_and_norms(engine: str, method: str) -> None:
    case = oracles.classification(oracles.conv(), (1, 4, 4), tasks=3)
    weights = WEIGHTS["all"]
    found = meta_gradient(
        *case, optimizer=sgd(0.4), steps=STEPS, method=method, engine=engine, step_weights=weights
    )
    update = hyper_oracles.sgd(lambda *_: 0.4)
    wanted = hyper_oracles.unrolled(
        case, update, STEPS, weights=weights, first_order=method == "first_order"
    )
    assert_trees(found.grads, wanted.grads)


@sampled(
    3,
    form={"list": list, "tuple": tuple, "tensor": torch.tensor},
    steps=[0, 1, 3],
    kind=["mlp", "conv"],
    method=METHODS,
    engine=ENGINES,
)
def test_the_last_alone_is_the_same_bit_for_bit(
    form: Callable[[Any], Any], steps: int, kind: str, method: str, engine: str
) -> None:
    module, shape = (oracles.mlp(), (2,)) if kind == "mlp" else (oracles.conv(), (1, 4, 4))
    case = oracles.classification(module, shape)
    settings: dict[str, Any] = {
        "optimizer": adam(0.1), "steps": steps, "method": method, "engine": engine,
    }  # fmt: skip
    weights = form([0.0] * steps + [1.0])
    found = meta_gradient(*case, **settings, step_weights=weights)
    wanted = meta_gradient(*case, **settings)
    for a, b in zip(leaves(found), leaves(wanted), strict=True):
        assert torch.equal(a, b)


@methods
@engines
@pytest.mark.parametrize(
    "make",
    [
        lambda w: torch.tensor(w),
        lambda w: torch.tensor(w).double(),
        lambda w: [torch.tensor(x).double() for x in w],
        lambda w: [w[0], torch.tensor(w[1]), *w[2:]],
        lambda w: torch.tensor(w).requires_grad_(),
    ],
)
def test_weights_may_be_tensors(make: Callable[[Any], Any], engine: str, method: str) -> None:
    case, weights = problem(), [0.25, 0.0, 0.5, 1.0]
    settings: dict[str, Any] = {
        "optimizer": sgd(0.3), "steps": STEPS, "method": method, "engine": engine,
    }  # fmt: skip
    found = meta_gradient(*case, **settings, step_weights=make(weights))
    wanted = meta_gradient(*case, **settings, step_weights=weights)
    assert_trees(found.grads, wanted.grads, 0.0)


@methods
def test_weights_inside_a_transform(method: str) -> None:
    """Where their values are not known, and so no loss is left out."""
    case = problem()
    grid = torch.tensor([[0.25, 0.0, 0.5, 1.0], [0.0, 0.0, 0.0, 1.0]]).double()

    def grads(weights: Tensor) -> Any:
        return meta_gradient(
            *case, optimizer=sgd(0.3), steps=STEPS, method=method, step_weights=weights
        ).grads

    found = torch.func.vmap(grads)(grid)
    for row, weights in zip(unstack(found), grid):
        wanted = meta_gradient(
            *case, optimizer=sgd(0.3), steps=STEPS, method=method, step_weights=weights
        )
        assert_trees(row, wanted.grads)


@methods
@engines
def test_members(engine: str, method: str) -> None:
    case, weights = problem(), WEIGHTS["some"]
    members = [{n: v.detach() for n, v in oracles.mlp(s).named_parameters()} for s in range(2)]
    found = member_meta_gradient(
        case.loss_fn, stack(members), case.tasks, optimizer=sgd(0.3), steps=STEPS, method=method,
        engine=engine, step_weights=weights,
    )  # fmt: skip
    for m, params in enumerate(members):
        wanted = hyper_oracles.unrolled(
            case._replace(params=params), hyper_oracles.sgd(lambda *_: 0.3), STEPS,
            weights=weights, first_order=method == "first_order",
        )  # fmt: skip
        assert_trees(unstack(found.grads)[m], wanted.grads)
        torch.testing.assert_close(found.query_losses[m], wanted.query_losses)


@weights_of
@methods
@engines
def test_with_hyperparameters_that_are_learnt(
    engine: str, method: str, weights: list[float]
) -> None:
    case = problem()
    lr, momentum = (torch.tensor(v).double().requires_grad_() for v in (0.2, 0.7))
    found = meta_gradient(
        *case, optimizer=sgd(lr, momentum=momentum), steps=STEPS, method=method, engine=engine,
        step_weights=weights,
    )  # fmt: skip
    update = hyper_oracles.sgd(lambda *_: lr, momentum=momentum)
    wanted = hyper_oracles.unrolled(
        case, update, STEPS, [lr, momentum], weights=weights, first_order=method == "first_order"
    )
    assert_trees(found.grads, wanted.grads)
    for name, grad in zip(("lr", "momentum"), wanted.learnt):
        torch.testing.assert_close(found.optimizer_grads[name], grad, rtol=1e-8, atol=1e-12)


@engines
def test_tasks_one_by_one(engine: str) -> None:
    case, weights = problem(), WEIGHTS["all"]
    each = task_meta_gradients(
        *case, optimizer=sgd(0.3), steps=STEPS, engine=engine, step_weights=weights
    )
    whole = meta_gradient(*case, optimizer=sgd(0.3), steps=STEPS, step_weights=weights)
    assert_trees({n: g.mean(0) for n, g in each.items()}, whole.grads)


def test_losses_of_weight_zero_are_not_computed() -> None:
    case, seen = problem(), []

    def loss_fn(params: Any, batch: Any) -> Tensor:
        seen.append(batch[0])
        return case.loss_fn(params, batch)

    for method, each in (("reverse", 1), ("mixed", 1), ("first_order", 1)):
        counts = []
        for weights in (None, [0.0, 0.0, 0.0, 1.0], [0.0, 1.0, 0.0, 1.0], [1.0] * 4):
            seen.clear()
            meta_gradient(
                loss_fn, *case[1:], optimizer=sgd(0.3), steps=STEPS, method=method,
                engine="batched", step_weights=weights,
            )  # fmt: skip
            counts.append(len(seen))
        assert counts == [counts[0], counts[0], counts[0] + each, counts[0] + 3 * each]


def test_a_plan_takes_them() -> None:
    case = problem()
    plan = plan_meta_gradient(
        *case, optimizer=sgd(0.3), steps=STEPS, step_weights=WEIGHTS["all"], memory=10**9
    )
    assert plan.method == "reverse" and plan.peak is not None


# --- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0], "step_weights=[1.0]: 3 weights are needed, one for each of θ_0 … θ_2"),
        (torch.ones(4), "step_weights=[4]: 3 weights are needed"),
        (torch.ones(3, 1), "step_weights[0]=[1]: a finite number is needed"),
        (torch.tensor(1.0), "step_weights=[]: 3 weights are needed"),
        ([0.0, 0.0, float("nan")], "step_weights[2]=nan: a finite number is needed"),
        ([0.0, float("inf"), 1.0], "step_weights[1]=inf: a finite number is needed"),
        ([0.0, "one", 1.0], "step_weights[1]='one': a finite number is needed"),
        ([0.0, True, 1.0], "step_weights[1]=True: a finite number is needed"),
        (torch.tensor([0.0, float("nan"), 1.0]), "step_weights[1]=tensor(nan): a finite number"),
        (torch.ones(3, dtype=torch.int64), "step_weights[0]=torch.int64: a finite number"),
        (1.0, "step_weights=1.0: "),
        ("all", "step_weights='all': "),
    ],
)
@pytest.mark.parametrize("call", [meta_gradient, task_meta_gradients, plan_meta_gradient])
def test_other_weights_are_refused(call: Any, weights: Any, message: str) -> None:
    with pytest.raises(SettingError, match="^" + re.escape(message)):
        call(*problem(), optimizer=sgd(0.1), steps=2, step_weights=weights)
    with pytest.raises(SettingError, match="^" + re.escape(message)):
        member_meta_gradient(
            problem().loss_fn, stack([problem().params]), problem().tasks, optimizer=sgd(0.1),
            steps=2, step_weights=weights,
        )  # fmt: skip


@engines
def test_the_implicit_method_has_no_steps_to_weigh(engine: str) -> None:
    message = r"^step_weights=.*: method=implicit needs None: it knows the end of adaptation alone"
    with pytest.raises(SettingError, match=message):
        meta_gradient(
            *problem(), optimizer=sgd(0.1), steps=1, method="implicit", engine=engine,
            step_weights=[0.0, 1.0],
        )  # fmt: skip
