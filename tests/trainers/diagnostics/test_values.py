"""What diagnostics say, against loops of ``.backward()`` in float64 and closed forms.

Axes: M members, T tasks, N samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.core import NoiseScale, gradient_noise_scale, sgd, task_meta_gradients
from metalearn.core.ensemble.stacking import unstack
from metalearn.tracking import NullTracker
from metalearn.trainers import MetaTrainer, Trainer
from metalearn.trainers.diagnostics import DIAGNOSTICS, GradientUnits, sample_gradients
from metalearn.trainers.diagnostics.measuring import measure
from metalearn.trainers.diagnostics.moments import MOMENTS, noise_over_populations
from metalearn.trainers.diagnostics.noise_scale import NoiseScales
from metalearn.trainers.diagnostics.reducing import reduce_units
from metalearn.types import TaskBatch
from tests.support.builders import Recorder, batch_of, source_of
from tests.support.diagnostic_cases import ensemble, few_shot, learners, per_sample
from tests.support.oracles import Problem, inner_loop, sgd_rule

Rows = list[Tensor]


def _flat_grad(loss: Tensor, values: list[Tensor]) -> Tensor:
    grads = torch.autograd.grad(loss, values)
    return torch.cat([g.reshape(-1) for g in grads])


def _again(value: Tensor, values: list[Tensor]) -> Tensor:
    grads = torch.autograd.grad(value, values, retain_graph=True)
    return torch.cat([g.reshape(-1) for g in grads])


def _units(trainer: Trainer, kind: str, step: int, grads: Any = None) -> GradientUnits:
    return source_of(trainer).gradient_units(kind, batch_of(trainer, step), grads or {})


def _gathered(units: GradientUnits) -> list[Rows]:
    """All gradients, flat: one list of populations' rows for each block."""
    populations: list[Rows] = []
    for block in units.blocks():
        chunks = [torch.cat([g.flatten(2) for g in c.values()], 2) for c in block]
        populations += [list(rows) for rows in torch.cat(chunks, 1)]
    return populations


def _double(trainer: Trainer) -> Any:
    """The same trainer, computing in float64."""
    trainer.module.double()
    return trainer


def _close(found: list[Rows], wanted: list[Rows]) -> None:
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted):
        torch.testing.assert_close(torch.stack(one), torch.stack(other), rtol=1e-4, atol=1e-6)


