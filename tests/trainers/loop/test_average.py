"""The average of the weights: against a plain loop, in every trainer, over stops and endings."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metalearn import Ensemble
from metalearn.checkpoint import load_checkpoint
from metalearn.errors import SettingError
from metalearn.schema import Misfit
from metalearn.trainers import LoopSettings, SnapshotTrainer, SWAGTrainer
from metalearn.trainers.members.trained import trained_state
from tests.contracts.trainers import TRAINERS
from tests.support.builders import (
    Scripted,
    assert_goes_on,
    assert_same,
    ensemble_trainer,
    last,
    linear,
    samples,
    signal_in_step,
)

KINDS = (
    "scripted", "waves", "waves_learnt", "waves_learnt_members", "protonet_members", "ensemble",
    "sweep", "per_sample",
)  # fmt: skip
DECAY = 0.3  # that of the warm-up is 0.1, 0.18, 0.25, and then larger
State = dict[str, Tensor]


def state_now(trainer: Any) -> State:
    state = trained_state(trainer.module, trainer.loop.beside)
    return {name: value.detach().clone() for name, value in state.items()}


def followed(trainer: Any) -> list[State]:
    """States of a training before its first step and after each, as they come about."""
    states, update = [state_now(trainer)], trainer.loop.update

    class Noted:
        def __getattr__(self, name: str) -> Any:
            return getattr(update, name)

        def __call__(self, *given: Any) -> None:
            update(*given)
            states.append(state_now(trainer))

    trainer.loop.update = Noted()
    return states


def averaged(states: list[State], decay: float) -> State:
    """In float64, a step at a time."""
    found = {n: v.double() if v.is_floating_point() else v for n, v in states[0].items()}
    for t, state in enumerate(states[1:]):
        d = min(decay, (1 + t) / (10 + t))
        for name, value in state.items():
            floating = value.is_floating_point()
            found[name] = d * found[name] + (1 - d) * value.double() if floating else value
    return found


def assert_close(one: State, other: State) -> None:
    assert set(one) == set(other)
    for name, value in one.items():
        torch.testing.assert_close(value.double(), other[name].double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_average_is_that_of_a_plain_loop(kind: str) -> None:
    trainer: Any = TRAINERS[kind](average=DECAY)
    states = followed(trainer)
    trainer.fit()
    wanted = averaged(states, DECAY)
    assert_same(state_now(trainer), states[-1])
    assert_close(trainer.loop.average.values, wanted)
    with trainer.averaged():
        assert_close(state_now(trainer), wanted)
    assert_same(state_now(trainer), states[-1])
    moved = [n for n, v in states[-1].items() if (v.double() - wanted[n].double()).abs().max() > 0]
    assert moved, "an average that is the weights themselves shows nothing"


def test_validation_and_the_best_are_of_the_average(tmp_path: Path) -> None:
    trainer: Any = TRAINERS["ensemble"](average=DECAY, folder=tmp_path, eval_every=2)
    trainer.fit()
    bare = ensemble_trainer()
    bare.module.load_state_dict(trainer.loop.average.values)
    assert trainer.validate() == pytest.approx(bare.validate())
    for index, step in enumerate(trainer.best_steps.tolist()):
        again = TRAINERS["ensemble"](average=DECAY, steps=6)
        states = followed(again)
        again.fit()
        wanted = averaged(states[: step + 1], DECAY)
        for name, value in trainer.loop.population.best.items():
            torch.testing.assert_close(value[index].double(), wanted[name][index].double())
    trainer.load_best()
    assert_same(dict(trainer.module.state_dict()), dict(trainer.loop.population.best))
    saved = load_checkpoint(tmp_path / "checkpoints" / "best.pt")["module"]
    assert_same(dict(saved), dict(trainer.loop.population.best))
    assert trainer.validate()["validation/member_loss"] == pytest.approx(trainer.best_value)


def test_running_statistics_are_averaged_and_counters_are_not() -> None:
    def normed(seed: int) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            layers = nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)
            return nn.Sequential(*layers)

    model = Ensemble.from_factory(normed, range(2))
    trainer = ensemble_trainer(model=model, data=samples(), average=DECAY)
    states = followed(trainer)
    trainer.fit()
    wanted: Any = averaged(states, DECAY)
    values: Any = trainer.loop.average.values  # type: ignore[union-attr]
    statistics = [name for name in values if "running" in name]
    assert len(statistics) == 2
    for name in statistics:
        torch.testing.assert_close(values[name].double(), wanted[name])
        assert not torch.equal(values[name], states[-1][name])
    (counter,) = [name for name in values if "num_batches" in name]
    assert torch.equal(values[counter], states[-1][counter])


@pytest.mark.parametrize("kind", KINDS)
def test_an_average_goes_on_where_it_was_stopped(kind: str, tmp_path: Path) -> None:
    made: list[Any] = []

    def make(**settings: Any) -> Any:
        made.append(TRAINERS[kind](average=DECAY, **settings))
        return made[-1]

    whole = assert_goes_on(make, tmp_path)
    assert_same(made[-1].loop.average.state(), whole.loop.average.state())
    assert whole.loop.average.updates == 6


def test_a_training_without_an_average_goes_on_with_one(tmp_path: Path) -> None:
    first = Scripted(steps=6, folder=tmp_path)
    signal_in_step(first, 2, signal.SIGTERM)
    first.fit()
    again = Scripted(steps=6, folder=tmp_path, average=DECAY)
    again.resume(last(tmp_path))
    states = followed(again)
    again.fit()
    average: Any = again.loop.average
    assert average.updates == 3
    assert_close(average.values, averaged(states, DECAY))
    plain = Scripted(steps=8, folder=tmp_path)
    plain.resume(last(tmp_path))
    assert plain.loop.average is None and plain.fit().step == 8


def test_weights_that_are_put_in_later_are_where_it_starts() -> None:
    trainer = Scripted(steps=3, average=0.9)
    trainer.module.load_state_dict(linear(seed=5).state_dict())
    with trainer.averaged():
        assert_same(state_now(trainer), dict(linear(seed=5).state_dict()))
    states = followed(trainer)
    trainer.fit()
    average: Any = trainer.loop.average
    assert_close(average.values, averaged(states, 0.9))


@pytest.mark.parametrize("damage", [{"weight": torch.zeros(5)}, 3, {}])
def test_an_average_that_does_not_fit_is_refused(damage: Any) -> None:
    (kind,) = Scripted(steps=1, average=DECAY).loop.average.state_kinds()  # type: ignore[union-attr]
    with pytest.raises(Misfit, match="average"):
        kind({"average": damage, "average_updates": 1}, "")


def test_members_that_are_frozen_keep_their_average() -> None:
    trainer = ensemble_trainer(average=DECAY, steps=8)
    average: Any = trainer.loop.average
    states = followed(trainer)
    trainer.loop.population.freeze(1, "for the test")
    before = {name: value.clone() for name, value in average.values.items()}
    trainer.fit()
    wanted = averaged(states, DECAY)
    for name, value in average.values.items():
        assert torch.equal(value[1], before[name][1])
        torch.testing.assert_close(value[[0, 2]].double(), wanted[name][[0, 2]].double())


def test_a_member_that_diverged_is_scored_at_its_best() -> None:
    trainer = ensemble_trainer(average=DECAY, steps=4, eval_every=2)
    average, population = trainer.loop.average, trainer.loop.population
    trainer.fit()
    population.put_back(1, 4, "loss nan")
    with trainer.averaged():
        for name, value in trainer.module.state_dict().items():
            assert torch.equal(value[1], population.best[name][1])
    assert average is not None and not torch.equal(*(v[0] for v in _pair(trainer)))


def _pair(trainer: Any) -> tuple[Tensor, Tensor]:
    name = next(iter(trainer.loop.average.values))
    return trainer.loop.average.values[name], trainer.module.state_dict()[name]


def test_narrow_weights_are_averaged_in_float32() -> None:
    module = linear().to(torch.bfloat16)
    small = Scripted(steps=40, module=module, average=0.99, gradient_of=lambda s, v: v)
    states = followed(small)
    small.fit()
    average: Any = small.loop.average
    assert {value.dtype for value in average.values.values()} == {torch.float32}
    assert_close(average.values, averaged(states, 0.99))


def test_a_broken_validation_leaves_the_weights() -> None:
    trainer = Scripted(steps=3, average=DECAY)
    trainer.fit()
    before = state_now(trainer)
    with pytest.raises(RuntimeError, match="broken"), trainer.averaged():
        raise RuntimeError("broken")
    assert_same(state_now(trainer), before)


@pytest.mark.parametrize("value", [0, 1, -0.5, 1.5, True, "0.9", float("nan")])
def test_decays_out_of_range(value: Any) -> None:
    with pytest.raises(SettingError, match=r"^average=.*: a number in \(0, 1\) is needed$"):
        LoopSettings(average=value)


@pytest.mark.parametrize("kind", [SnapshotTrainer, SWAGTrainer])
def test_ensembles_of_iterates_have_no_average(kind: Any) -> None:
    data = samples()
    model = Ensemble.from_factory(lambda seed: nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), [0])
    with pytest.raises(SettingError, match=r"^average=0\.9: null is needed: members are made of"):
        kind(model, data, members=2, steps=8, batch_size=8, average=0.9)
