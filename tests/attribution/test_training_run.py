"""A trainer's run computed again: it ends where the trainer ends, and its gradient is right.

Axes: K steps, N examples, R targets.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.attribution import TrainingRun, exact_scores, run_curvature, training_run
from metalearn.core import hessian
from metalearn.core.tree import leaves
from metalearn.errors import SettingError
from metalearn.models import MLP, Ensemble
from metalearn.trainers import EnsembleTrainer, PerSampleTrainer, SnapshotTrainer
from tests.support.small_data import blobs, waves

STEPS = 6
OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "sgd": partial(torch.optim.SGD, lr=0.1),
    "nesterov": partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": partial(torch.optim.Adam, lr=0.01, weight_decay=0.01),
    "adamw": partial(torch.optim.AdamW, lr=0.01, betas=(0.8, 0.95)),
}
inputs: Any = torch.tensor([[0.3, -1.0], [1.0, 0.4]])
TARGETS = inputs, torch.tensor([0, 2])


def net(seed: int = 0, outputs: int = 3) -> nn.Module:
    return MLP((2,), outputs, hidden=(5,), activation="gelu", dropout=0.2, seed=seed)


def one(**settings: Any) -> PerSampleTrainer:
    given: dict[str, Any] = {
        "steps": STEPS, "batch_size": 8, "max_norm": float("inf"), "diagnostics": [],
        "optimizer": OPTIMIZERS["sgd"], "progress": False, "data": blobs(), "model": net(),
    } | settings  # fmt: skip
    return PerSampleTrainer(given.pop("model"), given.pop("data"), **given)


def members(**settings: Any) -> EnsembleTrainer:
    given: dict[str, Any] = {
        "steps": STEPS, "batch_size": 8, "optimizer": OPTIMIZERS["sgd"], "progress": False,
        "data": blobs(), "model": Ensemble.from_factory(net, range(3)),
    } | settings  # fmt: skip
    return EnsembleTrainer(given.pop("model"), given.pop("data"), **given)


def end_of(run: TrainingRun) -> dict[str, Tensor]:
    ((_, params),) = run.states([run.steps])
    return params


def assert_ends(params: Any, module: nn.Module) -> None:
    named = dict(module.named_parameters())
    assert set(params) == set(named)
    for name, value in params.items():
        torch.testing.assert_close(value, named[name].detach(), rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(
    "settings",
    [{}, {"schedule": "one_cycle"}, {"warmup": 3, "clip": 0.1}, {"weighted": True}],
    ids=["plain", "one_cycle", "clipped", "weighted"],
)
def test_one_network_ends_where_its_trainer_ends(name: str, settings: dict[str, Any]) -> None:
    settings = {"optimizer": OPTIMIZERS[name], **settings}
    if settings.pop("weighted", False):
        settings["member_weights"] = torch.linspace(0, 2, 48)
    run, trainer = training_run(one(**settings)), one(**settings)
    trainer.fit()
    assert_ends(end_of(run), trainer.module)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(
    "settings",
    [
        {"lr": [0.01, 0.03, 0.1], "label_smoothing": [0.0, 0.1, 0.2]},
        {"shuffle": "shared", "dropout": [0.0, 0.3, 0.5], "clip": None},
        {"bootstrap": True, "member_weights": {"leave_out": 0.3}},
    ],
    ids=["own settings", "shared", "bootstrap"],
)
def test_a_member_ends_where_its_trainer_ends(name: str, settings: dict[str, Any]) -> None:
    settings = {"optimizer": OPTIMIZERS[name], **settings}
    trainer = members(**settings)
    trainer.fit()
    for member in (0, 2):
        run = training_run(members(**settings), member=member)
        assert_ends(end_of(run), trainer.ensemble.member(member))


def test_a_regression_too() -> None:
    settings = {"data": waves(), "model": net(outputs=4)}
    run = training_run(one(**settings))
    trainer = one(**settings)
    trainer.fit()
    assert_ends(end_of(run), trainer.module)
    found = exact_scores(run, waves().part("test"))
    assert found.scores.shape == (24, 48) and not found.warning


def test_a_run_of_fewer_steps_is_the_beginning_of_it() -> None:
    whole = training_run(one())
    ((_, early),) = whole.states([3])
    assert_trees_equal(early, end_of(training_run(one(), steps=3)))


def test_states_are_those_on_the_way() -> None:
    run = training_run(one())
    found = dict(run.states([0, 2, STEPS]))
    assert list(found) == [0, 2, STEPS]
    assert_trees_equal(found[0], run.params)


def assert_trees_equal(one: Any, other: Any) -> None:
    for a, b in zip(leaves(one), leaves(other), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("make", [one, members])
def test_scores_foretell_what_leaving_an_example_out_a_little_does(make: Any) -> None:
    run = training_run(make())
    found = exact_scores(run, TARGETS)
    assert found.scores.shape == (2, 48) and found.check is not None
    assert found.check.agrees(0.01) and not found.warning
    size = 0.05
    for i in (0, 7):
        ends = []
        for shift in (size, -size):
            weights = torch.ones(48)
            weights[i] += shift
            trainer = make(member_weights=weights.expand(3, 48) if make is members else weights)
            trainer.fit()
            module = trainer.ensemble.member(0) if make is members else trainer.module
            ends.append(F.cross_entropy(module.eval()(TARGETS[0]), TARGETS[1], reduction="none"))
        measured = -(ends[0] - ends[1]).detach() / (2 * size)
        torch.testing.assert_close(found.scores[:, i], measured, rtol=0.02, atol=2e-5)


def test_examples_that_no_batch_had_score_nothing() -> None:
    run = training_run(one(steps=2))
    seen = torch.cat([run.batch(k)[2] for k in range(2)])
    scores = exact_scores(run, TARGETS, check=False).scores
    unseen = torch.ones(48, dtype=torch.bool)
    unseen[seen] = False
    assert int(unseen.sum()) == 48 - 16
    assert not scores[:, unseen].any() and bool(scores[:, ~unseen].any(0).all())


def test_curvature_is_the_largest_eigenvalue_of_a_step() -> None:
    run = training_run(one(model=MLP((2,), 3, hidden=(), seed=0)))
    found = run_curvature(run, places=3, iterations=9)
    assert found.steps == [0, 2, 5] and found.rates == pytest.approx(run.rates[[0, 2, 5]].tolist())
    for (k, params), value in zip(run.states(found.steps), found.eigenvalues):
        batch = run.batch(k)
        vector = torch.cat([v.flatten() for v in params.values()])

        def loss(v: Tensor, params: Any = params, batch: Any = batch) -> Tensor:
            parts = v.split([p.numel() for p in params.values()])
            tree = {n: part.view_as(p) for (n, p), part in zip(params.items(), parts)}
            return run.inner_loss(tree, run.weights, batch)

        dense: Any = hessian(loss)(vector)
        assert value == pytest.approx(float(torch.linalg.eigvalsh(dense)[-1]), rel=1e-3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: one(max_norm=1.0), "trainer.max_norm=1.0: max_norm=inf is needed"),
        (lambda: one(average=0.9), "trainer.average=0.9: None is needed where a run is diff"),
        (lambda: one(accumulate=2), "trainer.accumulate=2: 1 is needed"),
        (lambda: one(precision="bfloat16"), "trainer.precision='bfloat16': float32 is needed"),
        (lambda: one(optimizer=torch.optim.RMSprop), "optimizer='RMSprop': SGD, Adam or AdamW"),
        (lambda: one(optimizer=partial(torch.optim.Adam, amsgrad=True)), "optimizer.amsgrad=True"),
        (lambda: members(model=normed()), "model='1: BatchNorm1d': a norm without running stat"),
        (lambda: snapshots(), "trainer='SnapshotTrainer': an EnsembleTrainer or a PerSampleTra"),
        (lambda: begun(), "trainer='at step 6': one that has not begun is needed"),
        (lambda: None, "trainer='NoneType': an EnsembleTrainer or a PerSampleTrainer"),
    ],
)  # fmt: skip
def test_runs_that_are_more_than_steps_are_refused(make: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        training_run(make())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"member": 3}, "member=3: a whole number from 0 to 2"),
        ({"steps": 7}, "steps=7: a whole number"),
        ({"steps": 0}, "steps=0: a whole number"),
    ],
)
def test_members_and_steps_that_there_are_not(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        training_run(members(), **settings)


def test_states_that_there_are_not() -> None:
    for at in ([], [2, 1], [STEPS + 1], [-1]):
        with pytest.raises(SettingError, match="at=.*rising numbers from 0 to 6"):
            list(training_run(one()).states(at))


def normed() -> Ensemble:
    def make(seed: int) -> nn.Module:
        return nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))

    return Ensemble.from_factory(make, range(2))


def snapshots() -> Any:
    settings: Any = {"members": 2, "steps": 4, "batch_size": 8, "progress": False}
    return SnapshotTrainer(Ensemble.from_modules([net()]), blobs(), **settings)


def begun() -> Any:
    trainer = one()
    trainer.fit()
    return trainer
