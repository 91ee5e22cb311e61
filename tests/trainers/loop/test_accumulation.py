"""Several batches a step: they are one large batch, each by its size, with noise once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from metalearn.errors import NonFiniteError, SettingError
from metalearn.models import MLP, Dropout, Ensemble
from metalearn.tasks import SinusoidTasks
from metalearn.trainers import LoopSettings, SWAGTrainer
from metalearn.trainers.loop.step import StepGradient, added, finish
from tests.contracts.trainers import TRAINERS
from tests.support.builders import (
    Poisoned,
    Recorder,
    Scripted,
    assert_goes_on,
    ensemble_trainer,
    samples,
    sinusoid_trainer,
    state_of,
)

ON_TASKS = ("waves", "waves_learnt_members", "protonet", "mamlpp", "maml_members")
ON_SAMPLES = ("ensemble", "per_sample", "regression", "regression_per_sample")
QUIET: dict[str, Any] = {"steps": 3, "clip": 0.5, "log_every": 1}


def small_and_large(kind: str, **settings: Any) -> tuple[Any, Any]:
    """A training of two batches a step, and one whose batches are twice as large."""
    size = "meta_batch" if kind in ON_TASKS else "batch_size"
    settings = {**QUIET, "diagnostics": (), **settings}
    small = TRAINERS[kind](**settings, **{size: 2}, accumulate=2)
    return small, TRAINERS[kind](**settings, **{size: 4})


@pytest.mark.parametrize("kind", [*ON_TASKS, *ON_SAMPLES])
def test_two_batches_are_one_that_is_twice_as_large(kind: str) -> None:
    one, other = (Recorder(), Recorder())
    small, large = small_and_large(kind)
    small.tracker, large.tracker = one, other
    first = [trainer.gradient(0) for trainer in (small, large)]
    assert first[0].count == first[1].count == 4
    small.fit(), large.fit()
    for name in ("train/loss", "train/gradient_norm"):
        assert one.series(name) == pytest.approx(other.series(name), rel=1e-4)
    for name, value in small.module.state_dict().items():
        torch.testing.assert_close(value, large.module.state_dict()[name], rtol=2e-3, atol=2e-5)


def test_noise_is_added_once() -> None:
    small, large = small_and_large("per_sample", noise_multiplier=2.0, max_norm=0.3, clip=None)
    for step in range(2):
        one, other = small.gradient(step), large.gradient(step)
        for name, grad in other.grads.items():
            torch.testing.assert_close(one.grads[name], grad, rtol=1e-3, atol=1e-5)
    quiet, _ = small_and_large("per_sample", max_norm=0.3, clip=None)
    noise = [
        (grad - quiet.gradient(0).grads[name]).flatten()
        for name, grad in small.gradient(0).grads.items()
    ]
    assert float(torch.cat(noise).std()) == pytest.approx(2.0 * 0.3 / 4, rel=0.3)


class Uneven:
    """Batch i has ``sizes[i]`` samples, each of gradient i + 1 and loss 10·(i + 1)."""

    def __init__(self, sizes: tuple[int, ...], divisor: str) -> None:
        self.sizes, self.divisor = sizes, divisor

    def of(self, index: int) -> StepGradient:
        size = self.sizes[index]
        divisor = float(max(size, 1) if self.divisor == "means" else 1)
        total = torch.full((2,), size * (index + 1.0))
        grads, losses = {"weight": total / divisor}, total[:1] * 10 / divisor
        numbers = {"share": torch.tensor(float(index))}
        moved = {"mean": torch.full((2,), float(index)), "counter": torch.tensor(index)}
        return StepGradient(grads, losses, size, divisor, scalars=numbers, buffers=moved)


@pytest.mark.parametrize("divisor", ["means", "sums"])
@pytest.mark.parametrize("sizes", [(3, 1), (1, 4, 2), (5, 0, 9), (0, 2)])
def test_batches_count_by_their_size(sizes: tuple[int, ...], divisor: str) -> None:
    made = Uneven(sizes, divisor)
    total = made.of(0)
    for index in range(1, len(sizes)):
        total = added(total, made.of(index))
    found = finish(total)
    wanted = sum(size * (i + 1.0) for i, size in enumerate(sizes)) / sum(sizes)
    torch.testing.assert_close(found.grads["weight"], torch.full((2,), wanted))
    torch.testing.assert_close(found.losses, torch.tensor([10 * wanted]))
    assert found.count == sum(sizes) and found.processed == sum(sizes)
    share = sum(size * i for i, size in enumerate(sizes)) / sum(sizes)
    assert float(found.scalars["share"]) == pytest.approx(share)
    torch.testing.assert_close(found.buffers["mean"], torch.full((2,), share))
    assert int(found.buffers["counter"]) == len(sizes) - 1


def test_batches_of_chance_are_divided_by_what_is_expected_of_all() -> None:
    """(Σ over both + z) / (L + L), also where one is empty."""
    seen: list[float] = []

    def noise(grads: Mapping[str, Tensor], normalizer: float) -> dict[str, Tensor]:
        seen.append(normalizer)
        return {name: grad + 1 / normalizer for name, grad in grads.items()}

    made = Uneven((7, 0), "means")
    parts = [replace(made.of(i), normalizer=4.0, noise=noise) for i in range(2)]
    found = finish(added(*parts))
    torch.testing.assert_close(found.grads["weight"], torch.full((2,), (7.0 + 1) / 8))
    assert seen == [8.0]


def test_tasks_that_are_not_finite_are_named_of_their_batch() -> None:
    tasks = Poisoned(SinusoidTasks(shot=4, query=4), [5])
    trainer = sinusoid_trainer(tasks=tasks, accumulate=3, meta_batch=2, steps=2)
    with pytest.raises(NonFiniteError, match=r"from training tasks 5(;|$)"):
        trainer.fit()


def test_batches_are_counted_over_the_training() -> None:
    trainer = Scripted(steps=3, accumulate=2)
    drawn: list[int] = []
    draw = trainer.objective.batch
    trainer.objective.batch = lambda index: drawn.append(index) or draw(index)  # type: ignore
    trainer.fit()
    assert drawn == [0, 1, 2, 3, 4, 5] and trainer.seen == [0, 0, 1, 1, 2, 2]


def test_what_is_annealed_goes_by_steps() -> None:
    """MAML++ anneals over the steps of a training, and what looks on sees the same step."""
    trainer: Any = TRAINERS["mamlpp"](accumulate=2, steps=4)
    assert [trainer.loop.objective.batch(i).step for i in range(4)] == [0, 0, 1, 1]


def test_masks_of_dropout_are_those_of_each_batch() -> None:
    data = samples()

    def network(seed: int) -> torch.nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return torch.nn.Sequential(torch.nn.Flatten(), Dropout(0.5), torch.nn.Linear(16, 3))

    model = Ensemble.from_factory(network, [0])
    trainer = ensemble_trainer(model=model, data=data, accumulate=2, steps=2)
    (layer,) = [layer for layer in trainer.module.modules() if isinstance(layer, Dropout)]
    draws: list[int] = []
    gradient = trainer.loop.objective.gradient

    def noted(*given: Any, **named: Any) -> StepGradient:
        draws.append(int(layer.draw))
        return gradient(*given, **named)

    trainer.loop.objective.gradient = noted
    trainer.fit()
    assert draws == [0, 1, 2, 3]


@pytest.mark.parametrize("kind", ["waves", "sweep", "per_sample"])
def test_it_goes_on_where_it_was_stopped(kind: str, tmp_path: Path) -> None:
    assert_goes_on(partial(TRAINERS[kind], accumulate=2), tmp_path)


def test_one_batch_a_step_is_what_it_was() -> None:
    one, other = TRAINERS["waves"](), TRAINERS["waves"](accumulate=1)
    one.fit(), other.fit()
    assert str(state_of(one)) == str(state_of(other))


@pytest.mark.parametrize("value", [0, -1, 1.5, True, None])
def test_numbers_of_batches_out_of_range(value: Any) -> None:
    with pytest.raises(SettingError, match=r"^accumulate=.*: a whole number of at least 1 is"):
        LoopSettings(accumulate=value)


def test_an_epoch_of_iterates_has_fewer_steps() -> None:
    data = samples()  # 30 of them to train on
    model = Ensemble.from_factory(lambda seed: MLP((1, 4, 4), 3, hidden=(4,)), [0])
    settings: Any = {"members": 2, "steps": 24, "batch_size": 5, "start": 0.25}
    assert SWAGTrainer(model, data, **settings).collector.every == 6
    assert SWAGTrainer(model, data, accumulate=4, **settings).collector.every == 2
