"""Scales and shifts of norm layers that MAML++ learns for each inner step.

Axes: T tasks, K inner steps, M members.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from metalearn.core.tree import tree_map
from metalearn.errors import SettingError
from metalearn.models import MLP, Conv4, Ensemble
from metalearn.tasks import FewShotTasks
from metalearn.trainers import MAML, MAMLPlusPlus, MetaLearner, MetaTrainer
from metalearn.types import TaskBatch
from tests.support.builders import assert_same, patterns

TASKS = FewShotTasks(patterns(), way=3, shot=2, query=2)
OFFSET = "learnt.offset."
every_engine = pytest.mark.parametrize("engine", ["batched", "vmap", "loop"])


def doubled(split: Any = "train") -> TaskBatch:
    batch: TaskBatch = tree_map(
        lambda x: x.double() if x.is_floating_point() else x, TASKS.sample(split, range(3))
    )
    return batch


def normed(seed: int = 0, norm: str = "batch") -> nn.Sequential:
    """Linear, a norm, a smooth nonlinearity, linear; weights of its own draws."""
    norms = {
        "batch": lambda: nn.BatchNorm1d(6, track_running_stats=False),
        "group": lambda: nn.GroupNorm(2, 6),
        "layer": lambda: nn.LayerNorm(6),
    }
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(16, 6), norms[norm](), nn.Tanh(), nn.Linear(6, 3)
    ).double()
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in net.parameters():
            value.copy_(0.5 * torch.randn(value.shape, generator=draws, dtype=torch.double))
    return net


def drawn(one: MAMLPlusPlus, size: float = 0.3) -> dict[str, Tensor]:
    """The learner's parameters with offsets that are not 0, of every member its own."""
    draws = torch.Generator().manual_seed(7)
    return {
        n: torch.randn(p.shape, generator=draws).to(p) * size if n.startswith(OFFSET) else p
        for n, p in one.params.items()
    }


def learner(module: nn.Module, maml: dict[str, Any] | None = None, **own: Any) -> MAMLPlusPlus:
    given = {"inner_lr": 0.3, "inner_steps": 3, "eval_steps": 3, **(maml or {})}
    own = {"multi_step_steps": 10, "affine_per_step": True, **own}
    return MAMLPlusPlus(module, MAML(**given), **own)


