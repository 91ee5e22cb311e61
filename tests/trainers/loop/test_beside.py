"""Values that are learnt beside a module: stepped, clipped, kept, saved and put back with it.

Axes: M members.
"""

from __future__ import annotations

import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metalearn.checkpoint import load_checkpoint, save_checkpoint
from metalearn.errors import DataError, NonFiniteError
from metalearn.models import MLP, Ensemble
from metalearn.trainers.members.population import Population
from metalearn.trainers.members.trained import trained_parameters, trained_state
from metalearn.trainers.members.update import MemberUpdate
from tests.support.builders import (
    Scripted,
    assert_same,
    drawn_gradient,
    last,
    linear,
    signal_in_step,
    state_of,
)

OPTIMIZERS = {
    "sgd": partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    "adamw": partial(torch.optim.AdamW, lr=0.05, weight_decay=0.1),
}
optimizers = pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)


class Values(nn.Module):
    """A scalar and a vector; of members, with M in front."""

    def __init__(self, *lead: int) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.full(lead, 0.3))
        self.inside = nn.Module()
        self.inside.weights = nn.Parameter(
            torch.linspace(0, 1, 4).repeat(*lead, 1).reshape(*lead, 4)
        )


def trainer_of(**settings: Any) -> Scripted:
    settings = {"steps": 6, "clip": 0.5, "eval_every": 2, "schedule": "constant"} | settings
    settings.setdefault("beside", Values())
    settings.setdefault("optimizer", OPTIMIZERS["adamw"])
    return Scripted([0.2, 0.9, 0.1, 0.1], **settings)


@optimizers
@pytest.mark.parametrize("clip", [None, 0.5])
def test_training_is_a_plain_loop_over_both(optimizer: Any, clip: float | None) -> None:
    trainer, module, values = trainer_of(optimizer=optimizer, clip=clip), linear(), Values()
    trainer.fit()
    parameters = [*module.parameters(), *values.parameters()]
    stepper = optimizer(parameters)
    for step in range(6):
        for parameter in parameters:
            parameter.grad = drawn_gradient(step, parameter.detach())
        if clip is not None:
            nn.utils.clip_grad_norm_(parameters, clip)
        stepper.step()
    assert_same(trainer.module.state_dict(), module.state_dict())
    beside = trainer.loop.beside
    assert beside is not None
    assert_same(beside.state_dict(), values.state_dict())
    assert not torch.equal(values.rate.detach(), torch.tensor(0.3))


def test_a_module_trains_as_without_them_where_nothing_is_clipped() -> None:
    with_values, alone = trainer_of(clip=None), trainer_of(clip=None, beside=None)
    with_values.fit()
    alone.fit()
    assert_same(with_values.module.state_dict(), alone.module.state_dict())


@pytest.mark.parametrize("stop", range(1, 6))
def test_a_resumed_run_is_the_whole_one(tmp_path: Path, stop: int) -> None:
    whole, first = trainer_of(folder=tmp_path / "whole"), trainer_of(folder=tmp_path / "run")
    whole.fit()
    signal_in_step(first, stop - 1, signal.SIGTERM)
    first.fit()
    again = trainer_of(folder=tmp_path / "run")
    again.resume(last(tmp_path / "run"))
    assert again.step == stop
    assert_same(state_of(again), state_of(first))
    again.fit()
    assert_same(state_of(again), state_of(whole))
    for name in ("last", "best"):
        saved = [tmp_path / run / "checkpoints" / f"{name}.pt" for run in ("run", "whole")]
        one, other = map(load_checkpoint, saved)
        for part in ("module", "learnt", "optimizer"):
            assert_same(dict(one[part]), dict(other[part]))


def test_a_checkpoint_keeps_the_names_of_both(tmp_path: Path) -> None:
    trainer_of(folder=tmp_path).fit()
    trainer_of(folder=tmp_path / "alone", beside=None).fit()
    saved = load_checkpoint(last(tmp_path))
    assert list(saved["module"]) == ["weight", "bias"]
    assert list(saved["learnt"]) == ["rate", "inside.weights"]
    assert "learnt" not in load_checkpoint(last(tmp_path / "alone"))


@pytest.mark.parametrize("resumed", [False, True])
def test_the_best_of_both_is_restored(tmp_path: Path, resumed: bool) -> None:
    trainer, until = trainer_of(folder=tmp_path), trainer_of(steps=2)
    trainer.fit()
    until.fit()
    if resumed:
        trainer = trainer_of(folder=tmp_path)
        trainer.resume(last(tmp_path))
    assert trainer.best_step == 2
    trainer.load_best()
    assert_same(trainer.module.state_dict(), until.module.state_dict())
    beside, wanted = trainer.loop.beside, until.loop.beside
    assert beside is not None and wanted is not None
    assert_same(beside.state_dict(), wanted.state_dict())


@pytest.mark.parametrize(
    ("saved", "run", "message"),
    [
        (Values(), None, "it has some of what is learnt beside the weights, and the run has none"),
        (None, Values(), "it has none of what is learnt beside the weights, and the run has some"),
        (Values(), Values(2), r"does not fit the run \(learnt"),
    ],
)
def test_a_checkpoint_of_a_run_that_learns_otherwise_is_refused(
    tmp_path: Path, saved: Any, run: Any, message: str
) -> None:
    trainer_of(folder=tmp_path, beside=saved).fit()
    other = trainer_of(beside=run)
    before = state_of(other)
    with pytest.raises(DataError, match=message) as caught:
        other.resume(last(tmp_path))
    assert str(caught.value).startswith(f"{last(tmp_path)}: ")
    assert_same(state_of(other), before)


