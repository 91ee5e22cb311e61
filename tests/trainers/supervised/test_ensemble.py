"""Every member is the same network trained alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from metalearn.data import Augmentation
from metalearn.models import MLP, Ensemble
from tests.support.alone import (
    Optimizer,
    assert_member,
    conv_network,
    mlp_network,
    networks,
    train_alone,
)
from tests.support.builders import assert_same, ensemble_trainer, samples

SGD = torch.optim.SGD
OPTIMIZERS: dict[str, Optimizer] = {
    "momentum": partial(SGD, lr=0.05, momentum=0.9, nesterov=True),
    "adam": partial(torch.optim.Adam, lr=0.01),
    "fused adam": partial(torch.optim.Adam, lr=0.01, fused=True),
    "adamw": partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1),
    "rmsprop": partial(torch.optim.RMSprop, lr=0.01, weight_decay=0.1),
}
optimizers = pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
CONSTANT: dict[str, Any] = {"schedule": "constant", "clip": None}


def trained(model: Ensemble, **settings: Any) -> Any:
    """A trainer that has run, and copies of the members as they were before."""
    trainer = ensemble_trainer(model=model, **{**CONSTANT, **settings})
    before = list(trainer.ensemble.members())
    trainer.fit()
    return trainer, before


# --- a member is a solo run ---------------------------------------------------------------------


@optimizers
@pytest.mark.parametrize("engine", ["batched", "loop"])
@pytest.mark.parametrize("make", [conv_network, mlp_network])
def test_members_are_plain_loops(
    make: Callable[..., nn.Module], engine: str, optimizer: Optimizer
) -> None:
    seeds = [4, 0, 7]
    trainer, before = trained(
        networks(make, seeds, dropout=0.3), seeds=seeds, steps=12, engine=engine,
        optimizer=optimizer, schedule="cosine", clip=0.5,
    )  # fmt: skip
    for index, seed in enumerate(seeds):
        alone = before[index]
        stepper = train_alone(
            alone, trainer.data, seed, optimizer, steps=12, schedule="cosine", clip=0.5
        )
        assert_member(trainer, index, alone)
        mine = trainer.optimizer.state_dict()["state"]
        for number, state in stepper.state_dict()["state"].items():
            for name, value in state.items():
                if name != "step":
                    torch.testing.assert_close(
                        mine[number][name][index], value, rtol=1e-10, atol=1e-10
                    )


@pytest.mark.parametrize("engine", ["batched", "loop"])
@pytest.mark.parametrize("make", [conv_network, mlp_network])
def test_members_are_runs_of_one(make: Callable[..., nn.Module], engine: str) -> None:
    seeds = [2, 9, 5]
    settings = {"steps": 10, "engine": engine, "schedule": "cosine"}
    trainer, _ = trained(networks(make, seeds, dropout=0.4), seeds=seeds, **settings)
    for index, seed in enumerate(seeds):
        alone, _ = trained(networks(make, [seed], dropout=0.4), seeds=[seed], **settings)
        one, other = (t.ensemble.member(i) for t, i in ((trainer, index), (alone, 0)))
        assert_same(dict(one.state_dict()), dict(other.state_dict()))
        assert_same(trainer.best_values[index], alone.best_values[0])


def test_networks_are_initialised_as_alone_and_not_touched_before_the_first_step() -> None:
    ensemble = Ensemble.from_factory(lambda s: MLP((1, 4, 4), 3, hidden=(8,), seed=s), [3, 1])
    trainer = ensemble_trainer(model=ensemble, seeds=[3, 1], engine="auto")
    trainer.prepare()
    for index, seed in enumerate((3, 1)):
        alone = MLP((1, 4, 4), 3, hidden=(8,), seed=seed)
        assert_same(dict(ensemble.member(index).state_dict()), dict(alone.state_dict()))


def test_trials_of_engines_leave_running_statistics_alone() -> None:
    trainer = ensemble_trainer(model=networks(conv_network, range(2)), engine="auto")
    before = copy.deepcopy(trainer.ensemble.state_dict())
    trainer.prepare()
    assert "measured: batched" in str(trainer.plan)
    assert_same(dict(trainer.ensemble.state_dict()), dict(before))


@pytest.mark.parametrize("engine", ["batched", "loop"])
def test_members_may_be_permuted(engine: str) -> None:
    order, seeds, rates = [2, 0, 1], [5, 6, 7], [0.1, 0.01, 0.03]
    model = networks(conv_network, seeds, dropout=0.2)
    permuted = networks(conv_network, [seeds[i] for i in order], dropout=0.2)
    settings = {"steps": 8, "engine": engine}
    one, _ = trained(model, seeds=seeds, lr=rates, **settings)
    other, _ = trained(
        permuted, seeds=[seeds[i] for i in order], lr=[rates[i] for i in order], **settings
    )
    for row, index in enumerate(order):
        assert_member(other, row, one.ensemble.member(index), 1e-12)
    torch.testing.assert_close(other.best_values, one.best_values[order], rtol=1e-12, atol=0)
    assert_same(other.best_steps, one.best_steps[order])


def test_members_of_different_architectures_are_runs_of_one() -> None:
    makes = [
        partial(mlp_network, dropout=0.3),
        partial(conv_network, dropout=0.3),
        partial(mlp_network, dropout=0.3),
        partial(mlp_network, hidden=4, dropout=0.3),
    ]
    model = Ensemble.from_modules([make(seed) for seed, make in enumerate(makes)])
    assert len(model.stacks) == 3
    trainer, _ = trained(model, steps=8)
    for seed, make in enumerate(makes):
        alone, _ = trained(networks(make, [seed]), seeds=[seed], steps=8)
        assert_member(trainer, seed, alone.ensemble.member(0))
        assert float(trainer.best_values[seed]) == pytest.approx(float(alone.best_values[0]))


@pytest.mark.parametrize("chunk_size", [1, 2, 3])
@pytest.mark.parametrize("engine", ["batched", "loop"])
def test_chunks_are_the_whole(engine: str, chunk_size: int) -> None:
    seeds = range(3)
    whole, _ = trained(networks(conv_network, seeds), engine=engine)
    parts, _ = trained(networks(conv_network, seeds), engine=engine, chunk_size=chunk_size)
    for index in seeds:
        assert_member(parts, index, whole.ensemble.member(index))


def test_engines_agree() -> None:
    one, other = (
        trained(networks(conv_network, range(3), dropout=0.2), engine=engine)[0]
        for engine in ("batched", "loop")
    )
    for index in range(3):
        assert_member(one, index, other.ensemble.member(index))


# --- data of each member ------------------------------------------------------------------------


def test_bootstrap_and_augmentation_are_each_members_own() -> None:
    augmentation = Augmentation(max_shift=1, flip=True, rotate=20.0)
    trainer, before = trained(
        networks(mlp_network, range(3)), steps=9, bootstrap=True, max_shift=1, flip=True,
        rotate=20.0, optimizer=partial(SGD, lr=0.1),
    )  # fmt: skip
    for seed, alone in enumerate(before):
        train_alone(
            alone, trainer.data, seed, partial(SGD, lr=0.1), steps=9, bootstrap=True,
            augmentation=augmentation,
        )  # fmt: skip
        assert_member(trainer, seed, alone)


def test_a_shared_order_is_that_of_the_first_seed() -> None:
    trainer, before = trained(
        networks(mlp_network, range(3)), seeds=[8, 1, 2], shuffle="shared", flip=True,
        optimizer=partial(SGD, lr=0.1),
    )  # fmt: skip
    for index, alone in enumerate(before):
        flips = Augmentation(flip=True)
        train_alone(alone, trainer.data, 8, partial(SGD, lr=0.1), steps=6, augmentation=flips)
        assert_member(trainer, index, alone)


# --- the gradient's memory ------------------------------------------------------------------------


def test_a_small_memory_takes_members_in_chunks() -> None:
    model = networks(conv_network, range(6))
    free = ensemble_trainer(model=copy.deepcopy(model), memory="1GB", **CONSTANT)
    free.fit()
    assert free.plan.chunk_size is None
    text = str(free.plan)
    amount, unit = text.split("about ")[1].split()[:2]
    size = float(amount) * {"kB": 1e3, "MB": 1e6}[unit.strip(";")]
    tight = ensemble_trainer(model=copy.deepcopy(model), memory=int(0.6 * size), **CONSTANT)
    tight.fit()
    assert tight.plan.chunk_size in (2, 3)
    assert "all would need" in str(tight.plan)
    for index in range(6):
        assert_member(tight, index, free.ensemble.member(index))


def test_samples_can_be_learnt_and_scores_are_those_of_the_members() -> None:
    """A check of the whole: members learn, predictions are their logits in evaluation mode."""
    data = samples()
    trainer, _ = trained(networks(conv_network, range(3)), data=data, steps=60)
    trainer.load_best()
    x, y = data.part("test")
    logits = trainer.predict(x)
    report = trainer.test().report
    for index, member in enumerate(trainer.ensemble.members()):
        own = member.eval()(x)
        torch.testing.assert_close(logits[index], own, rtol=1e-10, atol=1e-10)
        accuracy = float((own.argmax(-1) == y).double().mean())
        assert float(report.members.accuracy[index]) == pytest.approx(accuracy)
        assert accuracy > 0.5  # chance is a third