def written_out(
    one: MAMLPlusPlus, params: dict[str, Tensor], weights: list[float], *, second_order: bool
) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Mean over tasks of Σ_k w_k L(θ_k, query), its gradient, and losses ``[T, K]``, by a loop."""
    leaves = {n: p.detach().clone().requires_grad_() for n, p in params.items()}
    start = {n: p for n, p in leaves.items() if not n.startswith("learnt.")}
    norms = [n.removeprefix(OFFSET) for n in leaves if n.startswith(OFFSET)]
    tasks, total, losses = doubled(), torch.zeros((), dtype=torch.double), []

    def loss(values: dict[str, Tensor], batch: Any, t: int) -> Tensor:
        return F.cross_entropy(functional_call(one.module, values, batch[0][t]), batch[1][t])

    for t in range(3):
        now = dict(start)
        for k, weight in enumerate(weights):
            moving = [n for n in now if n not in norms]
            slopes = torch.autograd.grad(
                loss(now, tasks.support, t), [now[n] for n in moving], create_graph=second_order
            )
            square = torch.stack([slope.square().sum() for slope in slopes]).sum()
            factor = (square / (one.maml.inner_clip or 1e9) ** 2).clamp_min(1).rsqrt()
            for n, slope in zip(moving, slopes):
                rate = leaves.get(f"learnt.lr.{n}", [0.3] * 3)[k]
                now[n] = now[n] - rate * factor * slope
            now |= {n: start[n] + leaves[OFFSET + n][k] for n in norms}
            losses.append(loss(now, tasks.query, t))
            total = total + weight * losses[-1] / 3
    grads = torch.autograd.grad(total, list(leaves.values()))
    return total.detach(), dict(zip(leaves, grads)), torch.stack(losses).detach().view(3, -1)


@every_engine
@pytest.mark.parametrize("method", ["reverse", "mixed", "first_order"])
@pytest.mark.parametrize("learn_rates", [True, False])
def test_gradient_and_scores_are_those_of_a_plain_loop(
    engine: Any, method: Any, learn_rates: bool
) -> None:
    one = learner(normed(), {"engine": engine, "method": method}, learn_rates=learn_rates)
    params = drawn(one)
    for step, weights in ((4, [0.2, 0.2, 0.6]), (30, [0.0, 0.0, 1.0])):
        found = one.gradient(params, doubled(), step=step)
        exact = method != "first_order"
        loss, grads, losses = written_out(one, params, weights, second_order=exact)
        torch.testing.assert_close(found.loss, loss, rtol=1e-10, atol=1e-12)
        assert found.grads.keys() == grads.keys()
        for name, grad in grads.items():
            torch.testing.assert_close(found.grads[name], grad, rtol=1e-9, atol=1e-11)
    for name, value in params.items():
        one.params[name].copy_(value)
    torch.testing.assert_close(one.score(doubled()).losses[:, 1:], losses)


@every_engine
@pytest.mark.parametrize("method", ["reverse", "mixed", "first_order"])
def test_inner_gradients_are_clipped_by_what_adapts_alone(engine: Any, method: Any) -> None:
    one = learner(normed(), {"engine": engine, "method": method, "inner_clip": 0.3})
    params, exact = drawn(one), method != "first_order"
    found = one.gradient(params, doubled(), step=4)
    loss, grads, _ = written_out(one, params, [0.2, 0.2, 0.6], second_order=exact)
    torch.testing.assert_close(found.loss, loss, rtol=1e-10, atol=1e-12)
    for name, grad in grads.items():
        torch.testing.assert_close(found.grads[name], grad, rtol=1e-9, atol=1e-11)
    free = learner(normed(), {"engine": engine, "method": method}).gradient(params, doubled())
    assert not torch.allclose(free.loss, loss)


def test_inner_steps_take_parts_of_the_support_set() -> None:
    losses = {
        (engine, size): learner(normed(), {"engine": engine, "support_batch": size})
        .meta_gradient(doubled())
        .loss
        for engine in ("batched", "vmap", "loop")
        for size in (2, 6)
    }
    for (engine, size), loss in losses.items():
        torch.testing.assert_close(loss, losses["loop", size])
        assert not torch.allclose(loss, losses[engine, 8 - size])


@pytest.mark.parametrize("norm", ["batch", "group", "layer"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_gradient_is_the_slope(norm: str, optimizer: Any) -> None:
    one = learner(normed(norm=norm), {"inner_optimizer": optimizer, "inner_lr": 0.05})
    params, tasks = drawn(one), doubled()
    grads = one.gradient(params, tasks, step=3).grads
    draws = torch.Generator().manual_seed(0)
    way = {n: torch.randn(p.shape, generator=draws).to(p) for n, p in params.items()}
    ends = []
    for size in (1e-6, -1e-6):
        moved = {n: p + size * way[n] for n, p in params.items()}
        ends.append(float(one.gradient(moved, tasks, step=3).loss))
    slope = (ends[0] - ends[1]) / 2e-6
    got = float(torch.stack([(grads[n] * way[n]).sum() for n in grads]).sum())
    assert got == pytest.approx(slope, rel=1e-5)


@every_engine
def test_members_have_offsets_of_their_own(engine: Any) -> None:
    together = learner(Ensemble.from_modules([normed(0), normed(1)]), {"engine": engine})
    params, tasks = drawn(together), doubled()
    found = together.gradient(params, tasks, step=2)
    for index in range(2):
        alone = learner(normed(index), {"engine": "loop"})
        own = {n: params[n][index] for n in alone.params}
        wanted = alone.gradient(own, tasks, step=2)
        for name, grad in wanted.grads.items():
            torch.testing.assert_close(found.grads[name][index], grad, rtol=1e-9, atol=1e-11)


@every_engine
def test_gradients_of_tasks_have_the_mean(engine: Any) -> None:
    one, tasks = learner(normed(), {"engine": engine}), doubled()
    params = drawn(one)
    wanted, found = one.gradient(params, tasks).grads, one.task_gradients(params, tasks)
    for name, grads in found.items():
        torch.testing.assert_close(grads.mean(0), wanted[name], rtol=1e-9, atol=1e-11)


def test_with_offsets_of_zero_it_is_maml_whose_norms_stay() -> None:
    off: dict[str, Any] = {"learn_rates": False, "multi_step_steps": None}
    one, tasks = learner(normed(), **off), doubled()
    maml = MAML(inner_lr=0.3, inner_steps=3, eval_steps=3, frozen="2.*")
    wanted, found = MetaLearner(normed(), maml).meta_gradient(tasks), one.meta_gradient(tasks)
    torch.testing.assert_close(found.loss, wanted.loss)
    for name, grad in wanted.grads.items():
        torch.testing.assert_close(found.grads[name], grad, rtol=1e-9, atol=1e-11)


def test_states_have_the_values_of_their_step_and_later_ones_the_last() -> None:
    one, tasks = learner(normed()), doubled()
    params = drawn(one)
    support = tree_map(lambda x: x[0], tasks.support)
    start, offset = params["2.weight"], params[f"{OFFSET}2.weight"]
    states = [state["2.weight"] for state in one.fit(params, support, steps=5)]
    wanted = [start, *(start + d for d in offset), start + offset[-1], start + offset[-1]]
    for found, value in zip(states, wanted, strict=True):
        torch.testing.assert_close(found, value, rtol=0, atol=1e-15)


def test_training_moves_them_and_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    def trainer(steps: int, **own: Any) -> MetaTrainer:
        def make(module: nn.Module, maml: MAML | None = None, **more: Any) -> MAMLPlusPlus:
            return MAMLPlusPlus(module, maml, affine_per_step=True, **more)

        settings: dict[str, Any] = {"meta_batch": 3, "validation_tasks": 2, "progress": False}
        maml = MAML(inner_lr=0.1, inner_steps=2, eval_steps=2)
        net = Conv4((1, 4, 4), 3, filters=3)
        how = {**settings, **own, "schedule": "constant"}
        return MetaTrainer(net, TASKS, learner=make, maml=maml, steps=steps, **how)

    whole = trainer(4)
    whole.fit()
    trainer(2, folder=tmp_path).fit()
    again = trainer(4, folder=tmp_path)
    again.resume(tmp_path / "checkpoints" / "last.pt")
    again.fit()
    assert_same(again.learner.params, whole.learner.params)
    moved = {n: p for n, p in whole.learner.params.items() if n.startswith(OFFSET)}
    assert len(moved) == 8 and all((p != 0).all() for p in moved.values())
    support = TASKS.sample("test", [0]).support
    module = whole.learner.adapt((support[0][0], support[1][0]), transductive=True)
    weight = dict(module.named_parameters())["blocks.0.1.weight"]
    start, last = whole.module.state_dict(), moved[f"{OFFSET}blocks.0.1.weight"][-1]
    torch.testing.assert_close(weight.detach(), start["blocks.0.1.weight"] + last)


@pytest.mark.parametrize(
    ("module", "maml"),
    [
        (MLP((1, 4, 4), 3), {}),
        (nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16, False, track_running_stats=False)), {}),
        (nn.Sequential(nn.Flatten(), nn.LayerNorm(16)), {}),
        (normed(), {"frozen": "2.*"}),
    ],
)
def test_networks_without_such_layers_are_refused(module: nn.Module, maml: Any) -> None:
    with pytest.raises(SettingError, match=r"^module=.*(norm layers|a parameter to learn)"):
        learner(module, maml)
