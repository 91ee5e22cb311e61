"""Running statistics of each inner step in MAML++: how they move, and that all scores use them.

Axes: T tasks, K inner steps, C channels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.core.tree import tree_map
from metalearn.errors import SettingError
from metalearn.models import MLP, Conv4, Ensemble
from metalearn.trainers import MAML, MAMLPlusPlus, MetaTrainer
from metalearn.trainers.meta.normalization import Normalization, normalization_in
from tests.support.builders import assert_same
from tests.trainers.meta.test_affine_per_step import TASKS, doubled, drawn, normed

every_engine = pytest.mark.parametrize("engine", ["batched", "vmap", "loop"])
MEAN, VAR = "2.step_mean", "2.step_var"


def learner(
    module: nn.Module | None = None, maml: dict[str, Any] | None = None, **own: Any
) -> MAMLPlusPlus:
    given = {"inner_lr": 0.3, "inner_steps": 2, "eval_steps": 2, **(maml or {})}
    return MAMLPlusPlus(module or normed(), MAML(**given), statistics_per_step=True, **own)


def with_drawn_statistics(one: MAMLPlusPlus) -> MAMLPlusPlus:
    draws = torch.Generator().manual_seed(5)
    for name, buffer in one.buffers.items():
        found = torch.randn(buffer.shape, generator=draws, dtype=torch.double)
        buffer.copy_(found.exp() if name.endswith("var") else found)
    return one


def inner_steps(
    one: MAMLPlusPlus, params: dict[str, Tensor], t: int, *, steps: int, exact: bool = False
) -> Any:
    """θ_0 … θ_K of a task by a plain loop, and the outputs of a call at a state of number k."""
    tasks, k_of = doubled(), one.inner_steps

    def outputs(values: dict[str, Tensor], inputs: Tensor, k: int) -> Tensor:
        x = F.linear(inputs.flatten(1), values["1.weight"], values["1.bias"])
        mean, var = (one.module.get_buffer(name)[min(k, k_of)] for name in (MEAN, VAR))
        x = (x - mean) / (var + 1e-5).sqrt() * values["2.weight"] + values["2.bias"]
        return F.linear(x.tanh(), values["4.weight"], values["4.bias"])

    offsets = {n.removeprefix("learnt.offset."): p for n, p in params.items() if "offset" in n}
    now = {n: p for n, p in params.items() if not n.startswith("learnt.")}
    start, states = dict(now), [dict(now)]
    for k in range(steps):
        at = now if exact else {n: p.detach().requires_grad_() for n, p in now.items()}
        loss = F.cross_entropy(outputs(at, tasks.support[0][t], k), tasks.support[1][t])
        slopes = torch.autograd.grad(loss, list(at.values()), create_graph=exact)
        grads = dict(zip(at, slopes))
        last = min(k, k_of - 1)
        rate = {n: params.get(f"learnt.lr.{n}", [0.3] * k_of)[last] for n in now}
        now = {
            n: start[n] + offsets[n][last] if n in offsets else p - rate[n] * grads[n]
            for n, p in at.items()
        }
        states.append(dict(now))
    return states, outputs


@every_engine
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("eval_steps", [2, 4])
def test_scores_are_those_of_a_plain_loop_that_normalises_by_them(
    engine: Any, affine: bool, eval_steps: int
) -> None:
    maml = {"engine": engine, "eval_steps": eval_steps}
    one = with_drawn_statistics(learner(maml=maml, affine_per_step=affine))
    for name, value in drawn(one).items():
        one.params[name].copy_(value)
    tasks = doubled()
    found, alone = one.score(tasks).losses, one.score(tasks, inductive=True).losses
    torch.testing.assert_close(found, alone)
    for t in range(3):
        states, outputs = inner_steps(one, one.params, t, steps=eval_steps)
        for k, state in enumerate(states):
            wanted = F.cross_entropy(outputs(state, tasks.query[0][t], k), tasks.query[1][t])
            torch.testing.assert_close(found[t, k], wanted, rtol=1e-10, atol=1e-12)
        support = tree_map(lambda x, t=t: x[t], tasks.support)
        module = one.adapt(support)
        got = module(tasks.query[0][t])
        torch.testing.assert_close(got, outputs(states[-1], tasks.query[0][t], eval_steps))
        torch.testing.assert_close(module(tasks.query[0][t][:1]), got[:1])


@every_engine
@pytest.mark.parametrize("affine", [False, True])
def test_they_move_towards_the_moments_of_each_state(engine: Any, affine: bool) -> None:
    one = with_drawn_statistics(learner(maml={"engine": engine}, affine_per_step=affine))
    tasks, params = doubled(), drawn(one)
    moved = one.moved_buffers(params, tasks)
    assert moved.keys() == {MEAN, VAR}
    means, squares = (torch.zeros(3, 6, dtype=torch.double) for _ in range(2))
    for t in range(3):
        states, _ = inner_steps(one, params, t, steps=2)
        for k, state in enumerate(states):
            for inputs in (tasks.support[0][t], tasks.query[0][t]):
                x = F.linear(inputs.flatten(1), state["1.weight"], state["1.bias"])
                means[k] += x.mean(0) / 6
                squares[k] += (x.var(0) + x.mean(0) ** 2) / 6
    for name, found in ((MEAN, means), (VAR, squares - means**2)):
        wanted = 0.9 * one.module.get_buffer(name) + 0.1 * found
        torch.testing.assert_close(moved[name], wanted, rtol=1e-10, atol=1e-12)


@every_engine
@pytest.mark.parametrize("method", ["reverse", "mixed"])
@pytest.mark.parametrize("own", [{}, {"affine_per_step": True}, {"learn_rates": False}])
def test_the_gradient_is_that_of_a_plain_loop_that_normalises_by_them(
    engine: Any, method: Any, own: Any
) -> None:
    maml = {"engine": engine, "method": method}
    one = with_drawn_statistics(learner(maml=maml, multi_step_steps=10, **own))
    params, tasks = drawn(one), doubled()
    found, total = one.gradient(params, tasks, step=5), torch.zeros((), dtype=torch.double)
    leaves = {n: p.detach().clone().requires_grad_() for n, p in params.items()}
    for t in range(3):
        states, outputs = inner_steps(one, leaves, t, steps=2, exact=True)
        for k, weight in ((1, 0.25), (2, 0.75)):
            loss = F.cross_entropy(outputs(states[k], tasks.query[0][t], k), tasks.query[1][t])
            total = total + weight * loss / 3
    torch.testing.assert_close(found.loss, total.detach(), rtol=1e-10, atol=1e-12)
    wanted = dict(zip(leaves, torch.autograd.grad(total, list(leaves.values()))))
    assert found.grads.keys() == wanted.keys()
    rows = one.task_gradients(params, tasks, step=5)
    assert rows.keys() == wanted.keys()
    for name, grad in wanted.items():
        torch.testing.assert_close(found.grads[name], grad, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(rows[name].mean(0), grad, rtol=1e-9, atol=1e-11)


@every_engine
def test_first_order_is_the_gradient_at_the_last_state(engine: Any) -> None:
    maml = {"engine": engine, "first_order": True}
    one = with_drawn_statistics(learner(maml=maml, multi_step_steps=None))
    found, tasks = one.meta_gradient(doubled()), doubled()
    total: dict[str, Tensor] = {n: torch.zeros_like(p) for n, p in one.module.named_parameters()}
    for t in range(3):
        states, outputs = inner_steps(one, one.params, t, steps=2)
        last = {n: p.detach().requires_grad_() for n, p in states[-1].items()}
        loss = F.cross_entropy(outputs(last, tasks.query[0][t], 2), tasks.query[1][t])
        for name, grad in zip(last, torch.autograd.grad(loss, list(last.values()))):
            total[name] += grad / 3
    for name, grad in total.items():
        torch.testing.assert_close(found.grads[name], grad, rtol=1e-9, atol=1e-11)


def test_plans_and_an_outer_step_before_any_adaptation_know_them() -> None:
    one, tasks = with_drawn_statistics(learner()), doubled()
    before = one.meta_gradient(tasks)
    one.prepare(tasks, 3, deterministic=True)
    torch.testing.assert_close(one.meta_gradient(tasks).loss, before.loss)
    _, outputs = inner_steps(one, one.params, 0, steps=0)
    inputs = tasks.query[0][0]
    torch.testing.assert_close(one.outputs(inputs), outputs(one.params, inputs, 0))


def test_frozen_patterns_do_not_hold_statistics() -> None:
    one, tasks = (
        with_drawn_statistics(learner(maml={"frozen": "2.*"}, learn_rates=False)),
        doubled(),
    )
    states = list(one.fit(one.params, tree_map(lambda x: x[0], tasks.support), steps=2))
    for k, state in enumerate(states):
        torch.testing.assert_close(state[MEAN], one.buffers[MEAN][k])
        assert torch.equal(state["2.weight"], one.params["2.weight"])


def test_results_say_so() -> None:
    one = with_drawn_statistics(learner())
    found = normalization_in(one, doubled(), inductive=False)
    assert found == Normalization("running_per_step", False)


def trainer(steps: int, **own: Any) -> MetaTrainer:
    def make(module: nn.Module, maml: MAML | None = None, **more: Any) -> MAMLPlusPlus:
        return MAMLPlusPlus(module, maml, statistics_per_step=True, **more)

    settings: dict[str, Any] = {"meta_batch": 3, "validation_tasks": 2, "progress": False}
    maml = MAML(inner_lr=0.1, inner_steps=2, eval_steps=2)
    net = Conv4((1, 4, 4), 3, filters=3)
    how = {**settings, **own, "schedule": "constant"}
    return MetaTrainer(net, TASKS, learner=make, maml=maml, steps=steps, **how)


def test_training_moves_them_and_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    whole = trainer(4)
    whole.fit()
    trainer(2, folder=tmp_path).fit()
    again = trainer(4, folder=tmp_path)
    again.resume(tmp_path / "checkpoints" / "last.pt")
    again.fit()
    assert_same(again.module.state_dict(), whole.module.state_dict())
    moved = whole.module.get_buffer("blocks.0.1.step_mean")
    assert moved.shape == (3, 3) and (moved != 0).all()
    assert not torch.equal(moved[0], moved[2])
    both = whole.reports(tasks=5)
    torch.testing.assert_close(both["transductive"].losses, both["inductive"].losses)


@pytest.mark.parametrize(
    ("make", "maml", "message"),
    [
        (lambda: MLP((1, 4, 4), 3), {}, "^module='MLP': batch normalisation is needed"),
        (lambda: normed(norm="group"), {}, "^module='Sequential': batch normalisation is"),
        (
            lambda: Ensemble.from_modules([normed(0), normed(1)]),
            {},
            "^module='Ensemble': one network is needed for statistics_per_step",
        ),
        (
            lambda: nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16, momentum=None)),
            {},
            "^module='BatchNorm1d': a momentum is needed",
        ),
        (normed, {"norm": "group"}, r"^maml\.norm='group': null or batch_stats is needed with"),
        (normed, {"norm": "running"}, r"^maml\.norm='running': null or batch_stats is needed"),
    ],
)
def test_what_cannot_work_is_refused(make: Any, maml: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        learner(make(), maml)
