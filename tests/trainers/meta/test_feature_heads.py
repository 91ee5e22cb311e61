"""Heads that are made of the features of a support set: against the papers, in float64.

Axes: N samples, C classes, D features.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.core.tree import tree_map
from metalearn.errors import SettingError
from metalearn.models import MLP
from metalearn.tasks import FewShotTasks
from metalearn.trainers import R2D2, MetaOptNet, MetaTrainer, ProtoNet
from metalearn.trainers.meta.linear_heads import logistic_weights, ridge_weights
from metalearn.trainers.meta.protonet import unit_vectors
from metalearn.types import TaskBatch
from tests.support.builders import patterns

SIZES = pytest.mark.parametrize("shape", [(4, 7), (9, 5), (6, 6)])


def network(seed: int = 0) -> MLP:
    module = MLP((1, 4, 4), 5, hidden=(6,), seed=seed).double()
    with torch.no_grad():
        list(module.parameters())[-1].copy_(torch.arange(5) / 10 - 0.15)  # no feature is zero
    return module


def tasks_of(shot: int, count: int = 3) -> TaskBatch:
    batch = FewShotTasks(patterns(), way=3, shot=shot, query=2).sample("train", range(count))
    return TaskBatch(*tree_map(lambda x: x.double() if x.is_floating_point() else x, tuple(batch)))


def problem(shape: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=draws, dtype=torch.float64, requires_grad=True)
    y = F.one_hot(torch.arange(shape[0]) % 3, 3).double()
    return x, y, torch.tensor(0.3, dtype=torch.float64, requires_grad=True)


def ridge_by_hand(x: Tensor, y: Tensor, ridge: Any) -> Tensor:
    """The paper's normal equations, by an inverse."""
    return torch.inverse(x.T @ x + ridge * torch.eye(x.shape[1]).to(x)) @ x.T @ y


def logistic_by_hand(x: Tensor, y: Tensor, ridge: Any, steps: int = 60) -> Tensor:
    """Newton's method on all weights, unrolled until it stands still."""
    weights = torch.zeros(x.shape[1], y.shape[1], dtype=x.dtype)

    def loss(flat: Tensor) -> Tensor:
        w = flat.reshape(weights.shape)
        entropy = -(y * (x @ w).log_softmax(-1)).sum()
        return entropy + ridge / 2 * w.square().sum()

    flat = weights.flatten()
    for _ in range(steps):
        slope, curvature = torch.func.grad(loss)(flat), torch.func.hessian(loss)(flat)
        flat = flat - torch.linalg.solve(curvature, slope)
    return flat.reshape(weights.shape)


HEADS = pytest.mark.parametrize(
    ("solve", "by_hand"),
    [(ridge_weights, ridge_by_hand), (logistic_weights, partial(logistic_by_hand, steps=12))],
)


@SIZES
@HEADS
def test_weights_and_derivatives_are_those_of_the_optimum(
    solve: Any, by_hand: Any, shape: tuple[int, int]
) -> None:
    x, y, ridge = problem(shape)
    found, wanted = solve(x, y, ridge), by_hand(x, y, ridge)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)
    along = torch.randn(found.shape, generator=torch.Generator().manual_seed(1)).double()
    for got, want in zip(
        torch.autograd.grad((found * along).sum(), (x, ridge)),
        torch.autograd.grad((wanted * along).sum(), (x, ridge)),
    ):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-10)
    assert torch.autograd.gradcheck(lambda *inputs: solve(inputs[0], y, inputs[1]), (x, ridge))


@SIZES
@pytest.mark.parametrize("solve", [ridge_weights, logistic_weights])
def test_many_tasks_padding_and_order(solve: Any, shape: tuple[int, int]) -> None:
    x, y, ridge = problem(shape)
    every = torch.stack([x, 3 * x]).detach()
    mapped = torch.vmap(solve, (0, None, None))(every, y, ridge)
    for row, features in zip(mapped, every):
        torch.testing.assert_close(row, solve(features, y, ridge), rtol=1e-10, atol=1e-12)
    padded = solve(torch.cat([x, 5 + x[:2]]), torch.cat([y, 0 * y[:2]]), ridge)
    torch.testing.assert_close(padded, solve(x, y, ridge), rtol=1e-10, atol=1e-12)
    turned = solve(x.flip(0), y.flip(0), ridge)
    torch.testing.assert_close(turned, solve(x, y, ridge), rtol=1e-10, atol=1e-12)
    renamed = solve(x, y[:, [2, 0, 1]], ridge)
    torch.testing.assert_close(renamed, solve(x, y, ridge)[:, [2, 0, 1]], rtol=1e-10, atol=1e-12)


@SIZES
def test_a_logistic_head_is_at_its_optimum_far_from_its_start(shape: tuple[int, int]) -> None:
    x, y, _ = problem(shape)
    x, ridge = 100 * x.detach(), torch.tensor(1e-3).double()
    weights = logistic_weights(x, y, ridge)
    slope = x.T @ ((x @ weights).softmax(-1) - y) + ridge * weights
    assert slope.abs().max() < 1e-10


