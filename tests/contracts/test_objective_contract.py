"""What every objective promises: a batch and its gradient follow from the step, and add up."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from metalearn.core.tree import tree_map
from metalearn.trainers.loop.step import StepGradient
from metalearn.trainers.meta.objective import MetaBatch
from metalearn.trainers.supervised.batches import have_member_axis
from metalearn.types import TaskBatch
from tests.contracts.trainers import TRAINERS, WITHOUT_DIAGNOSTICS, Make
from tests.support.builders import Recorder, assert_same

objectives = pytest.mark.parametrize("make", TRAINERS.values(), ids=TRAINERS)
drawn = pytest.mark.parametrize(
    "make", [make for name, make in TRAINERS.items() if name != "scripted"],
    ids=[name for name in TRAINERS if name != "scripted"],
)  # fmt: skip


def plain(batch: Any) -> Any:
    if isinstance(batch, MetaBatch):
        return list(batch.indices), batch.tasks, batch.step
    return batch


def gradient_of(trainer: Any, batch: Any, step: int) -> StepGradient:
    found: StepGradient = trainer.loop.objective.gradient(trainer.loop.params, batch, step=step)
    return found


def halves(batch: Any) -> list[Any]:
    """The first sample, or task, of a batch, and the rest; of every member."""
    if isinstance(batch, MetaBatch):
        parts = [slice(0, 1), slice(1, None)]
        return [
            MetaBatch(
                batch.indices[p],
                lambda _, p=p: TaskBatch(*tree_map(lambda v: v[p], batch.tasks)),
                batch.step,
            )
            for p in parts
        ]
    x, y, *which = batch  # ``which`` run the samples are scored after
    if have_member_axis(y):
        return [(x[:, :1], y[:, :1], *which), (x[:, 1:], y[:, 1:], *which)]
    return [(x[:1], y[:1], *which), (x[1:], y[1:], *which)]


@objectives
def test_a_batch_follows_from_the_step(make: Make) -> None:
    one, other = make().loop.objective, make().loop.objective
    for objective in (one, other):
        objective.prepare()
    first = plain(one.batch(3))
    one.batch(0)
    assert_same(plain(one.batch(3)), first)
    assert_same(plain(other.batch(3)), first)


@drawn
def test_a_gradient_follows_from_the_step(make: Make) -> None:
    trainer: Any = make()
    objective = trainer.loop.objective
    objective.prepare()
    one = gradient_of(trainer, objective.batch(2), 2)
    gradient_of(trainer, objective.batch(0), 0)
    again = gradient_of(trainer, objective.batch(2), 2)
    assert_same(dict(one.grads), dict(again.grads))
    assert_same(one.losses, again.losses)
    assert set(one.grads) <= set(trainer.loop.params)
    assert one.losses.shape == trainer.active.shape


@pytest.mark.parametrize("name", [name for name in TRAINERS if name != "scripted"])
def test_each_batch_is_drawn_once(name: str) -> None:
    """By gradient, records and diagnostics together; the first one is looked at beforehand."""
    looked: Any = {"diagnostics": ["gradient_norms"], "diagnostics_every": 1}
    looked = {} if name in WITHOUT_DIAGNOSTICS else looked
    trainer: Any = TRAINERS[name](tracker=Recorder(), log_every=1, eval_every=100, **looked)
    objective, counted = trainer.loop.objective, Counter[Any]()
    source = "batches" if hasattr(objective, "batches") else "tasks"
    original = getattr(objective, source)

    class Counting:
        def __getattr__(self, name: str) -> Any:
            return getattr(original, name)

        def sample(self, split: str, indices: Any, **given: Any) -> Any:
            if split == "train" and objective.unit == "tasks":
                counted.update(indices)
            return original.sample(split, indices, **given)

        def training_samples(self, indices: Any, *given: Any, **named: Any) -> Any:
            counted.update(indices)
            return original.training_samples(indices, *given, **named)

        def __call__(self, step: int) -> Any:
            counted[step] += 1
            return original(step)

    setattr(objective, source, Counting())
    trainer.fit()
    size = 1 if source == "batches" else trainer.meta_batch
    numbers = range(size, 6 * size)  # of batches, or of tasks, which may come several steps at once
    assert {number: counted[number] for number in numbers} == dict.fromkeys(numbers, 1)


@drawn
def test_sums_over_parts_are_the_sum_over_the_whole(make: Make) -> None:
    """So ranks may share a batch: what they add up are gradients and losses times divisor."""
    trainer: Any = make()
    trainer.loop.objective.prepare()
    batch = trainer.loop.objective.batch(1)
    whole, parts = (
        gradient_of(trainer, batch, 1),
        [gradient_of(trainer, b, 1) for b in halves(batch)],
    )
    assert sum(part.count for part in parts) == whole.count
    for name, grad in whole.grads.items():
        found = torch.stack([part.grads[name] * part.divisor for part in parts]).sum(0)
        torch.testing.assert_close(found, grad * whole.divisor, rtol=1e-3, atol=1e-4)
    losses = torch.stack([part.losses * part.divisor for part in parts]).sum(0)
    torch.testing.assert_close(losses, whole.losses * whole.divisor, rtol=1e-4, atol=1e-5)


@objectives
def test_a_state_goes_round(make: Make) -> None:
    one, other = make().loop.objective, make().loop.objective
    one.prepare()
    state = one.state()
    for kind in other.state_kinds():
        kind(state, "extra")
    other.load_state(state)
    other.prepare()
    assert_same(other.state(), state)
