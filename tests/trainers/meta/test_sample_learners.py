"""Learners that are trained on samples of all training classes: Baseline++ and RFS.

Axes: N samples, C classes, D features.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.core.tree import tree_map
from metalearn.errors import SettingError
from metalearn.models import MLP, Ensemble
from metalearn.tasks import FewShotTasks
from metalearn.trainers import (
    RFS,
    BaselinePlusPlus,
    Learner,
    MetaTrainer,
    SampleLearner,
    register_learner,
)
from metalearn.trainers.diagnostics import DiagnosisData
from metalearn.trainers.meta.baseline_pp import cosine_weights
from metalearn.trainers.meta.registry import LEARNERS
from metalearn.types import TaskBatch
from tests.support.builders import assert_goes_on, assert_same, patterns

TASKS = FewShotTasks(patterns(), way=3, shot=2, query=2, rotate_train=True)
SETTINGS: dict[str, Any] = {
    "steps": 4, "meta_batch": 3, "validation_tasks": 4, "progress": False, "eval_every": 2,
}  # fmt: skip
both = pytest.mark.parametrize("make", [RFS, BaselinePlusPlus])


def network(seed: int = 0) -> MLP:
    module = MLP((1, 4, 4), 5, hidden=(6,), seed=seed).double()
    with torch.no_grad():
        list(module.parameters())[-1].copy_(torch.arange(5) / 10 - 0.15)  # no feature is zero
    return module


def doubled(tree: Any) -> Any:
    return tree_map(lambda x: x.double() if x.is_floating_point() else x, tree)


def ready(make: Any, **settings: Any) -> Any:
    learner = make(network(), **settings)
    learner.learn_classes(TASKS.training_classes, 5)
    return learner


def class_logits_by_hand(learner: Any, features: Tensor, values: dict[str, Tensor]) -> Tensor:
    weights = values["learnt.classifier"]
    if isinstance(learner, RFS):
        return F.linear(features, weights, values["learnt.classifier_bias"])
    return values["learnt.scale"] * F.normalize(features) @ F.normalize(weights).T


@both
def test_a_step_descends_the_cross_entropy_of_all_training_classes(make: Any) -> None:
    learner = ready(make)
    x, y = doubled(TASKS.training_samples(range(3), 8))
    found = learner.meta_gradient(TaskBatch((x, y), (x, y)))
    values = {n: p.clone().requires_grad_() for n, p in learner.params.items()}
    own = {n: p for n, p in values.items() if not n.startswith("learnt.")}
    losses = [
        F.cross_entropy(
            class_logits_by_hand(
                learner, torch.func.functional_call(learner.module, own, (inputs,)), values
            ),
            classes,
        )
        for inputs, classes in zip(x, y)
    ]
    torch.testing.assert_close(found.query_losses, torch.stack(losses).detach())
    grads = torch.autograd.grad(torch.stack(losses).mean(), list(values.values()))
    assert found.grads.keys() == values.keys()
    for name, grad in zip(values, grads):
        torch.testing.assert_close(found.grads[name], grad, rtol=1e-8, atol=1e-11)


def test_a_logistic_head_is_the_optimum_on_directions() -> None:
    learner = ready(RFS, ridge=0.4)
    (x, y), (queries, _) = ((a[0], b[0]) for a, b in tuple(doubled(TASKS.sample("test", [0]))))
    units = F.normalize(learner.module(x).detach())
    weights = torch.zeros(5, 3, dtype=torch.float64, requires_grad=True)
    descent = torch.optim.LBFGS([weights], max_iter=500, tolerance_grad=1e-12, tolerance_change=0,
                                line_search_fn="strong_wolfe")  # fmt: skip

    def closure() -> Tensor:
        descent.zero_grad()
        loss = F.cross_entropy(units @ weights, y, reduction="sum") + 0.2 * weights.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    descent.step(closure)  # type: ignore[no-untyped-call]
    (state,) = learner.fit(learner.params, (x, y))
    wanted = F.normalize(learner.module(queries)) @ weights
    torch.testing.assert_close(learner.predict(state, queries), wanted, rtol=1e-6, atol=1e-8)


def test_a_cosine_head_takes_gradient_steps_from_class_means() -> None:
    learner = ready(BaselinePlusPlus, head_steps=7, head_lr=0.6, scale=3.0)
    (x, y), (queries, _) = ((a[0], b[0]) for a, b in tuple(doubled(TASKS.sample("test", [1]))))
    features = learner.module(x).detach()
    weights = F.normalize(torch.stack([features[y == c].mean(0) for c in range(3)]))
    for _ in range(7):
        weights = weights.detach().requires_grad_()
        loss = F.cross_entropy(3 * F.normalize(features) @ F.normalize(weights).T, y)
        (slope,) = torch.autograd.grad(loss, weights)
        weights = weights - 0.6 * slope
    (state,) = learner.fit(learner.params, (x, y))
    torch.testing.assert_close(state.means, weights, rtol=1e-10, atol=1e-12)
    wanted = 3 * F.normalize(learner.module(queries)) @ F.normalize(weights).T
    torch.testing.assert_close(learner.predict(state, queries), wanted)


def test_cosine_weights_of_padding_probabilities_order_and_labels() -> None:
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(6, 4, generator=draws, dtype=torch.float64)
    y = F.one_hot(torch.arange(6) % 3, 3).double()
    made = partial(cosine_weights, scale=torch.tensor(4.0), steps=9, size=0.5)
    wanted = made(x, y)
    close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-12)
    close(made(torch.cat([x, 5 + x[:2]]), torch.cat([y, 0 * y[:2]])), wanted)
    close(made(x.flip(0), y.flip(0)), wanted)
    close(made(x, y[:, [2, 0, 1]]), wanted[[2, 0, 1]])
    close(torch.vmap(made)(torch.stack([x, 3 * x]), torch.stack([y, y]))[1], wanted)
    zero = torch.cat([x[:3] * 0, x[3:]])  # a feature of zero has no direction
    assert made(zero, y).isfinite().all()
    soft = made(x, 0.9 * y + 0.1 / 3)
    assert soft.isfinite().all() and not torch.allclose(soft, wanted)


@both
def test_prediction_does_not_depend_on_the_order_of_samples_or_labels(make: Any) -> None:
    learner = ready(make)
    (x, y), (queries, _) = ((a[0], b[0]) for a, b in tuple(doubled(TASKS.sample("test", [2]))))

    def outputs(x: Tensor, y: Tensor, queries: Tensor) -> Tensor:
        (state,) = learner.fit(learner.params, (x, y))
        found: Tensor = learner.predict(state, queries)
        return found

    wanted, turn = outputs(x, y, queries), torch.tensor([4, 0, 3, 5, 1, 2])
    close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-11)
    close(outputs(x[turn], y[turn], queries), wanted)
    close(outputs(x, y, queries.flip(0)), wanted.flip(0))
    close(outputs(x, torch.tensor([1, 2, 0])[y], queries), wanted[:, [2, 0, 1]])


@both
@pytest.mark.parametrize("members", [0, 2])
def test_it_trains_and_a_stopped_run_goes_on_bit_for_bit(
    make: Any, members: int, tmp_path: Path
) -> None:
    def made(**settings: Any) -> MetaTrainer:
        model: Any = Ensemble.from_factory(network, range(2)) if members else network()
        learner: Any = partial(make, batch_size=6)
        return MetaTrainer(model.float(), TASKS, learner=learner, **{**SETTINGS, **settings})

    assert_goes_on(made, tmp_path)


@both
def test_training_descends(make: Any) -> None:
    tasks = FewShotTasks(patterns(40), way={"train": 5, "test": 3}, shot=1, query=3)
    fast: Any = lambda ps: torch.optim.Adam(ps, lr=1e-2)  # noqa: E731
    settings: Any = {"steps": 60, "meta_batch": 2, "validation_tasks": 4, "eval_every": 60}
    learner: Any = partial(make, batch_size=32)
    trainer = MetaTrainer(
        network().float(), tasks, learner=learner, optimizer=fast, progress=False, **settings
    )
    drawn = trainer.loop.objective.batch(0).tasks
    loss = trainer.learner.meta_gradient(drawn).loss
    trainer.fit()
    assert trainer.learner.meta_gradient(drawn).loss < 0.7 * loss
    accuracies = trainer.test(100).accuracies
    assert accuracies is not None and accuracies[0, 0] > 0.8


def test_a_step_counts_samples_and_records_tasks() -> None:
    trainer = MetaTrainer(network().float(), TASKS, learner="rfs", **SETTINGS)
    objective: Any = trainer.loop.objective
    objective.prepare()
    batch = objective.batch(2)
    assert list(batch.indices) == [6, 7, 8]
    assert_same(tuple(batch.tasks.query), TASKS.training_samples([6, 7, 8], 16))
    gradient = objective.gradient(trainer.loop.params, batch, step=2)
    assert (objective.unit, gradient.count, gradient.processed) == ("samples", 3, 48)
    assert gradient.suspects() == "training batches 6 to 8"
    found = objective.records(batch, gradient, step=2)
    scores = trainer.learner.score(TASKS.sample("train", [6, 7, 8]), steps=0)
    assert found["train/accuracy_after"] == pytest.approx(float(scores.accuracies.mean()))


def test_diagnostics_are_of_batches() -> None:
    trainer = MetaTrainer(
        network().float(), TASKS, learner="rfs", diagnostics=["noise_scale"],
        diagnostics_every=1, **SETTINGS,
    )  # fmt: skip
    trainer.fit()
    ((name, _),) = trainer.diagnosis_sources(DiagnosisData("run", split="train", tasks=4))
    assert name == "meta_gradients"
    with pytest.raises(SettingError, match="^split='validation': train is needed: the learner's"):
        list(trainer.diagnosis_sources(DiagnosisData("run", split="validation")))


# --- what is refused ---------------------------------------------------------------------------


class OnSamples(Learner):
    draws = "samples"
    needs = "features"

    def fit(self, params: Any, support: Any, *, steps: int | None = None) -> Any:
        yield params

    def predict(self, state: Any, inputs: Tensor) -> Tensor:
        return inputs


def test_a_learner_of_samples_is_a_sample_learner() -> None:
    message = "^OnSamples.draws='samples': tasks is needed, or a subclass of SampleLearner"
    with pytest.raises(SettingError, match=message):
        MetaTrainer(network().float(), TASKS, learner=OnSamples, **SETTINGS)


class TasksAlone:
    kind, input_shape, outputs, sample = "classification", (1, 4, 4), 3, TASKS.sample


@both
def test_tasks_without_samples(make: Any) -> None:
    message = f"^tasks='TasksAlone': tasks with training_samples are needed: {make.label} is"
    with pytest.raises(SettingError, match=message):
        MetaTrainer(network().float(), TasksAlone(), learner=make, **SETTINGS)


@both
def test_classes_that_do_not_fit(make: Any) -> None:
    learner = make(network().float())
    x, y = TASKS.training_samples([0], 4)
    with pytest.raises(SettingError, match="^training_classes=None: learn_classes"):
        learner.meta_gradient(TaskBatch((x, y), (x, y)))
    learner.learn_classes(9, 5)
    before = dict(learner.params)
    learner.learn_classes(9, 5)  # is there
    assert_same(dict(learner.params), before)
    with pytest.raises(SettingError, match=r"^learnt.classifier=\[9, 5\]: \[32, 5\] is needed"):
        MetaTrainer(learner.module, TASKS, learner=learner, **SETTINGS)
    with pytest.raises(SettingError, match="^classes of the samples=9: "):
        learner.meta_gradient(TaskBatch((x, y), (x, 0 * y + 9)))
    with pytest.raises(SettingError, match="^classes=1: "):
        make(network()).learn_classes(1, 5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(RFS, ridge=0.0), "^ridge=0.0: a finite number above 0 is needed"),
        (partial(RFS, batch_size=0), "^batch_size=0: a whole number of at least 1 is needed"),
        (partial(RFS, seed=-1), "^seed=-1: "),
        (partial(RFS, kind="regression"), "^kind='regression': rfs needs tasks of classification"),
        (partial(BaselinePlusPlus, head_steps=-1), "^head_steps=-1: "),
        (partial(BaselinePlusPlus, head_lr=0.0), "^head_lr=0.0: "),
        (partial(BaselinePlusPlus, scale=float("nan")), "^scale=nan: "),
        (partial(BaselinePlusPlus, kind="regression"), "^kind='regression': baseline_pp needs"),
    ],
)
def test_bad_settings(make: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        make(network())


@both
def test_inner_steps_are_refused(make: Any) -> None:
    with pytest.raises(SettingError, match="has no inner loop, so 0 is needed"):
        ready(make).score(doubled(TASKS.sample("test", [0])), steps=1)


def test_a_sample_learner_of_ones_own() -> None:
    @register_learner("nearest_direction", "an embedding of all classes, then the nearest mean")
    class Nearest(SampleLearner):
        def class_logits(self, params: Any, features: Tensor) -> Tensor:
            logits: Tensor = features @ params["learnt.classifier"].mT
            return logits

        def fit(self, params: Any, support: Any, *, steps: int | None = None) -> Any:
            features, targets = self.described(params, support)
            yield params, targets.mT @ features

        def predict(self, state: Any, inputs: Tensor) -> Tensor:
            params, means = state
            logits: Tensor = self.apply(params, self.buffers, inputs) @ means.mT
            return logits

    try:
        trainer = MetaTrainer(network().float(), TASKS, learner="nearest_direction", **SETTINGS)
        trainer.fit()
        assert trainer.test(5).accuracies is not None
    finally:
        del LEARNERS["nearest_direction"]
