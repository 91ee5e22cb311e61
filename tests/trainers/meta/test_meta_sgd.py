"""Meta-SGD: against a plain loop, MAML where its step sizes are equal, and where they start.

Axes: M members, T tasks, K inner steps.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from metalearn.core.tree import tree_map
from metalearn.errors import SettingError
from metalearn.models import MLP, Ensemble
from metalearn.tasks import SinusoidTasks
from metalearn.trainers import ANIL, MAML, MetaLearner, MetaSGD, MetaTrainer
from metalearn.types import TaskBatch
from tests.support.builders import Recorder

WAVES = SinusoidTasks(shot=4, query=4)
RANGE = (0.005, 0.1)
every_engine = pytest.mark.parametrize("engine", ["batched", "vmap", "loop"])
K = 3


def doubled() -> TaskBatch:
    batch: TaskBatch = tree_map(lambda x: x.double(), WAVES.sample("train", range(3)))
    return batch


def network(seed: int = 0) -> MLP:
    """With a bias of as many elements as there are inner steps."""
    return MLP((1,), 1, hidden=(K,), seed=seed).double()


def learner(maml: dict[str, Any] | None = None, module: Any = None, **own: Any) -> MetaSGD:
    settings = MAML(inner_lr=0.05, inner_steps=K, eval_steps=K, **(maml or {}))
    return MetaSGD(module or network(), settings, kind="regression", **own)


def written_out(one: MetaSGD, *, second_order: bool, by_step: bool) -> dict[str, Tensor]:
    """The gradient of the mean over tasks of L(θ_K, query) with θ_{k+1} = θ_k − α ∘ ∇L."""
    leaves = {n: p.detach().clone().requires_grad_() for n, p in one.params.items()}
    own = {n: p for n, p in leaves.items() if not n.startswith("learnt.")}
    tasks = doubled()

    def loss(params: dict[str, Tensor], batch: Any, t: int) -> Tensor:
        return (functional_call(one.module, params, (batch[0][t],)) - batch[1][t]).square().mean()

    total = torch.zeros((), dtype=torch.float64)
    for t in range(3):
        now = dict(own)
        for k in range(K):
            slopes = torch.autograd.grad(
                loss(now, tasks.support, t), list(now.values()), create_graph=second_order
            )
            rates = [leaves[f"learnt.lr.{n}"] for n in now]
            rates = [rate[k] for rate in rates] if by_step else rates
            assert all(rate.shape == p.shape for rate, p in zip(rates, now.values()))
            now = {n: p - r * g for (n, p), r, g in zip(now.items(), rates, slopes)}
        total = total + loss(now, tasks.query, t) / 3
    return dict(zip(leaves, torch.autograd.grad(total, list(leaves.values()))))


@every_engine
@pytest.mark.parametrize("method", ["reverse", "mixed", "first_order"])
@pytest.mark.parametrize("by_step", [False, True])
def test_the_gradient_is_that_of_a_plain_loop(engine: Any, method: Any, by_step: bool) -> None:
    """At step sizes that differ, some of them negative."""
    inner = {"learn": "lr", "lr_per": "element_and_step"} if by_step else {}
    one = learner({"engine": engine, "method": method, **inner}, rate_range=RANGE)
    with torch.no_grad():
        one.params["learnt.lr.1.bias"].neg_()
    wanted = written_out(one, second_order=method != "first_order", by_step=by_step)
    found = one.meta_gradient(doubled()).grads
    assert found.keys() == wanted.keys()
    for name, grad in wanted.items():
        assert found[name].shape == one.params[name].shape
        torch.testing.assert_close(found[name], grad, rtol=1e-9, atol=1e-12)


@every_engine
def test_at_equal_step_sizes_it_is_maml(engine: Any) -> None:
    """And the gradient of MAML's one step size is the sum of those of all elements."""
    one, tasks = learner({"engine": engine}), doubled()
    assert set(one.maml.learn) == {"lr"} and one.maml.lr_per == "element"
    found = one.meta_gradient(tasks)
    settings = MAML(inner_lr=0.05, inner_steps=K, eval_steps=K, learn="lr", engine=engine)
    alone = MetaLearner(network(), settings, kind="regression")
    wanted = alone.meta_gradient(tasks)
    torch.testing.assert_close(found.loss, wanted.loss, rtol=1e-12, atol=0)
    for name, grad in wanted.grads.items():
        if name != "learnt.lr":
            torch.testing.assert_close(found.grads[name], grad, rtol=1e-10, atol=1e-13)
    rates = [g.sum() for n, g in found.grads.items() if n.startswith("learnt.")]
    torch.testing.assert_close(
        torch.stack(rates).sum(), wanted.grads["learnt.lr"], rtol=1e-9, atol=1e-12
    )
    torch.testing.assert_close(one.score(tasks).losses, alone.score(tasks).losses)


