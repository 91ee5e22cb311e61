"""A step's five functions: sums and means, empty batches, noise, ranks, buffers, compilation.

Axes: B samples of a batch, F features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metalearn.errors import SettingError
from metalearn.ranks import Share
from metalearn.trainers import LoopSettings
from metalearn.trainers.loop.assembly import assemble, place
from metalearn.trainers.loop.protocols import Callback, Evaluation, Stateless, Training
from metalearn.trainers.loop.reduction import reduced
from metalearn.trainers.loop.step import StepGradient, finish
from metalearn.trainers.members.rows import OneNetwork
from metalearn.trainers.trainer import Trainer
from metalearn.types import Params
from tests.support.builders import Recorder, linear
from tests.support.rank_threads import ThreadRanks, on_ranks

SAMPLES = 12


def data() -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(1)
    x = torch.randn(SAMPLES, 3, generator=draws, dtype=torch.float64)
    return x, torch.randn(SAMPLES, 2, generator=draws, dtype=torch.float64)


def squares(params: Params, x: Tensor, y: Tensor) -> Tensor:
    """Sum over samples of squared errors of a linear map."""
    return (x @ params["weight"].mT + params["bias"] - y).square().sum()


class Sums(Stateless):
    """Sums, not means, over the samples of a part of each batch."""

    unit = "samples"

    def __init__(self, sizes: tuple[int, ...] = (SAMPLES,)) -> None:
        self.sizes, self.drawn = sizes, 0

    def prepare(self) -> None:
        return

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        self.drawn += 1
        size = self.sizes[step % len(self.sizes)]
        return tuple(part[:size] for part in data())  # type: ignore[return-value]

    def gradient(self, params: Params, batch: tuple[Tensor, Tensor], *, step: int) -> StepGradient:
        grads, loss = torch.func.grad_and_value(squares)(params, *batch)
        return StepGradient(grads, loss[None], len(batch[0]))

    def unused_parameters(self) -> list[str]:
        return []

    def records(self, batch: Any, gradient: StepGradient, *, step: int) -> dict[str, float]:
        return {"train/batch": float(len(batch[0]))}


class Means(Sums):
    """The same, divided by the count already."""

    def gradient(self, params: Params, batch: tuple[Tensor, Tensor], *, step: int) -> StepGradient:
        return divided(super().gradient(params, batch, step=step))


def divided(sums: StepGradient) -> StepGradient:
    count = sums.count
    grads = {name: grad / count for name, grad in sums.grads.items()}
    return replace(sums, grads=grads, losses=sums.losses / count, divisor=count)


class Zero(Stateless):
    monitor, larger_is_better = "validation/loss", False
    bands: Mapping[str, list[str]] = {}

    def __call__(self, step: int) -> Evaluation:
        return Evaluation({self.monitor: 0.0}, torch.zeros(1))


def trainer(objective: Any, steps: int = 5, **rest: Any) -> Trainer:
    module = linear().double()
    device = place(module, "cpu")
    settings = LoopSettings(steps=steps, clip=rest.pop("clip", 0.5), log_every=1)
    loop = assemble(
        module, objective, Zero(), settings=settings, optimizer=sgd, device=device, **rest
    )
    return Trainer(loop)


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def weights(made: Trainer) -> Tensor:
    return torch.cat([p.detach().flatten() for p in made.module.parameters()])


def test_sums_and_means_are_one_training() -> None:
    one, other = trainer(Sums()), trainer(Means())
    one.fit(), other.fit()
    torch.testing.assert_close(weights(one), weights(other), rtol=1e-13, atol=1e-13)
    assert not torch.equal(weights(one), weights(trainer(Sums())))


def test_a_step_is_what_it_says() -> None:
    """Mean gradient, clipped to norm 0.5, times the cosine schedule's rate."""
    made = trainer(Sums(), steps=1)
    start = {n: p.detach().clone().requires_grad_() for n, p in made.module.named_parameters()}
    (squares(start, *data()) / SAMPLES).backward()
    grads = {n: p.grad for n, p in start.items()}
    norm = torch.cat([g.flatten() for g in grads.values()]).norm()  # type: ignore[union-attr]
    factor = min(1.0, 0.5 / (float(norm) + 1e-6))
    assert factor < 1
    made.fit()
    for name, parameter in made.module.named_parameters():
        wanted = start[name].detach() - 0.1 * factor * grads[name]  # type: ignore[operator]
        torch.testing.assert_close(parameter.detach(), wanted, rtol=1e-14, atol=1e-14)


def test_a_batch_is_drawn_once_a_step() -> None:
    objective = Sums()
    trainer(objective, steps=4, tracker=Recorder()).fit()
    assert objective.drawn == 4


# --- what later objectives bring ----------------------------------------------------------------


def test_a_batch_may_be_empty() -> None:
    tracker = Recorder()
    made = trainer(Sums((5, 0, 9)), steps=3, clip=None, tracker=tracker)
    before: list[Tensor] = []

    class Note(Callback):
        def after_update(self, loop: Training) -> None:
            before.append(weights(made).clone())

    made.loop.callbacks += (Note(),)
    made.fit()
    assert torch.equal(before[0], before[1]) and not torch.equal(before[1], before[2])
    assert tracker.series("train/batch") == [5, 0, 9]


