"""iMAML: against dense Hessians, finite differences of the minimum, and its limits.

Axes: T tasks, K inner steps.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, hessian
from torch.nn.utils import parameters_to_vector

from metalearn.core.tree import tree_map
from metalearn.errors import SettingError
from metalearn.models import MLP, Ensemble
from metalearn.tasks import SinusoidTasks
from metalearn.trainers import MAML, ImplicitMAML, MetaLearner, MetaTrainer
from metalearn.types import TaskBatch
from tests.support.builders import assert_same

WAVES = SinusoidTasks(shot=4, query=4)
every_engine = pytest.mark.parametrize("engine", ["batched", "vmap", "loop"])
TASKS = 3


def doubled() -> TaskBatch:
    batch: TaskBatch = tree_map(lambda x: x.double(), WAVES.sample("train", range(TASKS)))
    return batch


def network(seed: int = 0) -> MLP:
    return MLP((1,), 1, hidden=(4,), seed=seed)


def learner(steps: int = 40, strength: float = 40.0, **maml: Any) -> ImplicitMAML:
    settings: dict[str, Any] = {"inner_lr": 0.01, "inner_steps": steps, "eval_steps": steps}
    settings |= {"regularization": strength, "cg_iterations": 20}
    return ImplicitMAML(network().double(), MAML(**settings | maml), kind="regression")


class WrittenOut:
    """One task by vectors of all parameters and dense matrices."""

    def __init__(self, one: MetaLearner, t: int) -> None:
        self.module, self.tasks, self.t = one.module, doubled(), t
        self.start = parameters_to_vector(p for _, p in one.module.named_parameters()).detach()

    def loss(self, vector: Tensor, part: str) -> Tensor:
        x, y = getattr(self.tasks, part)
        params, place = {}, 0
        for name, p in self.module.named_parameters():
            params[name] = vector[place : place + p.numel()].view_as(p)
            place += p.numel()
        return (functional_call(self.module, params, x[self.t]) - y[self.t]).square().mean()

    def end(self, start: Tensor, steps: int, lr: float, strength: float) -> Tensor:
        now = start
        for _ in range(steps):
            slope = torch.func.grad(self.loss)(now, "support")
            now = now - lr * (slope + strength * (now - start))
        return now

    def gradient(self, steps: int, lr: float, strength: float) -> Tensor:
        end = self.end(self.start, steps, lr, strength)
        slope = torch.func.grad(self.loss)(end, "query")
        curved = torch.eye(len(end)) + hessian(self.loss)(end, "support") / strength
        return torch.linalg.solve(curved, slope)


def flat(grads: Any) -> Tensor:
    return torch.cat([g.reshape(-1) for g in grads.values()])


@every_engine
@pytest.mark.parametrize("steps", [3, 40])
def test_the_gradient_is_that_of_dense_matrices(engine: Any, steps: int) -> None:
    one = learner(steps, engine=engine)
    wanted = [WrittenOut(one, t).gradient(steps, 0.01, 40.0) for t in range(TASKS)]
    found = one.meta_gradient(doubled())
    torch.testing.assert_close(flat(found.grads), torch.stack(wanted).mean(0), rtol=1e-7, atol=1e-9)
    each = one.task_gradients(one.params, doubled())
    for t in range(TASKS):
        row = flat({name: grads[t] for name, grads in each.items()})
        torch.testing.assert_close(row, wanted[t], rtol=1e-7, atol=1e-9)


def test_at_the_minimum_the_gradient_is_the_slope_of_its_query_loss() -> None:
    one, size = learner(200), 1e-5
    way = torch.randn(len(flat(one.params)), generator=torch.Generator().manual_seed(0)).double()

    def loss(amount: float) -> Tensor:
        total = torch.zeros(())
        for t in range(TASKS):
            task = WrittenOut(one, t)
            total = total + task.loss(task.end(task.start + amount * way, 200, 0.01, 40.0), "query")
        return total / TASKS

    slope = (loss(size) - loss(-size)) / (2 * size)
    got = flat(one.meta_gradient(doubled()).grads) @ way
    assert float(got) == pytest.approx(float(slope), rel=1e-6)


def test_a_strong_pull_leaves_the_gradient_at_the_start() -> None:
    strong = learner(3, 1e8, inner_lr=1e-8).meta_gradient(doubled())
    none = learner(0, 1.0, method="auto")
    plain = MetaLearner(none.module, MAML(inner_steps=0), kind="regression")
    torch.testing.assert_close(
        flat(strong.grads), flat(plain.meta_gradient(doubled()).grads), rtol=1e-4, atol=1e-4
    )


@every_engine
def test_scores_are_those_of_the_pulled_inner_loop(engine: Any) -> None:
    one = learner(5, engine=engine)
    losses = one.score(doubled(), steps=5).losses
    for t in range(TASKS):
        task = WrittenOut(one, t)
        for k in range(6):
            wanted = task.loss(task.end(task.start, k, 0.01, 40.0), "query")
            torch.testing.assert_close(losses[t, k], wanted)


def test_the_order_of_the_support_set_does_not_matter() -> None:
    one, (support, query) = learner(5), doubled()
    turned = TaskBatch(tree_map(lambda x: x.flip(1), support), query)
    same = one.meta_gradient(TaskBatch(support, query)).grads
    torch.testing.assert_close(flat(one.meta_gradient(turned).grads), flat(same))


def test_it_is_maml_by_the_implicit_method() -> None:
    settings = MAML(inner_lr=0.01, inner_steps=3, regularization=40.0)
    one = ImplicitMAML(network().double(), settings, kind="regression")
    by_method = MAML(inner_lr=0.01, inner_steps=3, regularization=40.0, method="implicit")
    other = MetaLearner(network().double(), by_method, kind="regression")
    assert one.maml == by_method
    grads = (made.meta_gradient(doubled()).grads for made in (one, other))
    assert_same(*map(dict, grads))


def test_members_train_as_alone() -> None:
    settings: dict[str, Any] = {"steps": 3, "meta_batch": 3, "validation_tasks": 2}
    maml = MAML(inner_lr=0.02, inner_steps=2, eval_steps=2)
    together = Ensemble.from_factory(network, range(2))
    members = MetaTrainer(together, WAVES, learner="imaml", maml=maml, **settings)
    members.fit()
    for index in range(2):
        alone = MetaTrainer(network(index), WAVES, learner="imaml", maml=maml, **settings)
        alone.fit()
        for name, value in alone.learner.params.items():
            found = members.learner.params[name][index]
            torch.testing.assert_close(found, value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("maml", "message"),
    [
        ({"method": "mixed"}, r"^maml\.method='mixed': auto or implicit is needed with a learner"),
        ({"method": "first_order"}, r"^maml\.method='first_order': auto or implicit is needed"),
        ({"first_order": True}, r"^maml\.first_order=True: false is needed with a learner of"),
        ({"learn": "lr"}, r"^maml\.learn='lr': \[\] is needed with method=implicit"),
        ({"inner_weight_decay": 0.1}, r"^maml\.inner_weight_decay=0\.1: 0 is needed with method="),
    ],
)
def test_bad_input(maml: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        ImplicitMAML(network(), MAML(**maml))
