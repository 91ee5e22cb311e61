"""Multi-step losses as a learner: against the sum of the losses' gradients, and annealed."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from metalearn.core.tree import tree_map
from metalearn.errors import SettingError
from metalearn.models import MLP, Ensemble
from metalearn.tasks import SinusoidTasks
from metalearn.trainers import MAML, MetaLearner, MetaTrainer
from metalearn.trainers.meta.diagnostics import TaskSource
from metalearn.trainers.meta.multi_step import MultiStepLearner
from metalearn.types import TaskBatch

WAVES = SinusoidTasks(shot=4, query=4)


def doubled() -> TaskBatch:
    batch: TaskBatch = tree_map(lambda x: x.double(), WAVES.sample("train", range(3)))
    return batch


def network(seed: int = 0) -> MLP:
    return MLP((1,), 1, hidden=(6,), seed=seed)


def weighted(weights: list[float], **maml: Any) -> dict[str, Tensor]:
    """Σ_k w_k times the meta-gradient after k inner steps."""
    total: dict[str, Tensor] = {}
    for steps, weight in enumerate(weights):
        settings = MAML(inner_lr=0.05, inner_steps=steps, **maml)
        alone = MetaLearner(network().double(), settings, kind="regression")
        grads = alone.meta_gradient(doubled()).grads
        total = {n: total.get(n, 0) + weight * g for n, g in grads.items()}
    return total


@pytest.mark.parametrize("method", ["reverse", "mixed", "first_order"])
@pytest.mark.parametrize("engine", ["batched", "vmap", "loop"])
def test_the_gradient_is_the_weighted_sum(engine: Any, method: Any) -> None:
    maml = MAML(inner_lr=0.05, inner_steps=2, engine=engine, method=method)
    weights = [0.2, 0.3, 0.5]
    learner = MultiStepLearner(network().double(), maml, kind="regression", weights=weights)
    grads = learner.meta_gradient(doubled()).grads
    for name, grad in weighted(weights, method=method).items():
        torch.testing.assert_close(grads[name], grad, rtol=1e-10, atol=1e-12)


def test_annealed_weights_end_at_maml() -> None:
    maml = MAML(inner_lr=0.05, inner_steps=2)
    learner = MultiStepLearner(network().double(), maml, kind="regression", anneal=4)
    assert learner.weights_at(0) == pytest.approx([1 / 3] * 3)
    assert learner.weights_at(2) == pytest.approx([1 / 6, 1 / 6, 2 / 3])
    assert learner.weights_at(9) == [0.0, 0.0, 1.0]
    last = learner.gradient(learner.params, doubled(), step=9).grads
    alone = MetaLearner(network().double(), maml, kind="regression")
    for name, grad in alone.meta_gradient(doubled()).grads.items():
        torch.testing.assert_close(last[name], grad, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("step", [0, 2, 9])
def test_diagnostics_see_the_tasks_of_the_step(step: int) -> None:
    maml = MAML(inner_lr=0.05, inner_steps=2, engine="batched")
    trainer = MetaTrainer(
        network(), WAVES, learner=partial(MultiStepLearner, anneal=4), maml=maml, meta_batch=3
    )
    objective = trainer.loop.objective
    batch = objective.batch(step)
    wanted = objective.gradient(trainer.loop.params, batch, step=step).grads
    source = TaskSource(trainer.learner, clip_norm=1.0, active=lambda: trainer.active)
    ((chunk,),) = source.gradient_units("task", batch, wanted).blocks()
    for name, grad in wanted.items():
        torch.testing.assert_close(chunk[name].mean((0, 1)), grad, rtol=1e-4, atol=1e-5)


def test_members_train_as_alone() -> None:
    make = partial(MultiStepLearner, anneal=3)
    settings: dict[str, Any] = {"steps": 3, "meta_batch": 3, "validation_tasks": 2}
    maml = MAML(inner_lr=0.02, inner_steps=2)
    members = MetaTrainer(
        Ensemble.from_factory(network, range(2)), WAVES, learner=make, maml=maml, **settings
    )
    members.fit()
    for index in range(2):
        alone = MetaTrainer(network(index), WAVES, learner=make, maml=maml, **settings)
        alone.fit()
        member = dict(members.ensemble.member(index).named_parameters())  # type: ignore[union-attr]
        for name, value in alone.module.named_parameters():
            torch.testing.assert_close(member[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "maml", "message"),
    [
        ({"weights": [1.0]}, {}, r"^weights=\[1\.0\]: 2 are needed, one for each of θ_0 … θ_1"),
        ({"weights": [1.0, float("nan")]}, {}, "^weights=.*: a list of numbers or null is needed"),
        ({"weights": [1.0, float("inf")]}, {}, "^weights=.*: finite numbers, not all of them 0"),
        ({"weights": [0, 0]}, {}, r"^weights=\[0\.0, 0\.0\]: finite numbers, not all of them 0"),
        ({"anneal": 0}, {}, "^anneal=0: a whole number of at least 1"),
        ({}, {"method": "implicit"}, r"^maml\.method='implicit': auto, reverse, mixed or"),
    ],
)
def test_bad_input(settings: dict[str, Any], maml: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        MultiStepLearner(network(), MAML(**maml), **settings)
