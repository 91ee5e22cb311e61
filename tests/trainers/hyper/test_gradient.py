"""The gradient of an outer step, against runs unrolled by hand with ordinary autograd in float64.

Axes: K steps of a run.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.core import hyper_gradient, sgd
from metalearn.data import MemberBatches
from metalearn.models import MLP
from metalearn.trainers import (
    HYPER_KINDS,
    DistilledExamples,
    HyperTrainer,
    LearntExampleWeights,
    LearntSchedule,
    LearntWeightDecay,
)
from tests.support.small_data import blobs

INNER = {"steps": 4, "batch_size": 12, "lr": 0.3, "momentum": 0.8}
DATA = blobs()
Raw = dict[str, Tensor]


def model() -> MLP:
    network = MLP((2,), 3, hidden=(5,), activation="tanh", seed=3)
    network.double()
    return network


def made(kind: str, **settings: Any) -> Any:
    settings = {"inner": INNER, "seed": 2, "progress": False, "clip": None} | settings
    network = settings.pop("model", None) or model()
    trainer = HyperTrainer(network, DATA, hyper=kind, **settings)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # away from where all are alike
        for value in trainer.module.parameters():
            shift = torch.randn(value.shape, generator=generator, dtype=value.dtype)
            value += 0.2 * shift
    return trainer


# --- the same, written out ----------------------------------------------------------------------


def _outputs(params: Raw, x: Tensor) -> Tensor:
    hidden = torch.tanh(x @ params["1.weight"].T + params["1.bias"])
    return hidden @ params["3.weight"].T + params["3.bias"]


def _batch(k: int) -> tuple[Tensor, Tensor, Tensor]:
    train = DATA.splits["train"]
    rows = MemberBatches(len(train), batch_size=12, seeds=[2]).indices(k)
    x, y = DATA.take(train[rows])
    return x.double(), y, rows


def _weights(raw: Raw, params: Raw, k: int) -> tuple[Tensor, Any]:
    x, y, rows = _batch(k)
    losses = F.cross_entropy(_outputs(params, x), y, reduction="none")
    return (torch.sigmoid(raw["scores"])[rows] * losses).sum() / 12, 0.3


def _rates(raw: Raw, params: Raw, k: int) -> tuple[Tensor, Any]:
    x, y, _ = _batch(k)
    return F.cross_entropy(_outputs(params, x), y), raw["log_rates"].exp()[k]


def _decay(raw: Raw, params: Raw, k: int) -> tuple[Tensor, Any]:
    x, y, _ = _batch(k)
    loss = F.cross_entropy(_outputs(params, x), y)
    for index, layer in enumerate(("1", "3")):
        strength = raw["log_strengths"][index].exp()
        size = params[f"{layer}.weight"].square().sum() + params[f"{layer}.bias"].square().sum()
        loss = loss + strength / 2 * size
    return loss, 0.3


def _distilled(raw: Raw, params: Raw, k: int) -> tuple[Tensor, Any]:
    loss = F.cross_entropy(_outputs(params, raw["inputs"]), torch.arange(3))
    return loss, raw["log_rate"].exp()


STEPS: dict[str, Callable[[Raw, Raw, int], tuple[Tensor, Any]]] = {
    "example_weights": _weights,
    "learning_rates": _rates,
    "weight_decay": _decay,
    "distilled": _distilled,
}


def outer(kind: str, raw: Raw) -> Tensor:
    """The mean loss of every other validation sample of a class after K steps of momentum."""
    start = {name: p.detach().clone() for name, p in model().named_parameters()}
    params = {name: p.requires_grad_() for name, p in start.items()}
    memory = {name: torch.zeros_like(p) for name, p in params.items()}
    for k in range(4):
        loss, rate = STEPS[kind](raw, params, k)
        grads = torch.autograd.grad(loss, list(params.values()), create_graph=True)
        memory = {n: 0.8 * memory[n] + g for n, g in zip(params, grads)}
        params = {n: p - rate * memory[n] for n, p in params.items()}
    samples = torch.cat(
        [
            DATA.splits["validation"][DATA.targets[DATA.splits["validation"]] == c][::2]
            for c in (0, 1, 2)
        ]
    )
    x, y = DATA.take(samples)
    return F.cross_entropy(_outputs(params, x.double()), y)


def raw_of(trainer: Any) -> Raw:
    return {n: p.detach().clone() for n, p in trainer.module.named_parameters()}


@pytest.mark.parametrize("kind", HYPER_KINDS)
def test_it_is_that_of_the_unrolled_run_and_of_differences(kind: str) -> None:
    trainer = made(kind)
    found, raw = trainer.gradient(0), raw_of(trainer)
    inputs = {name: value.clone().requires_grad_() for name, value in raw.items()}
    loss = outer(kind, inputs)
    expected = dict(zip(inputs, torch.autograd.grad(loss, list(inputs.values()))))
    torch.testing.assert_close(found.losses, loss.detach()[None], rtol=1e-12, atol=0)
    for name, value in expected.items():
        torch.testing.assert_close(found.grads[name], value, rtol=1e-8, atol=1e-13)
    generator = torch.Generator().manual_seed(1)
    along = {n: torch.randn(v.shape, generator=generator, dtype=v.dtype) for n, v in raw.items()}
    ends = [outer(kind, {n: v + e * along[n] for n, v in raw.items()}) for e in (1e-5, -1e-5)]
    slope = sum((found.grads[name] * d).sum() for name, d in along.items())
    torch.testing.assert_close((ends[0] - ends[1]).detach() / 2e-5, slope, rtol=1e-6, atol=1e-9)


def test_weights_are_those_of_hyper_gradient_called_by_hand() -> None:
    trainer = made("example_weights")
    raw = raw_of(trainer)["scores"]

    def inner(params: Any, weights: Tensor, batch: Any) -> Tensor:
        x, y, rows = batch
        return (weights[rows] * F.cross_entropy(_outputs(params, x), y, reduction="none")).mean()

    def outer_loss(params: Any, weights: Tensor, batch: Any) -> Tensor:
        return F.cross_entropy(_outputs(params, batch[0]), batch[1])

    params = {n: p.detach() for n, p in model().named_parameters()}
    found = hyper_gradient(
        inner, outer_loss, params, torch.sigmoid(raw), _batch, trainer.objective.batch(0),
        optimizer=sgd(0.3, momentum=0.8), steps=4,
    )  # fmt: skip
    slope = torch.sigmoid(raw) * (1 - torch.sigmoid(raw))
    expected = found.hyper_grads * slope
    torch.testing.assert_close(
        trainer.gradient(0).grads["scores"], expected, rtol=1e-10, atol=1e-14
    )


@pytest.mark.parametrize("kind", HYPER_KINDS)
def test_ways_back_agree(kind: str) -> None:
    whole = made(kind).gradient(0)
    for settings in (
        {"method": "reverse"},
        {"memory": 10_000},
        {"method": "truncated", "truncation": 4},
    ):
        found = made(kind, **settings).gradient(0)
        for name, value in whole.grads.items():
            torch.testing.assert_close(found.grads[name], value, rtol=1e-8, atol=1e-13)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (partial(LearntSchedule, momentum=True), "momentum_score"),
        (partial(DistilledExamples, labels=True, per_class=2), "label_scores"),
        (partial(LearntExampleWeights, bound="positive"), "scores"),
        (partial(LearntWeightDecay, per="network"), "log_strengths"),
    ],
)
def test_further_settings_have_the_slope_of_differences(make: Any, name: str) -> None:
    trainer = made(make)
    grad = trainer.gradient(0).grads[name]
    value = dict(trainer.module.named_parameters())[name]
    along = torch.randn(value.shape, generator=torch.Generator().manual_seed(1)).double()
    losses = []
    for shift in (1e-5, -2e-5):
        with torch.no_grad():
            value += shift * along
        losses.append(float(trainer.gradient(0).losses))
    slope = float((grad * along).sum())
    assert slope and abs((losses[0] - losses[1]) / 2e-5 - slope) < 1e-6 * abs(slope) + 1e-9


def test_at_a_minimum_it_is_that_of_the_minimum() -> None:
    """Runs with a penalty that end there: the gradient through them, and the implicit one."""
    inner = {**INNER, "steps": 60, "batch_size": 48, "momentum": 0.5}
    strong: Any = partial(LearntWeightDecay, initial=0.3)
    solver = {"method": "implicit", "implicit": {"iterations": 12}}
    generator = torch.Generator().manual_seed(0)
    linear = nn.utils.skip_init(nn.Linear, 2, 3, dtype=torch.float64)
    with torch.no_grad():
        for value in linear.parameters():
            value.copy_(torch.randn(value.shape, generator=generator, dtype=torch.float64))
    one, other = (made(strong, inner=inner, model=linear, **more) for more in ({}, solver))
    a, b = (trainer.gradient(0).grads["log_strengths"] for trainer in (one, other))
    torch.testing.assert_close(a, b, rtol=1e-3, atol=0)
