"""Groups of parameters by pattern: against torch's own groups, and what is refused."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW

from metalearn import Ensemble
from metalearn.errors import SettingError
from metalearn.models import MLP
from metalearn.tasks import SinusoidTasks
from metalearn.trainers import MAML, MetaTrainer, ParameterGroups
from metalearn.trainers.loop.outer_optimizer import make_optimizer
from tests.support.builders import (
    Scripted,
    assert_goes_on,
    assert_same,
    drawn_gradient,
    ensemble_trainer,
    linear,
    samples,
)


def plain(number: float = 0.01, kind: Any = SGD, **options: Any) -> Any:
    return partial(kind, lr=number, **options)


@pytest.mark.parametrize("kind", [SGD, Adam, AdamW])
def test_groups_are_those_of_torch(kind: Any) -> None:
    make = ParameterGroups(plain(0.01, kind, weight_decay=0.1), [{"params": "bias", "lr": 0.3}])
    trainer = Scripted(steps=5, optimizer=make, clip=None, schedule="constant")
    other = linear()
    groups = [{"params": [other.weight]}, {"params": [other.bias], "lr": 0.3}]
    optimizer = kind(groups, lr=0.01, weight_decay=0.1)
    for step in range(5):
        for value in other.parameters():
            value.grad = drawn_gradient(step, value.detach())
        optimizer.step()
    trainer.fit()
    assert_same(trainer.module.state_dict(), other.state_dict())


def test_the_schedule_is_for_all_groups() -> None:
    make = ParameterGroups(plain(0.1), [{"params": "bias", "lr": 0.5}])
    ones: Any = lambda step, value: torch.ones_like(value)  # noqa: E731
    trainer = Scripted(steps=4, optimizer=make, clip=None, schedule="linear", gradient_of=ones)
    before = {n: p.detach().clone() for n, p in trainer.module.named_parameters()}
    trainer.fit()
    for name, rate in (("weight", 0.1), ("bias", 0.5)):
        moved = before[name] - dict(trainer.module.named_parameters())[name]
        torch.testing.assert_close(moved, torch.full_like(moved, rate * 2.5))


def test_members_go_by_their_own_names() -> None:
    """Every member as if it were trained alone with the same groups."""
    data = samples()

    def network(seed: int) -> MLP:
        return MLP(data.input_shape, data.outputs, hidden=(8,), seed=seed)

    patterns = [name for name, _ in network(0).named_parameters()]
    groups = [{"params": patterns[0], "lr": 0.2}, {"params": "*.bias", "weight_decay": 0.0}]
    make = ParameterGroups(plain(0.01, AdamW, weight_decay=0.5), groups)
    settings: Any = {"data": data, "optimizer": make, "steps": 4}
    together = ensemble_trainer(
        model=Ensemble.from_factory(network, [3, 4]), seeds=[3, 4], **settings
    )
    together.fit()
    for index, seed in enumerate((3, 4)):
        model = Ensemble.from_factory(network, [seed])
        alone = ensemble_trainer(model=model, seeds=[seed], **settings)
        alone.fit()
        one, other = (t.ensemble.member(i).state_dict() for t, i in ((together, index), (alone, 0)))
        for name, value in one.items():
            torch.testing.assert_close(value, other[name])


@pytest.mark.parametrize("members", [0, 2])
def test_what_is_learnt_beside_the_weights_has_a_name(members: int) -> None:
    make = ParameterGroups(plain(0.001), [{"params": "learnt.*", "lr": 0.0}])
    maml = MAML(inner_lr=0.02, learn=["lr"], lr_per="parameter")
    model: Any = MLP((1,), 1, hidden=(6,))
    if members:
        model = Ensemble.from_factory(lambda seed: MLP((1,), 1, hidden=(6,), seed=seed), range(2))
    quiet: Any = {"steps": 3, "meta_batch": 2, "validation_tasks": 2, "progress": False}
    trainer = MetaTrainer(model, SinusoidTasks(shot=3, query=3), maml=maml, optimizer=make, **quiet)
    beside: Any = trainer.loop.beside
    before = [p.detach().clone() for p in (*beside.parameters(), *trainer.module.parameters())]
    trainer.fit()
    after = [*beside.parameters(), *trainer.module.parameters()]
    count = len(list(beside.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(before[:count], after[:count]))
    assert all(not torch.equal(a, b) for a, b in zip(before[count:], after[count:]))


def test_all_parameters_may_be_in_groups() -> None:
    make = ParameterGroups(plain(), [{"params": "*ight", "lr": 1.0}, {"params": "b*", "lr": 2.0}])
    optimizer = make_optimizer(make, linear())
    assert [group["lr"] for group in optimizer.param_groups] == [1.0, 2.0]


def test_a_training_by_groups_goes_on(tmp_path: Any) -> None:
    make = ParameterGroups(plain(0.01, Adam), [{"params": "bias", "lr": 0.3, "betas": [0.5, 0.9]}])
    assert_goes_on(lambda **given: Scripted(steps=6, optimizer=make, **given), tmp_path)


GROUP = {"params": "bias"}


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (
            [{"params": "head.*", "lr": 1.0}],
            r"^optimizer\.groups='head\.\*': a pattern that matche",
        ),
        (
            [{**GROUP, "lr": 1.0}, {"params": "*", "lr": 2.0}],
            r"groups='bias': a parameter is in one ",
        ),
        (
            [{**GROUP, "lr": 1.0}, {"params": ["b*"], "lr": 2.0}],
            r"bias and \['b\*'\] both match it",
        ),
        ([GROUP], r"^optimizer\.groups=\{'params': 'bias'\}: mappings with params, a pattern"),
        ([{"lr": 1.0}], r"^optimizer\.groups=\{'lr': 1\.0\}: mappings with params"),
        ([{"params": 3, "lr": 1.0}], "mappings with params"),
        ([{"params": [], "lr": 1.0}], "mappings with params"),
        ([{"params": [nn.Parameter(torch.ones(1))], "lr": 1.0}], "mappings with params"),
        ([{**GROUP, "lrr": 1.0}], r"^optimizer\.groups\.lrr=1\.0: Adam has no such option"),
        (
            [{**GROUP, "momentum": 0.9}],
            r"groups\.momentum=0\.9: Adam has no such .* it has .*betas",
        ),
        ([{**GROUP, "lr": -1.0}], "torch refuses these options: Invalid learning rate: -1"),
        ([{**GROUP, "betas": (0.9, 2.0)}], "torch refuses these options: Invalid beta"),
        ([{**GROUP, "betas": 0.9}], r"groups\.betas=0\.9: a value like Adam's own, \(0\.9, 0\.999"),
        ([{**GROUP, "lr": "fast"}], r"groups\.lr='fast': a value like Adam's own"),
        ([{**GROUP, "lr": True}], r"groups\.lr=True: a value like Adam's own"),
        ([{**GROUP, "amsgrad": 1}], r"groups\.amsgrad=1: a value like Adam's own, False"),
        ([{**GROUP, "lr": float("nan")}], "settings that give a finite step|Invalid learning rate"),
        ("bias", "^groups='bias': a list of mapping"),
        ({"params": "bias"}, "^groups="),
        ([3], "^groups="),
    ],
)
def test_groups_that_cannot_work(groups: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        make_optimizer(ParameterGroups(plain(0.01, Adam), groups), linear())


def test_options_may_need_those_of_all() -> None:
    """Nesterov's momentum is refused without momentum, which stands in the common options."""
    groups = [{"params": "bias", "nesterov": True}]
    made = make_optimizer(ParameterGroups(plain(momentum=0.9), groups), linear())
    assert [group["nesterov"] for group in made.param_groups] == [False, True]
    with pytest.raises(SettingError, match="Nesterov momentum requires a momentum"):
        make_optimizer(ParameterGroups(plain(), groups), linear())


def test_members_of_their_own_rates_have_no_groups() -> None:
    make = ParameterGroups(plain(), [{"params": "*.bias", "lr": 0.1}])
    with pytest.raises(SettingError, match=r"^optimizer\.groups=2: one group is needed beside lr"):
        ensemble_trainer(optimizer=make, lr=[0.1, 0.2, 0.3])
