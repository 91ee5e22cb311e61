"""A learner of one's own: a loss of tasks, or what fits and predicts; what is refused of it."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
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
from metalearn.tasks import FewShotTasks, SinusoidTasks
from metalearn.trainers import MAML, Learner, MetaLearner, MetaTrainer, ProtoNet
from metalearn.types import TaskBatch
from tests.support.builders import (
    assert_goes_on,
    patterns,
)

TASKS = FewShotTasks(patterns(), way=3, shot=2, query=2)
SETTINGS: dict[str, Any] = {
    "steps": 4, "meta_batch": 3, "validation_tasks": 4, "progress": False, "eval_every": 2,
}  # fmt: skip
every_engine = pytest.mark.parametrize("engine", ["auto", "batched", "vmap", "loop"])


class Ridge(Learner):
    """Ridge regression on features, in closed form."""

    needs = "features"

    def fit(self, params: Any, support: Any, *, steps: int | None = None) -> Iterator[Any]:
        features = self.apply(params, self.buffers, support[0])
        wanted = F.one_hot(support[1], self.criterion.classes_of(support[1])).to(features)
        gram = features @ features.mT + torch.eye(len(features)).to(features)
        yield params, features.mT @ torch.linalg.solve(gram, wanted)

    def predict(self, state: Any, inputs: Tensor) -> Tensor:
        params, weights = state
        outputs: Tensor = self.apply(params, self.buffers, inputs) @ weights
        return outputs


class Descent(Learner):
    """An inner loop of one's own, whose loss has a weight on the size of the parameters too."""

    inner_steps, eval_steps = 2, 3

    def fit(self, params: Any, support: Any, *, steps: int | None = None) -> Iterator[Any]:
        def loss(params: Any) -> Tensor:
            return self.criterion(self.apply(params, self.buffers, support[0]), support[1])

        yield params
        for _ in range(self.count_steps(steps)):
            grads = torch.func.grad(loss)(params)
            params = {name: value - 0.1 * grads[name] for name, value in params.items()}
            yield params

    def predict(self, state: Any, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.apply(state, self.buffers, inputs)
        return outputs


class Penalised(Descent):
    def task_loss(self, params: Any, support: Any, query: Any) -> Tensor:
        sizes = torch.stack([value.square().sum() for value in params.values()])
        return super().task_loss(params, support, query) + 0.01 * sizes.sum()


def network(seed: int = 0, outputs: int = 3) -> MLP:
    return MLP((1, 4, 4), outputs, hidden=(6,), seed=seed)


def doubled(split: Any, count: int) -> TaskBatch:
    batch = TASKS.sample(split, range(count))
    return TaskBatch(*tree_map(lambda x: x.double() if x.is_floating_point() else x, tuple(batch)))


def ridge_by_hand(module: Any, task: Any) -> tuple[Tensor, Tensor]:
    """By the normal equations, (XᵀX + I) W = XᵀY."""
    (x, y), (queries, targets) = task
    features, wanted = module(x), torch.eye(3).double()[y]
    normal = features.mT @ features + torch.eye(features.shape[1]).double()
    logits = module(queries) @ torch.linalg.inv(normal) @ features.mT @ wanted
    return -logits.log_softmax(-1)[range(len(targets)), targets].mean(), logits


def descent_by_hand(module: Any, task: Any, steps: int = 2) -> tuple[Tensor, Tensor]:
    (x, y), (queries, targets) = task
    params = dict(module.named_parameters())
    for _ in range(steps):
        loss = F.cross_entropy(torch.func.functional_call(module, params, x), y)
        grads = torch.autograd.grad(loss, list(params.values()), create_graph=True)
        params = {name: p - 0.1 * g for (name, p), g in zip(params.items(), grads)}
    logits = torch.func.functional_call(module, params, queries)
    return F.cross_entropy(logits, targets), logits


def penalised_by_hand(module: Any, task: Any) -> tuple[Tensor, Tensor]:
    loss, logits = descent_by_hand(module, task)
    return loss + 0.01 * sum(p.square().sum() for p in module.parameters()), logits


@every_engine
@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize(
    ("make", "by_hand"),
    [(Ridge, ridge_by_hand), (Descent, descent_by_hand), (Penalised, penalised_by_hand)],
)
def test_the_gradient_is_that_of_a_loop(
    make: type[Learner], by_hand: Callable[..., Any], engine: Any, chunk_size: int | None
) -> None:
    module, tasks = network().double(), doubled("train", 3)
    learner = make(module, engine=engine, chunk_size=chunk_size)
    losses = [by_hand(module, tree_map(lambda x, t=t: x[t], tasks))[0] for t in range(3)]
    found, each = learner.meta_gradient(tasks), learner.task_gradients(learner.params, tasks)
    torch.testing.assert_close(found.query_losses, torch.stack(losses).detach(), rtol=1e-9, atol=0)
    for name, parameter in module.named_parameters():
        grads = [torch.autograd.grad(loss, parameter, retain_graph=True)[0] for loss in losses]
        wanted = torch.stack(grads)
        torch.testing.assert_close(each[name], wanted, rtol=1e-8, atol=1e-11)
        torch.testing.assert_close(found.grads[name], wanted.mean(0), rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("members", [0, 2])
@pytest.mark.parametrize("make", [Ridge, Descent, Penalised])
def test_adapted_modules_predict_what_is_scored(make: type[Learner], members: int) -> None:
    module: Any = network().double()
    if members:
        module = Ensemble.from_factory(lambda seed: network(seed).double(), range(members))
    learner, tasks = make(module), doubled("test", 2)
    scores = learner.score(tasks)
    assert scores.losses.shape == (2, make.eval_steps + 1)
    for t in range(2):
        support, (queries, targets) = tree_map(lambda v, t=t: v[t], tuple(tasks))
        adapted = learner.adapt(support, transductive=True)
        with torch.no_grad():
            outputs = adapted(queries)
        found = outputs.softmax(-1).mean(0).log() if members else outputs
        loss = F.nll_loss(found.log_softmax(-1), targets)
        torch.testing.assert_close(scores.losses[t, -1], loss, rtol=1e-9, atol=0)


@pytest.mark.parametrize("make", [Ridge, Descent])
def test_an_adapted_module_is_a_module_like_any(make: type[Learner]) -> None:
    tasks, learner = doubled("test", 1), make(network().double())
    support, (queries, _) = tree_map(lambda v: v[0], tuple(tasks))
    adapted = learner.adapt(support)
    before = adapted(queries).detach()
    with torch.no_grad():
        for parameter in learner.module.parameters():
            parameter.add_(1)  # a training that goes on
    assert torch.equal(adapted(queries), before)
    other = learner.adapt(tree_map(lambda v: v.flip(0), support))
    other.load_state_dict(adapted.state_dict())
    assert torch.equal(other(queries), before)
    assert torch.equal(pickle.loads(pickle.dumps(adapted))(queries), before)


@pytest.mark.parametrize("make", [Ridge, Penalised])
def test_it_trains_and_a_stopped_run_goes_on_bit_for_bit(
    make: type[Learner], tmp_path: Path
) -> None:
    def trainer(**settings: Any) -> MetaTrainer:
        return MetaTrainer(network(), TASKS, learner=make, **{**SETTINGS, **settings})

    assert_goes_on(trainer, tmp_path)


def test_members_train_as_two_alone() -> None:
    def trainer(model: Any) -> MetaTrainer:
        return MetaTrainer(model, TASKS, learner=Ridge, **SETTINGS)

    members = trainer(Ensemble.from_factory(network, range(2)))
    members.fit()
    for index in range(2):
        alone = trainer(network(index))
        alone.fit()
        member = dict(members.ensemble.member(index).named_parameters())  # type: ignore[union-attr]
        for name, value in alone.module.named_parameters():
            torch.testing.assert_close(member[name], value, rtol=2e-4, atol=2e-5)


def test_diagnostics_see_tasks() -> None:
    settings = {**SETTINGS, "diagnostics": ["noise_scale"], "diagnostics_every": 1}
    MetaTrainer(network(), TASKS, learner=Ridge, **settings).fit()


def test_parameters_without_a_part_are_named() -> None:
    class Fixed(Ridge):
        def task_loss(self, params: Any, support: Any, query: Any) -> Tensor:
            fixed = {n: v.detach() if n.endswith("bias") else v for n, v in params.items()}
            return super().task_loss(fixed, support, query)

    learner, task = Fixed(network().double()), tree_map(lambda v: v[0], doubled("train", 1))
    assert learner.unused_in(task) == [n for n in learner.params if n.endswith("bias")]
    assert not Ridge(network().double()).unused_in(task)


# --- what is refused ----------------------------------------------------------------------------


def replaced(base: type[Learner], **methods: Any) -> type[Learner]:
    return type("Own", (base,), methods)


def yields(*values: Any) -> Any:
    def fit(self: Any, params: Any, support: Any, *, steps: int | None = None) -> Iterator[Any]:
        yield from values

    return fit


def gives(value: Any) -> Any:
    def fit(self: Any, params: Any, support: Any, *, steps: int | None = None) -> Any:
        return value

    return fit


def endless(self: Any, params: Any, support: Any, *, steps: int | None = None) -> Iterator[Any]:
    while True:
        yield (params, torch.ones(3, 3)) if isinstance(self, Ridge) else params


def first_alone(self: Any, params: Any, support: Any, *, steps: int | None = None) -> Iterator[Any]:
    yield params


REFUSED: list[tuple[type[Learner], dict[str, Any], str]] = [
    (Ridge, {"fit": yields()}, r"^Own\.fit='0 states': one is needed for no inner steps"),
    (Ridge, {"fit": endless}, r"^Own\.fit='more than 1 states': one is needed"),
    (Descent, {"fit": endless}, r"^Own\.fit='more than \d states': \d are needed, one after each"),
    (Descent, {"fit": first_alone}, r"^Own\.fit='1 states': \d are needed, one after each of 0"),
    (Ridge, {"fit": yields(None)}, r"^Own\.fit='NoneType': a state has to be a tree of tensors"),
    (Ridge, {"fit": gives(None)}, r"^Own\.fit='NoneType': it has to yield a state after 0, 1"),
    (Ridge, {"fit": gives(torch.ones(2))}, r"^Own\.fit='Tensor': it has to yield a state"),
    (Ridge, {"fit": lambda self, params, support: []}, r"^Own\.fit=.*'steps'"),
    (Ridge, {"predict": lambda self, state: state[1]}, r"^Own\.predict=.*a function that takes 2"),
    (Ridge, {"predict": lambda *_: None}, r"^Own\.predict='NoneType': a tensor \[6, 3\] is needed"),
    (Ridge, {"predict": lambda *_: torch.ones(6)}, r"^Own\.predict=\[6\]: a tensor \[6, 3\]"),
    (Ridge, {"predict": lambda *_: torch.ones(6, 4)}, r"^Own\.predict=\[6, 4\]: a tensor \[6, 3\]"),
    (Ridge, {"predict": lambda *_: torch.ones(3)}, r"^Own\.predict=\[3\]: a tensor \[6, 3\]"),
    (ProtoNet, {"predict": lambda *_: torch.ones(5, 3)}, r"^Own\.predict=\[5, 3\]: a tensor \[6"),
    (MetaLearner, {"predict": lambda *_: torch.ones(6)}, r"^Own\.predict=\[6\]: a tensor \[6, 3"),
    (MetaLearner, {"fit": yields()}, r"^Own\.fit='0 states': \d are needed"),
]  # fmt: skip
LOSSES: list[tuple[Any, str]] = [
    (lambda self, params, *_: params["3.weight"], r"^Own\.task_loss=\(3, 6\): a scalar is needed"),
    (lambda *_: 1.0, r"^Own\.task_loss='float': a scalar is needed"),
    (lambda *_: None, r"^Own\.task_loss='NoneType': a scalar is needed"),
    (lambda *_: torch.ones(()), r"^Own\.task_loss='no parameter reached': a loss is needed"),
    (lambda self, params: 1.0, r"^Own\.task_loss=.*a function that takes 3 such arguments"),
]


@pytest.mark.parametrize(("base", "methods", "message"), REFUSED)
@pytest.mark.parametrize("ask", ["train", "score"])
def test_methods_that_give_nonsense(
    base: type[Learner], methods: dict[str, Any], message: str, ask: str
) -> None:
    kind = replaced(base, **methods)
    if ask == "train":
        trainer = MetaTrainer(network(), TASKS, learner=kind, **{**SETTINGS, "eval_every": 4})
        with pytest.raises(SettingError, match=message):
            trainer.fit()
        assert trainer.step == 0
    elif not (issubclass(kind, MetaLearner) and "fit" in methods):  # scores by its own loop
        with pytest.raises(SettingError, match=message):
            kind(network()).score(TASKS.sample("test", [0, 1]))


@pytest.mark.parametrize("name", ["inner_steps", "eval_steps"])
@pytest.mark.parametrize("count", [-1, 1.5, "two", None, True])
def test_numbers_of_steps_that_are_none(name: str, count: Any) -> None:
    trainer = MetaTrainer(network(), TASKS, learner=replaced(Descent, **{name: count}), **SETTINGS)
    message = rf"^Own\.{name}={count!r}: a whole number of at least 0 is needed"
    with pytest.raises(SettingError, match=message):
        trainer.fit()


@pytest.mark.parametrize(("loss", "message"), LOSSES)
@pytest.mark.parametrize("ask", ["train", "gradient", "tasks", "unused"])
def test_losses_that_are_none(loss: Any, message: str, ask: str) -> None:
    kind, tasks = replaced(Descent, task_loss=loss), TASKS.sample("train", [0, 1])
    with pytest.raises(SettingError, match=message):
        if ask == "train":
            MetaTrainer(network(), TASKS, learner=kind, **SETTINGS).fit()
        elif ask == "gradient":
            kind(network()).meta_gradient(tasks)
        elif ask == "tasks":
            learner = kind(network())
            learner.task_gradients(learner.params, tasks)
        else:
            kind(network()).unused_in(tree_map(lambda v: v[0], tasks))


def of_nothing(self: Any, params: Any, tasks: Any, *, step: int) -> Any:
    return Ridge.gradient(self, params, tasks)._replace(grads={})


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ({"gradient": lambda *_, step: None}, r"^Own\.gradient='NoneType': a MetaGradient of all"),
        ({"gradient": of_nothing}, r"^Own\.gradient=\[\]: a MetaGradient of all parameters"),
        ({"as_module": lambda *_: None}, r"^Own\.as_module='NoneType': a module is needed"),
    ],
)
def test_what_takes_gradients_or_makes_modules(methods: Any, message: str) -> None:
    trainer = MetaTrainer(network(), TASKS, learner=replaced(Ridge, **methods), **SETTINGS)
    support = tree_map(lambda v: v[0], TASKS.sample("test", [0]).support)
    with pytest.raises(SettingError, match=message):
        trainer.fit()
        trainer.learner.adapt(support)