def test_where_step_sizes_start() -> None:
    for name, rates in learner().params.items():
        if name.startswith("learnt."):
            assert torch.equal(rates, torch.full_like(rates, 0.05))
    drawn = learner(rate_range=RANGE, module=MLP((1,), 1, hidden=(200,)))
    rates = drawn.params["learnt.lr.1.weight"]
    assert RANGE[0] <= rates.min() < 0.01 < 0.095 < rates.max() <= RANGE[1]
    assert float(rates.mean()) == pytest.approx(0.0525, abs=0.006)
    again = learner(rate_range=RANGE, module=MLP((1,), 1, hidden=(200,)))
    other = learner(rate_range=RANGE, module=MLP((1,), 1, hidden=(200,)), seed=1)
    assert torch.equal(again.params["learnt.lr.1.weight"], rates)
    assert not torch.equal(other.params["learnt.lr.1.weight"], rates)


def test_members_start_and_train_as_alone() -> None:
    settings: dict[str, Any] = {"steps": 3, "meta_batch": 3, "validation_tasks": 2}
    maml = MAML(inner_lr=0.02, inner_steps=2)
    single = partial(MLP, (1,), 1, hidden=(K,))
    make = partial(MetaSGD, rate_range=RANGE)
    together = Ensemble.from_factory(lambda seed: single(seed=seed), range(2))
    members = MetaTrainer(together, WAVES, learner=make, maml=maml, **settings)
    members.fit()
    for index in range(2):
        own = partial(make, seed=index)
        alone = MetaTrainer(single(seed=index), WAVES, learner=own, maml=maml, **settings)
        alone.fit()
        for name, value in alone.learner.params.items():
            found = members.learner.params[name][index]
            torch.testing.assert_close(found, value, rtol=1e-4, atol=1e-6)


def test_a_step_reduces_the_loss_of_a_fixed_task_by_weights_or_by_rates_alone() -> None:
    one, tasks = learner(rate_range=RANGE), doubled()
    found = one.gradient(one.params, tasks, step=0)
    for chosen in ("learnt.", ""):
        moved = {
            n: p - 1e-3 * found.grads[n] if n.startswith("learnt.") == bool(chosen) else p
            for n, p in one.params.items()
        }
        assert one.gradient(moved, tasks, step=0).loss < found.loss


def test_of_a_part_that_adapts_that_alone_has_step_sizes() -> None:
    maml = MAML(learn="lr", lr_per="element")
    one = ANIL(network(), maml, kind="regression")
    names = [n for n in one.params if n.startswith("learnt.")]
    assert names == [f"learnt.lr.{n}" for n in one.adapting()]
    assert one.params[names[0]].shape == (1, K)


def test_records_are_few_however_many_elements() -> None:
    tracker = Recorder()
    trainer = MetaTrainer(
        MLP((1,), 1, hidden=(64,)), WAVES, learner=partial(MetaSGD, rate_range=RANGE),
        maml=MAML(inner_lr=0.02), steps=1, meta_batch=2, validation_tasks=2, progress=False,
        tracker=tracker, log_every=1,
    )  # fmt: skip
    trainer.fit()
    found = {n: v for _, row in tracker.numbers for n, v in row.items() if n.startswith("learnt")}
    by_parameter = {n for n in found if n.startswith("learnt_lr_by_parameter/")}
    assert len(by_parameter) == 4
    assert found.keys() - by_parameter == {"learnt/lr", "learnt/lr_low", "learnt/lr_high"}
    assert found["learnt/lr_low"] < 0.02 < 0.08 < found["learnt/lr_high"]


def test_scores_do_not_depend_on_the_order_of_the_support_set() -> None:
    one, (support, query) = learner(rate_range=RANGE), doubled()
    turned = TaskBatch(tree_map(lambda x: x.flip(1), support), query)
    torch.testing.assert_close(
        one.score(turned).losses, one.score(TaskBatch(support, query)).losses
    )


@pytest.mark.parametrize(
    ("maml", "own", "message"),
    [
        ({"method": "implicit"}, {}, r"^maml\.method='implicit': auto, reverse, mixed or"),
        ({"inner_steps": 0}, {}, r"^maml\.inner_steps=0: at least 1 is needed for step sizes"),
        ({"learn": "lr"}, {}, r"^maml\.lr_per='all': element or element_and_step is needed$"),
        ({"learn": ["lr"], "lr_per": "step"}, {}, r"^maml\.lr_per='step': element or element_"),
        ({}, {"rate_range": [0.1]}, r"^rate_range=\[0\.1\]: two numbers are needed, the smaller"),
        ({}, {"rate_range": (0.1, 0.05)}, r"^rate_range=\[0\.1, 0\.05\]: two numbers are needed"),
        ({}, {"rate_range": (0, 0.05)}, r"^rate_range\[0\]=0: a finite number above 0 is needed"),
        ({}, {"rate_range": (0.1, torch.inf)}, r"^rate_range\[1\]=inf: a finite number above 0"),
        ({}, {"rate_range": (torch.nan, 0.1)}, r"^rate_range=\(nan, 0\.1\): a list of numbers"),
        ({}, {"rate_range": 0.1}, r"^rate_range=0\.1: a list of numbers"),
        ({}, {"seed": -1}, r"^seed=-1: "),
    ],
)
def test_bad_input(maml: dict[str, Any], own: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        MetaSGD(network(), MAML(**maml), **own)