def test_a_poisson_batch_with_noise_is_divided_by_what_is_expected() -> None:
    """(Σ_i g_i + z) / L with L expected samples, also where there are none."""
    z = {"weight": torch.full((2, 3), 0.5), "bias": torch.full((2,), -0.5)}

    class Private(Sums):
        def gradient(self, params: Params, batch: Any, *, step: int) -> StepGradient:
            found = super().gradient(params, batch, step=step)

            def noise(grads: Mapping[str, Tensor], normalizer: float) -> dict[str, Tensor]:
                assert normalizer == 4.0
                return {name: grad + z[name] / 4 for name, grad in grads.items()}

            return replace(found, normalizer=4.0, noise=noise)

    made = trainer(Private((7, 0)), steps=2, clip=None)
    params = {n: p.detach().clone() for n, p in made.module.named_parameters()}
    rates = [0.1 * made.settings.rate(step) for step in range(2)]
    for size, rate in zip((7, 0), rates):
        part = tuple(x[:size] for x in data())
        grads = torch.func.grad(squares)(params, *part)
        params = {n: p - rate * (grads[n] + z[n]) / 4 for n, p in params.items()}
    made.fit()
    for name, parameter in made.module.named_parameters():
        torch.testing.assert_close(parameter.detach(), params[name], rtol=1e-13, atol=1e-13)


def test_buffers_that_a_gradient_brings_are_written_with_the_update() -> None:
    class Counting(Sums):
        def gradient(self, params: Params, batch: Any, *, step: int) -> StepGradient:
            found = super().gradient(params, batch, step=step)
            return replace(found, buffers={"seen": torch.tensor(step + 1)})

    made = trainer(Counting(), steps=3)
    made.module.register_buffer("seen", torch.tensor(0))
    made.gradient(0)
    assert int(made.module.seen) == 0
    made.fit()
    assert int(made.module.seen) == 3


# --- ranks --------------------------------------------------------------------------------------


class Parts(Sums):
    """An objective that ranks divide unevenly; the second divides its sums by itself."""

    divides_members = False

    def divide(self, share: Share) -> None:
        self.share = share

    def part(self, batch: Any) -> Any:
        cut = SAMPLES // 3
        own = (part[:cut] if self.share.rank == 0 else part[cut:] for part in batch)
        return nullcontext(tuple(own))

    def gradient(self, params: Params, batch: Any, *, step: int) -> StepGradient:
        found = super().gradient(params, batch, step=step)
        return divided(found) if self.share.rank else found


def test_two_ranks_take_the_step_of_one() -> None:
    def run(ranks: ThreadRanks) -> Tensor:
        made = trainer(Parts(), ranks=ranks)
        made.fit()
        return weights(made)

    alone = trainer(Sums())
    alone.fit()
    for found in on_ranks(2, run):
        torch.testing.assert_close(found, weights(alone), rtol=1e-12, atol=1e-12)


def test_an_objective_that_says_nothing_of_ranks_is_for_one_process() -> None:
    with pytest.raises(SettingError, match="ranks=2: 1 is needed: this training"):
        on_ranks(2, lambda ranks: trainer(Sums(), ranks=ranks))


def test_one_rank_does_nothing() -> None:
    one = trainer(Sums())
    gradient = one.loop.objective.gradient(one.loop.params, one.loop.objective.batch(0), step=0)
    assert reduced(gradient, one.loop.ranks) is gradient
    assert (one.loop.ranks.rank, one.loop.ranks.count) == (0, 1)


# --- pure on tensors ----------------------------------------------------------------------------


def test_a_whole_step_compiles() -> None:
    objective, rows = Sums(), OneNetwork(nn.Identity())

    def step(params: Params, x: Tensor, y: Tensor) -> tuple[Params, Tensor]:
        gradient = finish(objective.gradient(params, (x, y), step=0))
        norms = rows.norms(gradient.grads)
        grads = rows.scaled(gradient.grads, (0.5 / (norms + 1e-6)).clamp(max=1.0))
        return {name: p - 0.1 * grads[name] for name, p in params.items()}, gradient.losses

    params = {n: p.detach() for n, p in linear().double().named_parameters()}
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    found, wanted = compiled(params, *data()), step(params, *data())
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    made = trainer(Sums(), steps=1)
    made.fit()
    torch.testing.assert_close(weights(made), torch.cat([v.flatten() for v in found[0].values()]))


# --- not finite -----------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_what_is_not_finite_ends_it_before_the_update(bad: str) -> None:
    class Bad(Sums):
        def gradient(self, params: Params, batch: Any, *, step: int) -> StepGradient:
            found = super().gradient(params, batch, step=step)
            if step == 2 and bad == "loss":
                return replace(found, losses=torch.tensor([math.nan]))
            worst = {n: g * math.inf if step == 2 else g for n, g in found.grads.items()}
            return replace(found, grads=worst, suspects=lambda: "samples 3 and 4")

    made = trainer(Bad())
    with pytest.raises(Exception, match="^step 2: loss .* are not both finite, from "):
        made.fit()
    assert made.step == 2 and bool(weights(made).isfinite().all())