@pytest.mark.parametrize("outputs", [None, torch.ones(10), torch.ones(10, 2), torch.ones(4, 1)])
def test_predictions_of_regression(outputs: Any) -> None:
    kind = replaced(Descent, predict=lambda *_: outputs)
    learner = kind(MLP((1,), 1, hidden=(4,)), kind="regression")
    with pytest.raises(SettingError, match=r"^Own\.predict=.*a tensor \[\d+, 1\] is needed for"):
        learner.score(SinusoidTasks().sample("test", [0]))


def test_settings_of_a_learner_of_ones_own() -> None:
    with pytest.raises(SettingError, match="^chunk_size=0: a whole number of at least 1"):
        Ridge(network(), chunk_size=0)
    with pytest.raises(SettingError, match="^features=0: a whole number of at least 1"):
        Ridge(network(), features=0)
    with pytest.raises(SettingError, match=r"^model='MLP': outputs \[6, 7\] are needed"):
        MetaTrainer(network(), TASKS, learner=partial(Ridge, features=7))
    assert Ridge(network(), features=3).features == 3 and Ridge(network()).features is None
    with pytest.raises(SettingError, match="^norm='rms': one of batch_stats, running, group"):
        Ridge(network(), norm="rms")  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="^maml=.*Ridge has none, so None is needed"):
        MetaTrainer(network(), TASKS, learner=Ridge, maml=MAML())
