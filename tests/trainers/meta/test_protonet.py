"""Prototypical networks: against a loop in float64, in every engine, and as members."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from metalearn.core.tree import tree_map
from metalearn.errors import SettingError
from metalearn.models import MLP, Ensemble
from metalearn.tasks import FewShotTasks, SinusoidTasks
from metalearn.trainers import LEARNERS, MAML, Learner, MetaTrainer, register_learner
from metalearn.trainers.meta.protonet import ProtoNet
from metalearn.types import TaskBatch
from tests.support.builders import (
    assert_goes_on,
    patterns,
)

TASKS = FewShotTasks(patterns(), way=3, shot=2, query=2)
SETTINGS: dict[str, Any] = {
    "steps": 4, "meta_batch": 3, "validation_tasks": 4, "progress": False, "eval_every": 2,
}  # fmt: skip


def network(seed: int = 0) -> MLP:
    return MLP((1, 4, 4), 5, hidden=(6,), seed=seed)


def doubled(split: Any, count: int, tasks: Any = TASKS) -> TaskBatch:
    batch = tasks.sample(split, range(count))
    return TaskBatch(*tree_map(lambda x: x.double() if x.is_floating_point() else x, tuple(batch)))


def by_hand(module: Any, task: Any) -> tuple[Tensor, Tensor]:
    """Loss and logits of one task, class by class and query by query."""
    (x, y), (queries, targets) = task
    means = [module(x)[y == c].mean(0) for c in range(int(y.max()) + 1)]
    logits = torch.stack(
        [torch.stack([-(f - m).pow(2).sum() for m in means]) for f in module(queries)]
    )
    rows = [logits[n].exp()[targets[n]] / logits[n].exp().sum() for n in range(len(targets))]
    return -torch.stack(rows).log().mean(), logits


@pytest.mark.parametrize("engine", ["auto", "batched", "vmap", "loop"])
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_the_gradient_is_that_of_a_loop(engine: Any, chunk_size: int | None) -> None:
    module = network().double()
    tasks = doubled("train", 3)
    learner = ProtoNet(module, engine=engine, chunk_size=chunk_size)
    found = learner.meta_gradient(tasks)
    losses = [by_hand(module, tree_map(lambda x, t=t: x[t], tasks))[0] for t in range(3)]
    mean = torch.stack(losses).mean()
    grads = torch.autograd.grad(mean, list(module.parameters()))
    torch.testing.assert_close(found.loss, mean.detach(), rtol=1e-10, atol=0)
    for (name, _), grad in zip(module.named_parameters(), grads):
        torch.testing.assert_close(found.grads[name], grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("inductive", [False, True])
@pytest.mark.parametrize("engine", ["batched", "vmap", "loop"])
def test_scores_are_those_of_adapted_modules(engine: Any, inductive: bool) -> None:
    learner = ProtoNet(network().double(), engine=engine)
    tasks = doubled("test", 4)
    scores = learner.score(tasks, inductive=inductive)
    assert scores.losses.shape == (4, 1)
    for t in range(4):
        task = tree_map(lambda x, t=t: x[t], tasks)
        loss, logits = by_hand(learner.module, task)
        torch.testing.assert_close(scores.losses[t, 0], loss.detach(), rtol=1e-10, atol=0)
        adapted = learner.adapt(task.support, transductive=not inductive)
        torch.testing.assert_close(adapted(task.query[0]), logits, rtol=1e-10, atol=1e-12)
        assert torch.equal(scores.predictions[t, 0], logits.argmax(-1))


@pytest.mark.parametrize("engine", ["batched", "vmap", "loop"])
def test_members_train_as_three_alone(engine: Any) -> None:
    def trainer(model: Any) -> MetaTrainer:
        return MetaTrainer(model, TASKS, learner=partial(ProtoNet, engine=engine), **SETTINGS)

    members = trainer(Ensemble.from_factory(network, range(3)))
    members.fit()
    for index in range(3):
        alone = trainer(network(index))
        alone.fit()
        member = dict(members.ensemble.member(index).named_parameters())  # type: ignore[union-attr]
        for name, value in alone.module.named_parameters():
            torch.testing.assert_close(member[name], value, rtol=2e-4, atol=2e-5)
    report = members.test(5)
    assert report.members is not None and report.members.losses.shape == (3, 2, 1)


def test_a_stopped_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    def trainer(**settings: Any) -> MetaTrainer:
        return MetaTrainer(network(), TASKS, learner="protonet", **{**SETTINGS, **settings})

    assert_goes_on(trainer, tmp_path)


def test_it_learns_and_takes_ways_that_differ() -> None:
    tasks = FewShotTasks(patterns(40), way={"train": 4, "test": 3}, shot=1, query=3)
    fast: Any = lambda ps: torch.optim.Adam(ps, lr=1e-2)  # noqa: E731
    settings = {**SETTINGS, "steps": 60, "meta_batch": 8, "eval_every": 60, "optimizer": fast}
    trainer = MetaTrainer(network(), tasks, learner="protonet", **settings)
    before = trainer.test(100).losses[0, 0]
    trainer.fit()
    assert trainer.test(100).losses[0, 0] < 0.9 * before


def test_diagnostics_see_tasks() -> None:
    settings = {**SETTINGS, "diagnostics": ["noise_scale"], "diagnostics_every": 1}
    MetaTrainer(network(), TASKS, learner="protonet", **settings).fit()
    with pytest.raises(SettingError, match="^diagnostics='fisher_trace': "):
        MetaTrainer(network(), TASKS, learner="protonet", diagnostics=["fisher_trace"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"learner": "proto_net"},
            r"^learner='proto_net': known are .*did you mean protonet",
        ),
        ({"learner": "protonet", "maml": MAML()}, "^maml=.*protonet has none, so None is needed"),
        ({"learner": lambda m, kind: m}, "^learner='MLP': what makes a Learner is needed"),
        ({"learner": lambda: None}, r"^learner='<lambda>': what makes a Learner of \(model, kind"),
        ({"learner": lambda model: None}, r"^learner='<lambda>': what makes a Learner of \(model"),
        ({"learner": torch.nn.Linear}, "^learner='Linear': what makes a Learner of"),
        (
            {"learner": type("Fits", (Learner,), {})},
            "^learner='Fits': its class needs fit, predict",
        ),
        ({"learner": type("Odd", (ProtoNet,), {"needs": "x"})}, r"^Odd\.needs='x': logits or feat"),
        ({"learner": network()}, "^learner='MLP': what makes a Learner of"),
        ({"learner": partial(ProtoNet, chunk=2)}, "^learner='ProtoNet': .*'chunk'"),
        ({"learner": partial(ProtoNet, engine="batch")}, "^engine='batch': one of auto, batched"),
        ({"learner": ProtoNet(network())}, "^model='MLP': learner.module is needed"),
    ],
)
def test_bad_input(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        MetaTrainer(network(), TASKS, **settings)


def test_a_learner_that_was_made_elsewhere_than_it_is_to_be_trained_is_refused() -> None:
    learner = ProtoNet(network())
    with pytest.raises(SettingError, match="^device='meta': cpu is needed, where the learner was"):
        MetaTrainer(learner.module, TASKS, learner=learner, device="meta", **SETTINGS)
    assert all(parameter.device.type == "cpu" for parameter in learner.module.parameters())


def test_a_maker_may_have_hints_for_type_checkers_alone() -> None:
    def make(model: Unknown, *, kind: Any) -> Unknown:  # type: ignore[name-defined]  # noqa: F821
        return ProtoNet(model, kind=kind)

    trainer = MetaTrainer(network(), TASKS, learner=make, **SETTINGS)
    assert isinstance(trainer.learner, ProtoNet)


def test_what_is_registered_is_a_learner_under_a_name_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("maml", "fomaml", "protonet"):
        with pytest.raises(SettingError, match=f"^name='{name}': a name that no other learner has"):
            register_learner(name, "")(type("Other", (ProtoNet,), {}))
    with pytest.raises(SettingError, match="^name='': a name is needed"):
        register_learner("", "")
    with pytest.raises(SettingError, match="^learner=3: a subclass of Learner is needed"):
        register_learner("three", "")(3)  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="^learner='Half': its class needs fit, predict"):
        register_learner("half", "")(type("Half", (Learner,), {}))
    monkeypatch.setitem(LEARNERS, "nearest", LEARNERS["protonet"])  # taken out again afterwards
    del LEARNERS["nearest"]
    Nearest = type("Nearest", (ProtoNet,), {})
    for _ in range(2):  # a cell of a notebook that is run twice
        assert register_learner("nearest", "the nearest mean")(Nearest) is Nearest
    trainer = MetaTrainer(network(), TASKS, learner="nearest", **SETTINGS)
    assert isinstance(trainer.learner, Nearest)


def test_ways_by_split_need_a_learner_of_features() -> None:
    tasks = FewShotTasks(patterns(), way={"train": 3, "test": 2}, shot=2, query=2)
    with pytest.raises(SettingError, match="^task.way=.*needs the same way in every split"):
        MetaTrainer(MLP((1, 4, 4), 3), tasks, **SETTINGS)


def test_tasks_that_do_not_fit() -> None:
    with pytest.raises(SettingError, match="^kind='regression': a prototypical network needs"):
        MetaTrainer(MLP((1,), 4), SinusoidTasks(), learner="protonet")
    with pytest.raises(SettingError, match="^steps=2: protonet has no inner loop, so 0 is needed"):
        ProtoNet(network()).score(TASKS.sample("test", [0]), steps=2)
    batch = TASKS.sample("test", [0])
    batch.support[1][batch.support[1] == 1] = 0
    lost = TaskBatch(batch.support, batch.query)
    with pytest.raises(SettingError, match="none of class 1.*every class of a task needs"):
        ProtoNet(network()).score(lost)


def test_a_learner_that_was_made_before() -> None:
    module = network()
    trainer = MetaTrainer(module, TASKS, learner=ProtoNet(module), **SETTINGS)
    assert isinstance(trainer.learner, ProtoNet) and trainer.fit().reason == "finished"