@pytest.mark.parametrize("name", ["last", "best"])
@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (None, "it has none of what is learnt beside the weights, and the run has some"),
        (3, r"does not fit the run \(learnt"),
        ({}, r"does not fit the run \(learnt"),
        ({"rate": torch.zeros(2), "inside.weights": torch.zeros(4)}, r"fit the run \(learnt"),
    ],
)
def test_a_checkpoint_with_other_values_is_refused(
    tmp_path: Path, name: str, entry: Any, message: str
) -> None:
    trainer_of(folder=tmp_path).fit()
    path = tmp_path / "checkpoints" / f"{name}.pt"
    state = load_checkpoint(path)
    del state["learnt"]
    save_checkpoint(path, state if entry is None else {**state, "learnt": entry})
    with pytest.raises(DataError, match=message) as caught:
        trainer_of().resume(last(tmp_path))
    assert str(caught.value).startswith(f"{path}: ")


def test_values_that_are_not_finite_end_a_training() -> None:
    def gradient(step: int, value: Tensor) -> Tensor:
        return torch.full_like(value, 1e10) if value.dim() == 0 else torch.zeros_like(value)

    big = partial(torch.optim.SGD, lr=1e30)
    trainer = trainer_of(gradient_of=gradient, clip=None, optimizer=big, steps=2)
    with pytest.raises(NonFiniteError, match="parameters that are not finite"):
        trainer.fit()


# --- members --------------------------------------------------------------------------------------


def ensemble_of(kinds: int) -> Ensemble:
    """Three members, the second of another architecture where there are two kinds."""
    sizes = [(3,), (3,) if kinds == 1 else (5,), (3,)]
    return Ensemble.from_modules(
        [MLP((2,), 1, hidden=hidden, seed=seed) for seed, hidden in enumerate(sizes)]
    )


def gradients(ensemble: nn.Module, values: nn.Module) -> dict[str, Tensor]:
    draws = torch.Generator().manual_seed(5)
    named = trained_parameters(ensemble, values)
    return {n: torch.randn(p.shape, generator=draws) for n, p in named.items()}


def of_member(ensemble: Ensemble, grads: dict[str, Tensor], index: int) -> list[Tensor]:
    """A member's part of gradients."""
    found = []
    for name, grad in grads.items():
        rows = range(3)
        if not name.startswith("learnt."):
            rows = ensemble.stacks[int(name.split(".")[1])].indices  # type: ignore[assignment]
        found += [grad[row] for row, member in enumerate(rows) if member == index]
    return found


@pytest.mark.parametrize("kinds", [1, 2])
def test_each_member_is_clipped_with_its_own_values(kinds: int) -> None:
    ensemble, values = ensemble_of(kinds), Values(3)
    grads = gradients(ensemble, values)
    norms = [
        float(torch.cat([g.flatten() for g in of_member(ensemble, grads, i)]).norm())
        for i in range(3)
    ]
    limit = sorted(norms)[1]  # one is below it, one above
    population = Population(
        ensemble, clip=limit, patience=None, larger_is_better=True, beside=values
    )
    clipped, _, _ = population.clip_and_check(
        grads, torch.zeros(3), step=0, suspects=lambda: "nothing"
    )
    torch.testing.assert_close(population.norms, torch.tensor(norms).double())
    for index, norm in enumerate(norms):
        found = of_member(ensemble, dict(clipped), index)
        for one, other in zip(found, of_member(ensemble, grads, index), strict=True):
            torch.testing.assert_close(one, other * min(1.0, limit / norm))


@pytest.mark.parametrize("kinds", [1, 2])
@optimizers
def test_members_step_their_values_as_their_rows(kinds: int, optimizer: Any) -> None:
    """Each at its own rate; one that is frozen stays as it is to the last bit."""
    ensemble, values, rates = ensemble_of(kinds), Values(3), [0.1, 0.2, 0.3]
    before = {n: v.clone() for n, v in trained_state(ensemble, values).items()}
    parameters, grads = trained_parameters(ensemble, values), gradients(ensemble, values)
    made = optimizer(parameters.values())
    for name, parameter in parameters.items():
        parameter.grad = grads[name].clone()
    MemberUpdate(ensemble, made, rates, beside=values)(torch.tensor([True, False, True]), 1.0)
    after = trained_state(ensemble, values)
    for index, rate in enumerate(rates):
        alone = [nn.Parameter(v) for v in of_member(ensemble, before, index)]
        for parameter, grad in zip(alone, of_member(ensemble, grads, index), strict=True):
            parameter.grad = grad
        if index != 1:
            stepper = optimizer(alone)
            stepper.param_groups[0]["lr"] = rate
            stepper.step()
        for one, other in zip(of_member(ensemble, after, index), alone, strict=True):
            tolerance = 0.0 if index == 1 else 1e-6
            torch.testing.assert_close(one, other.detach(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kinds", [1, 2])
def test_a_member_that_diverges_is_put_back_with_its_values(kinds: int) -> None:
    ensemble, values = ensemble_of(kinds), Values(3)
    population = Population(
        ensemble, clip=None, patience=None, larger_is_better=True, beside=values
    )
    population.record_validation(torch.tensor([1.0, 1.0, 1.0]), 0)
    with torch.no_grad():
        values.rate.add_(1.0)
    population.record_validation(torch.tensor([2.0, 0.5, 0.5]), 1)
    torch.testing.assert_close(population.best["learnt.rate"], torch.tensor([1.3, 0.3, 0.3]))
    with torch.no_grad():
        values.inside.weights[1, 2] = torch.nan
    population.check_parameters(2)
    assert population.diverged.tolist() == [False, True, False]
    torch.testing.assert_close(values.rate.detach(), torch.tensor([1.3, 0.3, 1.3]))
    assert torch.equal(values.inside.weights[1], torch.linspace(0, 1, 4))