def test_a_ridge_of_rounding_size_is_solved_in_float32() -> None:
    x = torch.ones(6, 40) * 1e3
    found = ridge_weights(x.requires_grad_(), torch.eye(3).repeat(2, 1), torch.tensor(1e-6))
    (grad,) = torch.autograd.grad(found.sum(), x)
    assert found.isfinite().all() and grad.isfinite().all()


def cosine_by_hand(module: Any, task: Any, scale: Tensor) -> Tensor:
    (x, y), (queries, _) = task
    means = torch.stack([module(x)[y == c].mean(0) for c in range(3)])
    return scale * F.cosine_similarity(module(queries)[:, None], means[None], dim=-1)


def linear_by_hand(solve: Any, module: Any, task: Any, scale: Tensor, ridge: Any) -> Tensor:
    (x, y), (queries, _) = task
    logits: Tensor = scale * module(queries) @ solve(module(x), F.one_hot(y, 3).double(), ridge)
    return logits


CASES: dict[str, tuple[Any, Any, dict[str, float]]] = {
    "cosine": (
        lambda m: ProtoNet(m, distance="cosine"),
        lambda m, task, v: cosine_by_hand(m, task, v["scale"]),
        {"scale": 10.0},
    ),
    "r2d2": (
        lambda m: R2D2(m, ridge=0.5, scale=2.0),
        lambda m, task, v: linear_by_hand(ridge_by_hand, m, task, v["scale"], v["log_ridge"].exp()),
        {"scale": 2.0, "log_ridge": -0.6931471805599453},
    ),
    "ridge": (
        lambda m: MetaOptNet(m, ridge=0.5, scale=2.0),
        lambda m, task, v: linear_by_hand(ridge_by_hand, m, task, v["scale"], 0.5),
        {"scale": 2.0},
    ),
    "logistic": (
        lambda m: MetaOptNet(m, head="logistic", ridge=0.5, scale=2.0),
        lambda m, task, v: linear_by_hand(
            partial(logistic_by_hand, steps=10), m, task, v["scale"], 0.5
        ),
        {"scale": 2.0},
    ),
}


@pytest.mark.parametrize("shot", [1, 3])
@pytest.mark.parametrize("case", list(CASES))
def test_the_gradient_is_that_of_a_loop(case: str, shot: int) -> None:
    make, by_hand, starts = CASES[case]
    module, tasks = network(), tasks_of(shot)
    found = make(module).meta_gradient(tasks)
    values = {n: torch.tensor(v, dtype=torch.float64).requires_grad_() for n, v in starts.items()}
    rows = [tree_map(lambda x, t=t: x[t], tuple(tasks)) for t in range(3)]
    losses = [F.cross_entropy(by_hand(module, task, values), task[1][1]) for task in rows]
    named = {**dict(module.named_parameters()), **{f"learnt.{n}": v for n, v in values.items()}}
    grads = torch.autograd.grad(torch.stack(losses).mean(), list(named.values()))
    assert found.grads.keys() == named.keys()
    for name, grad in zip(named, grads):
        torch.testing.assert_close(found.grads[name], grad, rtol=1e-8, atol=1e-11)


def test_a_feature_of_zero_has_no_direction() -> None:
    rows = torch.stack([torch.zeros(3), torch.tensor([3.0, 0.0, 4.0])]).requires_grad_()
    found = unit_vectors(rows)
    torch.testing.assert_close(found, torch.tensor([[0.0, 0.0, 0.0], [0.6, 0.0, 0.8]]))
    (grad,) = torch.autograd.grad(found[:, 0].sum(), rows)
    torch.testing.assert_close(grad[0], torch.zeros(3))
    torch.testing.assert_close(grad[1], torch.tensor([0.128, 0.0, -0.096]))


@pytest.mark.parametrize("case", list(CASES))
def test_they_train_at_higher_way_than_they_are_tested(case: str) -> None:
    tasks = FewShotTasks(patterns(40), way={"train": 5, "test": 3}, shot=1, query=3)
    fast: Any = lambda ps: torch.optim.Adam(ps, lr=1e-2)  # noqa: E731
    settings: Any = {"steps": 40, "meta_batch": 6, "validation_tasks": 4, "eval_every": 40}
    trainer = MetaTrainer(
        network().float(), tasks, learner=lambda m, kind: CASES[case][0](m),
        optimizer=fast, progress=False, **settings,
    )  # fmt: skip
    before = trainer.test(60).losses[0, 0]
    trainer.fit()
    assert trainer.test(60).losses[0, 0] < 0.9 * before


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(ProtoNet, distance="far"), "^distance='far': one of euclidean, cosine is needed"),
        (partial(MetaOptNet, head="svm"), "^head='svm': one of ridge, logistic is needed"),
        (partial(R2D2, ridge=0.0), "^ridge=0.0: "),
        (partial(R2D2, scale=float("inf")), "^scale=inf: "),
        (partial(MetaOptNet, ridge=-1.0), "^ridge=-1.0: "),
        (partial(R2D2, kind="regression"), "^kind='regression': r2d2 needs tasks of classific"),
    ],
)
def test_bad_settings(make: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        make(network())
