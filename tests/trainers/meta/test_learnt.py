"""Hyperparameters that are learnt beside the weights, against plain loops of autograd.

Axes: M members, T tasks, K inner steps.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from metalearn.models import MLP, Ensemble
from metalearn.tasks import SinusoidTasks
from metalearn.trainers import MAML, MetaTrainer
from tests.saved_runs.double import float64

WAVES = SinusoidTasks(shot=4, query=3)
STEPS, TASKS, K, CLIP = 3, 3, 2, 0.3

Values = dict[str, Tensor]

INNER: dict[str, dict[str, Any]] = {
    "sgd": {"learn": ["lr", "weight_decay"]},
    "momentum": {"learn": ["lr", "momentum", "weight_decay"], "inner_momentum": 0.6},
    "nesterov": {
        "learn": ["momentum", "lr"], "inner_momentum": 0.6, "inner_nesterov": True,
    },
    "nesterov from no momentum": {"learn": ["momentum", "lr"], "inner_nesterov": True},
    "adam": {
        "learn": ["lr", "betas", "weight_decay"], "inner_optimizer": "adam",
        "inner_betas": [0.8, 0.9],
    },
    "adamw": {
        "learn": ["weight_decay", "lr"], "inner_optimizer": "adamw", "inner_betas": (0.8, 0.9),
    },
}  # fmt: skip
AXES = ["all", "parameter", "step", "parameter_and_step", "element", "element_and_step"]
METHODS = ["reverse", "mixed", "first_order"]
ENGINES = ["batched", "vmap", "loop"]
OUTER: list[Callable[..., torch.optim.Optimizer]] = [
    partial(torch.optim.SGD, lr=0.05, momentum=0.9),
    partial(torch.optim.Adam, lr=0.01),
    partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1),
]


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    with float64():
        yield


def network(seed: int = 0) -> MLP:
    """With a bias of as many elements as there are inner steps."""
    return MLP((1,), 1, hidden=(K,), seed=seed)


def settings_of(kind: str, axis: str, **more: Any) -> MAML:
    given = {"inner_lr": 0.05, "inner_weight_decay": 0.02, "inner_steps": K, "lr_per": axis}
    return MAML(**{**given, **INNER[kind], **more})


def trainer_of(maml: MAML, *, seeds: Any = 0, **settings: Any) -> MetaTrainer:
    members = isinstance(seeds, range)
    module: Any = Ensemble.from_factory(network, seeds) if members else network(seeds)
    given = {"steps": STEPS, "meta_batch": TASKS, "validation_tasks": 2, "clip": CLIP}
    given |= {"schedule": "constant", "progress": False, **settings}
    return MetaTrainer(module, WAVES, maml=maml, **given)


# --- the plain loop -------------------------------------------------------------------------------


def start(maml: MAML, own: Mapping[str, Tensor]) -> Values:
    """What is learnt, by the names that it has in a trainer."""
    found: Values = {}
    shape = (K,) if "step" in maml.lr_per else ()
    if "lr" in maml.learn:
        if maml.lr_per in ("all", "step"):
            found["lr"] = torch.full(shape, maml.inner_lr)
        else:
            element = "element" in maml.lr_per
            found |= {
                f"lr.{n}": torch.full((*shape, *(p.shape if element else ())), maml.inner_lr)
                for n, p in own.items()
            }
    for name in ("momentum", "weight_decay"):
        if name in maml.learn:
            found[name] = torch.tensor(float(getattr(maml, f"inner_{name}")))
    if "betas" in maml.learn:
        found |= {f"beta{i + 1}": torch.tensor(b) for i, b in enumerate(maml.inner_betas)}
    return found


def moved(
    maml: MAML, learnt: Values, k: int, params: Values, grads: Values, memory: dict[str, Any]
) -> Values:
    """One inner step, after k others."""
    decay = learnt.get("weight_decay", torch.tensor(maml.inner_weight_decay))
    momentum = learnt.get("momentum", torch.tensor(maml.inner_momentum))
    betas = [learnt.get(f"beta{i + 1}", torch.tensor(b)) for i, b in enumerate(maml.inner_betas)]
    found = {}
    for name, p in params.items():
        lr = learnt.get("lr", learnt.get(f"lr.{name}", torch.tensor(maml.inner_lr)))
        lr = lr[min(k, K - 1)] if "step" in maml.lr_per else lr
        g = grads[name]
        if maml.inner_optimizer != "adamw":
            g = g + decay * p
        if maml.inner_optimizer == "sgd":
            memory[name] = momentum * memory[name] + g if k else g
            step = g + momentum * memory[name] if maml.inner_nesterov else memory[name]
            found[name] = p - lr * step
            continue
        first, second = memory[name] if k else (torch.zeros_like(p), torch.zeros_like(p))
        first, second = (
            betas[0] * first + (1 - betas[0]) * g,
            betas[1] * second + (1 - betas[1]) * g**2,
        )
        memory[name] = first, second
        mean, square = first / (1 - betas[0] ** (k + 1)), second / (1 - betas[1] ** (k + 1))
        found[name] = p - lr * mean / ((square + 1e-16).sqrt() + 1e-8)
        if maml.inner_optimizer == "adamw":
            found[name] = found[name] - lr * decay * p
    return found


def adapted(
    maml: MAML,
    module: MLP,
    params: Values,
    learnt: Values,
    support: Any,
    steps: int,
    *,
    constant: bool,
) -> Values:
    """θ_K; with ``constant`` inner gradients as in first order."""
    memory: dict[str, Any] = {}
    for k in range(steps):
        at = {n: p.detach().requires_grad_() if constant else p for n, p in params.items()}
        grads = torch.autograd.grad(
            mse(module, at, support), list(at.values()), create_graph=not constant
        )
        params = moved(maml, learnt, k, params, dict(zip(at, grads)), memory)
    return params


def mse(module: MLP, params: Values, batch: Any) -> Tensor:
    return (functional_call(module, params, (batch[0],)) - batch[1]).square().mean()


def set_gradients(maml: MAML, module: MLP, learnt: Values, step: int) -> None:
    """The mean over the tasks of a step of the gradient of the query loss."""
    own, first = dict(module.named_parameters()), maml.wanted_method == "first_order"
    tasks = WAVES.sample("train", range(step * TASKS, (step + 1) * TASKS))
    for parameter in (*own.values(), *learnt.values()):
        parameter.grad = torch.zeros_like(parameter)
    for t in range(TASKS):
        support, query = (tuple(v[t] for v in part) for part in tasks)
        base = {n: p.detach() for n, p in own.items()} if first else own
        at = adapted(maml, module, base, learnt, support, K, constant=first)
        (mse(module, at, query) / TASKS).backward()
        if first:
            end = {n: p.detach().requires_grad_() for n, p in at.items()}
            parts = torch.autograd.grad(mse(module, end, query) / TASKS, list(end.values()))
            for parameter, part in zip(own.values(), parts):
                assert parameter.grad is not None
                parameter.grad += part


def trained_alone(maml: MAML, seed: int, outer: Any, steps: int = STEPS) -> tuple[MLP, Values]:
    """A network and what it learnt beside the weights, after a few steps of a plain loop."""
    module = network(seed)
    learnt = {
        n: v.requires_grad_() for n, v in start(maml, dict(module.named_parameters())).items()
    }
    every = [*module.parameters(), *learnt.values()]
    optimizer = outer(every)
    for step in range(steps):
        set_gradients(maml, module, learnt, step)
        torch.nn.utils.clip_grad_norm_(every, CLIP)
        optimizer.step()
    return module, {name: value.detach() for name, value in learnt.items()}


# --- training -------------------------------------------------------------------------------------

CASES = [
    (kind, axis, method, ENGINES[i % 3], OUTER[i // 3 % 3])
    for i, (kind, axis, method) in enumerate(itertools.product(INNER, AXES, METHODS))
    if "element" not in axis or kind in ("sgd", "adam")
]


def same(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("kind", "axis", "method", "engine", "outer"), CASES)
def test_training_is_a_plain_loop(
    kind: str, axis: str, method: Any, engine: Any, outer: Any
) -> None:
    maml = settings_of(kind, axis, method=method, engine=engine)
    trainer = trainer_of(maml, optimizer=outer)
    trainer.fit()
    module, learnt = trained_alone(maml, 0, outer)
    beside = trainer.loop.beside
    assert beside is not None
    found = dict(beside.named_parameters())
    assert found.keys() == learnt.keys()
    first = start(maml, dict(module.named_parameters()))
    for name, value in learnt.items():
        same(found[name].detach(), value)
        assert not torch.equal(first[name], value)
    for name, parameter in trainer.module.named_parameters():
        same(parameter.detach(), module.get_parameter(name).detach())
        assert torch.equal(trainer.learner.params[name], parameter)
        same(trainer.learner.params[name], parameter.detach())


@pytest.mark.parametrize(("kind", "axis", "method", "engine", "outer"), CASES[::4] + CASES[1::7])
def test_members_train_as_alone(kind: str, axis: str, method: Any, engine: Any, outer: Any) -> None:
    """Each with values of its own, each clipped by itself."""
    maml = settings_of(kind, axis, method=method, engine=engine)
    trainer = trainer_of(maml, seeds=range(3), optimizer=outer)
    trainer.fit()
    beside = trainer.loop.beside
    assert beside is not None and trainer.ensemble is not None
    for index in range(3):
        module, learnt = trained_alone(maml, index, outer)
        for name, value in beside.named_parameters():
            same(value[index].detach(), learnt[name])
        for name, parameter in trainer.ensemble.member(index).named_parameters():
            same(parameter.detach(), module.get_parameter(name).detach())


@pytest.mark.parametrize("members", [0, 3])
@pytest.mark.parametrize("axis", AXES)
def test_what_is_learnt_is_used_by_who_adapts(axis: str, members: int) -> None:
    """Beyond the steps of training the last value holds."""
    maml = settings_of("momentum", axis)
    trainer = trainer_of(maml, seeds=range(members) if members else 0)
    trainer.fit()
    ends = [trained_alone(maml, index, torch.optim.Adam) for index in range(max(members, 1))]
    support, query = (tuple(v[0] for v in part) for part in WAVES.sample("test", [0]))
    for steps in (1, 2, 4):
        scores = trainer.learner.score(WAVES.sample("test", [0]), steps=steps)
        module = trainer.learner.adapt(support, steps=steps)
        for index, (alone, learnt) in enumerate(ends):
            own = dict(alone.named_parameters())
            wanted = adapted(maml, alone, own, learnt, support, steps, constant=False)
            found = module.member(index) if isinstance(module, Ensemble) else module
            for name, parameter in found.named_parameters():
                same(parameter.detach(), wanted[name].detach())
            loss = mse(alone, wanted, query).detach()
            each = scores if scores.members is None else scores.members
            same(each.losses[0].reshape(-1, steps + 1)[index, -1], loss)


def test_parameters_that_are_frozen_have_no_step_size() -> None:
    trainer = trainer_of(settings_of("sgd", "parameter", frozen="1.*"))
    names = [name for name, _ in trainer.loop.beside.named_parameters()]  # type: ignore[union-attr]
    assert names == ["weight_decay", "lr.3.weight", "lr.3.bias"]
    trainer.fit()