@pytest.fixture(params=["whole", "few at a time"])
def _budget(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param != "whole":
        monkeypatch.setattr(sample_gradients, "_BUDGET", 1500)


def _samples_of(module: nn.Module, x: Tensor, y: Tensor) -> Rows:
    values = list(module.parameters())
    return [_flat_grad(F.cross_entropy(module(a[None]), b[None]), values) for a, b in zip(x, y)]


@pytest.mark.usefixtures("_budget")
def test_samples_of_one_network() -> None:
    trainer = per_sample()
    x, y = batch_of(trainer, 2)
    _close(_gathered(_units(trainer, "sample", 2)), [_samples_of(trainer.module, x, y)])


@pytest.mark.usefixtures("_budget")
@pytest.mark.parametrize("shuffle", ["member", "shared"])
def test_samples_and_gradients_of_members(shuffle: str) -> None:
    trainer = ensemble(shuffle=shuffle)
    trainer.active[1] = False
    x, y = batch_of(trainer, 2)
    wanted = []
    for index in (0, 2):
        own = (x, y) if shuffle == "shared" else (x[index], y[index])
        wanted.append(_samples_of(trainer.ensemble.member(index), *own))
    _close(_gathered(_units(trainer, "sample", 2)), wanted)
    report = trainer.gradient(2)
    members = _units(trainer, "member", 2, report.grads)
    assert members.labels == ["0", "2"]
    means = [[torch.stack(rows).mean(0) for rows in wanted]]
    _close(_gathered(members), means)


@pytest.mark.usefixtures("_budget")
@pytest.mark.parametrize("make", [few_shot, learners])
def test_shots_and_tasks(make: Callable[..., MetaTrainer]) -> None:
    trainer = make()
    tasks = trainer.loop.objective.batch(1).tasks
    rows = [trainer.learner.params] if trainer.ensemble is None else unstack(trainer.learner.params)
    shots, whole = [], []
    for row in rows:
        params = {n: v.detach().clone().requires_grad_() for n, v in row.items()}
        whole.append([])
        for t in range(4):
            task = TaskBatch(*(tuple(leaf[t] for leaf in half) for half in tasks))
            x, y = task.support
            loss = trainer.learner.loss
            pairs = [loss(params, (a[None], b[None])) for a, b in zip(x, y)]
            shots.append([_flat_grad(value, list(params.values())) for value in pairs])
            end, _ = inner_loop(loss, params, task.support, sgd_rule(0.2), 2)
            whole[-1].append(_flat_grad(loss(end, task.query), list(params.values())))
    _close(_gathered(_units(trainer, "shot", 1)), shots)
    _close(_gathered(_units(trainer, "task", 1)), whole)


@pytest.mark.parametrize("method", ["reverse", "mixed", "first_order", "implicit"])
def test_task_gradients_agree_between_engines_and_average_to_the_meta_gradient(method: Any) -> None:
    from metalearn.core import meta_gradient
    from tests.support.oracles import classification, mlp

    problem: Problem = classification(mlp(), (2,), tasks=3)
    settings: dict[str, Any] = {"optimizer": sgd(0.1), "steps": 2, "method": method}
    whole = meta_gradient(*problem, **settings).grads
    found = [
        task_meta_gradients(*problem, engine=engine, **settings)
        for engine in ("batched", "vmap", "loop", "auto")
    ]
    for other in found:
        for name, value in found[0].items():
            torch.testing.assert_close(other[name], value, rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(other[name].mean(0), whole[name], rtol=1e-9, atol=1e-12)


# --- moments and noise scale --------------------------------------------------------------------


def _given(grads: dict[str, Tensor], sizes: list[int]) -> GradientUnits:
    parts = {name: g.split(sizes, 1) for name, g in grads.items()}

    def blocks() -> list[Any]:
        return [[{n: p[i] for n, p in parts.items()} for i in range(len(sizes))]]

    return GradientUnits("sample", blocks, sum(sizes))


def _seen(units: GradientUnits) -> NoiseScale:
    return noise_over_populations(reduce_units(units, [MOMENTS])[MOMENTS])


def test_moments_are_those_of_all_gradients_at_once() -> None:
    draws = torch.Generator().manual_seed(0)
    grads = {
        "a.weight": torch.randn(2, 9, 3, 2, generator=draws, dtype=torch.float64) + 1,
        "a.bias": torch.randn(2, 9, generator=draws, dtype=torch.float64),
    }
    found = _seen(_given(grads, [4, 4, 1]))
    each = [gradient_noise_scale({n: g[i] for n, g in grads.items()}) for i in range(2)]
    for name in ("noise", "signal"):
        wanted = torch.stack([getattr(e, name) for e in each]).mean()
        torch.testing.assert_close(getattr(found, name), wanted)
    for leaf in grads:
        wanted = torch.stack([e.noise_by_leaf[leaf] for e in each]).mean()
        torch.testing.assert_close(found.noise_by_leaf[leaf], wanted)


def test_one_unit_tells_nothing() -> None:
    found = _seen(_given({"w": torch.ones(1, 1, 3)}, [1]))
    assert math.isnan(found.noise) and math.isnan(found.scale)


class Mean(nn.Module):
    """Loss ½‖θ − x‖² in the place of cross-entropy: the gradient of sample i is θ − x_i."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.full((4,), 3.0))
        self.more = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :3] + self.theta[:3] + self.more


def test_closed_form_through_a_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tr(Σ) is that of the samples, |G|² is (θ − x̄)² less tr(Σ)/N, averaged over looks."""
    seen = Recorder()
    trainer = per_sample(
        model=Mean(),
        diagnostics=["noise_scale"],
        diagnostics_every=1,
        tracker=seen,
        steps=3,
        max_norm=math.inf,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.0),
    )

    def loss(params: Any, batch: Any) -> Tensor:
        return 0.5 * (params["theta"] - batch[0]).square().sum(1).mean()

    monkeypatch.setattr(trainer.objective, "loss", loss)
    trainer.fit()
    noise, signal, shares = [], [], []
    for step in range(3):
        x = batch_of(trainer, step)[0].double()
        trace = float(x.var(0).sum())
        noise.append(trace)
        signal.append(float((3.0 - x.mean(0)).square().sum()) - trace / 8)
        shares.append(noise[-1] + signal[-1])
    assert seen.series("noise_scale/sample_noise") == pytest.approx(noise, rel=1e-5)
    assert seen.series("noise_scale/sample_signal") == pytest.approx(signal, rel=1e-4)
    weights = [0.9**2, 0.9, 1.0]
    up = sum(w * n / s for w, n, s in zip(weights, noise, shares))
    down = sum(w * n / s for w, n, s in zip(weights, signal, shares))
    assert seen.series("noise_scale/sample")[-1] == pytest.approx(up / down, rel=1e-4)
    assert seen.series("noise_scale/sample_per_batch")[-1] == pytest.approx(up / down / 8, rel=1e-4)


def test_batches_of_one_leave_no_trace_in_the_average() -> None:
    """A look at one unit is NaN; the average is that of the others."""
    diagnostic = NoiseScales()
    grads = {"l.w": torch.tensor([[[1.0, 2.0], [3.0, 2.0], [2.0, 3.0]]])}
    known, alone = _given(grads, [3]), _given({"l.w": torch.ones(1, 1, 2)}, [1])
    for units in (alone, known, alone):
        result = diagnostic.result(reduce_units(units, [MOMENTS])[MOMENTS], units)
        numbers = diagnostic.record(0, "sample", result, NullTracker())
    wanted = gradient_noise_scale({"w": grads["l.w"][0]})
    assert numbers["noise_scale/sample"] == pytest.approx(float(wanted.scale), rel=1e-6)


# --- the rest -----------------------------------------------------------------------------------


def test_norms_cosines_and_clip_fraction() -> None:
    numbers = Recorder()
    names = ["gradient_norms", "gradient_cosines"]
    trainer = ensemble(clip=1.0, tracker=numbers, diagnostics=names, steps=1)
    flat = torch.stack(_gathered(_units(trainer, "member", 0, trainer.gradient(0).grads))[0])
    trainer.fit()
    norms = flat.norm(dim=1)
    value = {k: v for _, row in numbers.numbers for k, v in row.items()}
    assert value["gradient_norms/member_median"] == pytest.approx(float(norms.median()), rel=1e-5)
    assert value["gradient_norms/member_highest"] == pytest.approx(float(norms.max()), rel=1e-5)
    share = float((norms > 1.0).double().mean())
    assert value["gradient_norms/member_clip_fraction"] == share
    unit = flat / norms[:, None]
    pairs = [float(unit[i] @ unit[j]) for i in range(3) for j in range(i)]
    assert value["gradient_cosines/member_mean"] == pytest.approx(sum(pairs) / 3, abs=1e-6)
    assert value["gradient_cosines/member_lowest"] == pytest.approx(min(pairs), abs=1e-6)


@pytest.mark.parametrize("make", [per_sample, ensemble, few_shot])
def test_fisher_trace_is_the_mean_squared_gradient_of_log_p(make: Callable[..., Any]) -> None:
    trainer = make()
    trainer.gradient(0)
    exact, empirical = [], []
    for model in source_of(trainer).predictive_models(batch_of(trainer, 0)):
        x, y = model.batch
        for g in range(len(y)):
            extra = {n: b[g] for n, b in model.extra.items()}
            outputs = model.outputs_fn(extra)
            params = {n: p[g].detach().requires_grad_() for n, p in model.params.items()}
            values, sums = list(params.values()), [0.0, 0.0]
            for a, b in zip(x[g], y[g]):
                log_p = outputs(params, a[None])[0].log_softmax(0)
                squares = [float(_again(lp, values).square().sum()) for lp in log_p]
                sums[0] += sum(float(lp.detach().exp()) * s for lp, s in zip(log_p, squares))
                sums[1] += squares[int(b)]
            exact.append(sums[0] / len(y[g]))
            empirical.append(sums[1] / len(y[g]))
    diagnostic = DIAGNOSTICS["fisher_trace"]()
    found = measure({diagnostic: ("predictive",)}, source_of(trainer), batch_of(trainer, 0), {})
    result = found.results["fisher_trace"]["predictive"]
    numbers = diagnostic.record(0, "predictive", result, NullTracker())
    assert numbers["fisher_trace/exact"] == pytest.approx(sum(exact) / len(exact), rel=1e-4)
    assert numbers["fisher_trace/empirical"] == pytest.approx(
        sum(empirical) / len(empirical), rel=1e-4
    )
