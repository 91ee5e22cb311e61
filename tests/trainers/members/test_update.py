"""Settings of each member against one torch optimiser for each; clipping; layouts of gradients."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from metalearn import Ensemble
from metalearn.errors import SettingError
from metalearn.models import Conv4
from metalearn.trainers.members.update import MemberUpdate
from tests.support.alone import assert_member, conv_network, mlp_network, networks, train_alone
from tests.support.builders import ensemble_trainer, samples
from tests.support.oracles import generator, mlp

SGD, Adam, AdamW = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW
RATES = [1.0, 1e-1, 1e-2, 1e-3, 1e-5]
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": partial(SGD, momentum=0.9),
    "nesterov": partial(SGD, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": Adam,
    "amsgrad": partial(Adam, amsgrad=True, weight_decay=0.01),
    "fused adam": partial(Adam, fused=True),
    "adamw": partial(AdamW, weight_decay=0.1),
    "nadam": partial(torch.optim.NAdam, weight_decay=0.1, decoupled_weight_decay=True),
    "radam": torch.optim.RAdam,
    "rmsprop": partial(torch.optim.RMSprop, momentum=0.5),
    "adagrad": partial(torch.optim.Adagrad, lr_decay=0.1),
    "adadelta": torch.optim.Adadelta,
    "adamax": torch.optim.Adamax,
}
optimizers = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)


def loss_of(network: Callable[[Tensor], Tensor], step: int, member: int) -> Tensor:
    x = torch.randn(6, 2, generator=generator(100 * step + member), dtype=torch.float64)
    return (network(x) - x.sin()).square().mean()


def apart(make: Callable[..., torch.optim.Optimizer], settings: list[dict[str, float]]) -> Any:
    """One network and one optimiser for each member, twelve steps."""
    alone = [mlp(seed) for seed in range(len(settings))]
    steppers = [make(n.parameters(), **own) for n, own in zip(alone, settings)]
    for step in range(12):
        for member, (network, stepper) in enumerate(zip(alone, steppers)):
            stepper.zero_grad()
            loss_of(network, step, member).backward()
            for group in stepper.param_groups:
                group["lr"] = settings[member]["lr"] * _factor(step)
            stepper.step()
    return alone


def together(
    make: Callable[..., torch.optim.Optimizer], rates: Any, decays: Any = None, count: int = 5
) -> Ensemble:
    """The same with one optimiser over the stack."""
    ensemble = Ensemble.from_modules([mlp(seed) for seed in range(count)])
    network = ensemble.stacks[0].network
    stepper = make(ensemble.parameters(), lr=0.37)
    update = MemberUpdate(ensemble, stepper, rates, decays)
    for step in range(12):
        stepper.zero_grad()
        for member in range(count):
            rows = {name: value[member] for name, value in network.named_parameters()}
            call = lambda x, rows=rows: functional_call(mlp(), rows, (x,))  # noqa: E731
            loss_of(call, step, member).backward()
        update(torch.ones(count, dtype=torch.bool), _factor(step))
    return ensemble


def _factor(step: int) -> float:
    return 1 / (1 + step)


def compare(ensemble: Ensemble, alone: list[nn.Module], tolerance: float) -> None:
    """Relative to how far each member moved."""
    for seed, (member, network) in enumerate(zip(ensemble.members(), alone)):
        start = dict(mlp(seed).named_parameters())
        ends = dict(network.named_parameters())
        for name, value in member.named_parameters():
            moved = (ends[name] - start[name]).norm()
            assert moved > 0
            assert (value - ends[name]).norm() <= tolerance * moved, (seed, name)


@optimizers
def test_learning_rates_of_each_member(make: Callable[..., torch.optim.Optimizer]) -> None:
    alone = apart(make, [{"lr": rate} for rate in RATES])
    compare(together(make, RATES), alone, 1e-6)


@pytest.mark.parametrize(
    "make",
    [
        partial(SGD, momentum=0.9),
        Adam,
        partial(AdamW, weight_decay=0.0),
        partial(torch.optim.NAdam, decoupled_weight_decay=True),
        torch.optim.NAdam,
    ],
    ids=["sgd", "adam", "adamw", "nadam decoupled", "nadam"],
)
@pytest.mark.parametrize("rates", [None, RATES])
def test_weight_decays_of_each_member(
    make: Callable[..., torch.optim.Optimizer], rates: list[float] | None
) -> None:
    decays = [0.0, 0.5, 0.1, 1e-2, 1e-4]
    own = [{"lr": r, "weight_decay": d} for r, d in zip(rates or [0.37] * 5, decays)]
    kwargs = getattr(make, "keywords", {})
    bare = partial(
        make.func if isinstance(make, partial) else make,
        **{k: v for k, v in kwargs.items() if k != "weight_decay"},
    )
    compare(together(make, rates, decays), apart(bare, own), 1e-6)


def test_all_rates_zero_move_nothing() -> None:
    ensemble = together(partial(SGD, momentum=0.9), [0.0] * 5)
    for seed, member in enumerate(ensemble.members()):
        for value, start in zip(member.parameters(), mlp(seed).parameters()):
            assert torch.equal(value, start)


def test_groups_of_parameters_keep_their_own_rates() -> None:
    def make(parameters: Any, lr: float) -> torch.optim.Optimizer:
        first, *rest = parameters
        return SGD([{"params": [first], "lr": 0.0}, {"params": rest}], lr=lr)

    ensemble = Ensemble.from_modules([mlp(seed) for seed in range(2)])
    stepper = make(ensemble.parameters(), 0.1)
    first, second, *_ = ensemble.parameters()
    before = first.detach().clone(), second.detach().clone()
    for parameter in ensemble.parameters():
        parameter.grad = torch.ones_like(parameter)
    MemberUpdate(ensemble, stepper)(torch.ones(2, dtype=torch.bool), 1.0)
    assert torch.equal(first, before[0])
    torch.testing.assert_close(second, before[1] - 0.1)
    with pytest.raises(SettingError, match=r"optimizer\.groups=2: one group is needed beside lr"):
        MemberUpdate(ensemble, stepper, [0.1, 0.2])


@optimizers
def test_a_frozen_member_stays_and_the_others_do_not_notice(
    make: Callable[..., torch.optim.Optimizer],
) -> None:
    rows = torch.tensor([True, False, True])
    ends = []
    for active in (rows, torch.ones(3, dtype=torch.bool)):
        ensemble = Ensemble.from_modules([mlp(seed) for seed in range(3)])
        stepper = make(ensemble.parameters(), lr=0.1)
        update = MemberUpdate(ensemble, stepper)
        for step in range(4):
            for parameter in ensemble.parameters():
                shape = parameter.shape
                parameter.grad = torch.randn(shape, generator=generator(step)).double()
            update(active if step >= 2 else torch.ones(3, dtype=torch.bool), 1.0)
            if step == 1:
                middle = [v.detach().clone() for v in ensemble.parameters()]
        ends.append((middle, [v.detach() for v in ensemble.parameters()]))
    (middle, frozen), (_, whole) = ends
    for before, some, every in zip(middle, frozen, whole):
        assert torch.equal(some[1], before[1])
        assert torch.equal(some[rows], every[rows])
        assert not torch.equal(every[1], before[1])


# --- through the trainer ------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "limit"), [(mlp_network, 1.0), (conv_network, 2.0)])
def test_clipping_is_each_members_own(make: Callable[..., nn.Module], limit: float) -> None:
    """Gradients of very different sizes; a norm over the stack would shrink them all alike."""
    rate = partial(SGD, lr=0.5)
    model = networks(make, range(3))
    with torch.no_grad():  # one member's gradient is far above the limit, others' below
        for value in model.stacks[0].parameters():
            value[0] *= 6
    settings = {"model": model, "optimizer": rate, "steps": 5, "schedule": "constant"}
    trainer = ensemble_trainer(clip=limit, **settings)
    alone = list(trainer.ensemble.members())
    grads = trainer.gradient(0).grads.values()
    norms = torch.stack([g.flatten(1).square().sum(1) for g in grads]).sum(0).sqrt()
    assert norms.min() < limit < norms.max()
    trainer.ensemble.load_state_dict(Ensemble.from_modules(alone).state_dict())  # buffers moved
    trainer.fit()
    for seed, network in enumerate(alone):
        train_alone(network, trainer.data, seed, rate, steps=5, clip=limit)
        assert_member(trainer, seed, network)


def test_one_norm_over_the_stack_would_mix_members() -> None:
    model = networks(mlp_network, range(2))
    for value in model.parameters():
        value.grad = torch.randn(value.shape, generator=generator(0), dtype=torch.float64)
    own = [v.grad[0] for v in model.parameters()]
    alone = [g / torch.stack([h.norm() for h in own]).norm() for g in own]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    assert all((v.grad[0] - g).norm() > 0.1 * g.norm() for v, g in zip(model.parameters(), alone))


@pytest.mark.parametrize("name", ["label_smoothing", "weight_decay", "lr", "dropout"])
@pytest.mark.parametrize("make", [Adam, AdamW], ids=["adam", "adamw"])
def test_lists_of_settings_are_solo_runs(make: Any, name: str) -> None:
    values = {
        "label_smoothing": [0.0, 0.125, 0.25],  # exact in float32, as the trainer keeps them
        "weight_decay": [0.0, 0.3, 0.01],
        "lr": [0.1, 0.001, 1e-5],
        "dropout": [0.0, 0.5, 0.25],
    }[name]
    shared = {"steps": 8, "clip": None, "schedule": "constant"}
    optimizer = partial(make, lr=0.01, **({"weight_decay": 0.0} if make is AdamW else {}))
    model = networks(conv_network, range(3), dropout=0.1)
    trainer = ensemble_trainer(model=model, optimizer=optimizer, **shared, **{name: values})
    before = list(trainer.ensemble.members())  # with their rates of dropout
    trainer.fit()
    for seed, value in enumerate(values):
        solo = optimizer
        if name in ("lr", "weight_decay"):
            solo = partial(make, **{"lr": 0.01, "weight_decay": 0.0, name: value})
        extra = {name: value} if name == "label_smoothing" else {}
        train_alone(before[seed], trainer.data, seed, solo, steps=8, **extra)
        assert_member(trainer, seed, before[seed], 1e-9)
        if name == "dropout":
            assert float(before[seed].network[4].p) == value
    assert [row[name] for row in trainer.member_settings()] == values


def test_a_range_is_a_sweep_in_equal_ratios() -> None:
    trainer = ensemble_trainer(lr={"low": 1e-4, "high": 1e-2})
    rates = [row["lr"] for row in trainer.member_settings()]
    assert rates == pytest.approx([1e-4, 1e-3, 1e-2])
    assert [row["seed"] for row in trainer.member_settings()] == [0, 1, 2]


def test_fused_optimisers_take_gradients_of_other_strides() -> None:
    """Those of convolutions come in the order of columns; fused Adam would pair them wrongly."""
    data = samples(side=16)
    ends = []
    for fused in (False, True):
        model = Ensemble.from_modules([Conv4((1, 16, 16), 3, filters=4, seed=s) for s in range(2)])
        trainer = ensemble_trainer(
            model=model, data=data, steps=6, optimizer=partial(Adam, lr=0.01, fused=fused)
        )
        trainer.fit()
        ends.append(list(trainer.ensemble.members()))
        grads = trainer.gradient(0).grads
        strided = any(not g.is_contiguous() for g in grads.values())
        assert strided, "this test has nothing to say if gradients lie as parameters do"
        assert all(p.grad.stride() == p.stride() for p in model.parameters())
    for one, other in zip(*ends):
        for (name, value), expected in zip(one.named_parameters(), other.parameters()):
            if not (name.endswith("0.bias") and name.startswith("blocks")):  # before a norm: noise
                torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-4)
