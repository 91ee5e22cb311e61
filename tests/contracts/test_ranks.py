"""A training that ranks share is the training: one step, a run, its validations and checkpoints."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from metalearn.core.tree import tree_map
from metalearn.data import ClassificationData, RegressionData
from metalearn.errors import NonFiniteError, SettingError
from metalearn.models import MLP, Ensemble
from metalearn.tasks import FewShotTasks, SinusoidTasks
from metalearn.trainers import (
    BatchEnsembleTrainer,
    EnsembleTrainer,
    HyperTrainer,
    MCDropoutTrainer,
    PerSampleTrainer,
    SnapshotTrainer,
    SWAGTrainer,
    Trainer,
)
from metalearn.trainers.hyper.weight_decay import LearntWeightDecay
from tests.contracts.trainers import TRAINERS, Make
from tests.support.builders import Recorder, last, state_of
from tests.support.rank_threads import ThreadRanks, on_ranks
from tests.support.small_data import blobs, waves

ALONE = {"scripted"}
"""Trainers that one process takes by itself."""


def members(*hidden: int, **settings: Any) -> Trainer:
    """Members of one or more architectures on real targets."""
    made = [MLP((2,), 2, hidden=(width,), seed=seed) for seed, width in enumerate(hidden)]
    given: Any = {"steps": 6, "batch_size": 8, "loss": "mse", "engine": "batched"}
    given |= {"progress": False, "schedule": "constant", "clip": None, **settings}
    given.setdefault("optimizer", lambda ps: torch.optim.SGD(ps, lr=0.05, momentum=0.9))
    return EnsembleTrainer(Ensemble.from_modules(made), waves(), **given)


def one_network(kind: Callable[..., Trainer], p: float = 0.0, **settings: Any) -> Trainer:
    """An ensemble that is made of one network, of which a share p is dropped."""
    made = Ensemble.from_modules([MLP((2,), 3, hidden=(6,), dropout=p, seed=0)])
    given: Any = {"members": 2, "steps": 6, "batch_size": 8, "engine": "batched"}
    given |= {"progress": False}
    return kind(made, blobs(), **{**given, **settings})


def dropping(**settings: Any) -> Trainer:
    """One network by its samples, of which some are dropped."""
    given: Any = {"steps": 6, "batch_size": 7, "progress": False, "schedule": "constant"}
    network = MLP((2,), 3, hidden=(6, 6), dropout=0.4, seed=0)
    return PerSampleTrainer(network, blobs(), **{**given, **settings})


def shaping(method: str, hyper: str = "weight_decay", **settings: Any) -> Trainer:
    """What shapes runs of a network with dropout, Adam in them, five examples a step."""

    def network(seed: int = 0) -> MLP:
        return MLP((2,), 3, hidden=(5,), activation="gelu", dropout=0.3, seed=seed)

    inner: Any = {"steps": 3, "batch_size": 5, "optimizer": "adam", "lr": 0.05}
    given: Any = {"steps": 6, "progress": False, "outer_batch": 7, "method": method}
    given |= {"inner": inner, "factory": network}
    return HyperTrainer(network(), blobs(), hyper=hyper, **{**given, **settings})


DIVERGES = 1e35
MORE: dict[str, Make] = {
    "stacks": partial(members, 8, 12, 8),
    "stacks_apart": partial(members, 8, 8, 12, 12),
    "own_rates": partial(members, 8, 8, 8, lr=[0.1, 0.01, 0.0], weight_decay=[0.0, 0.1, 0.2]),
    "one_diverges": partial(members, 8, 8, 8, lr=[DIVERGES, 0.01, 0.01]),
    "a_stack_diverges": partial(members, 8, 12, 12, lr=[DIVERGES, 0.01, 0.01]),
    "half_a_stack_diverges": partial(members, 8, 8, 12, 12, lr=[DIVERGES, DIVERGES, 0.1, 0.1]),
    "patience": partial(members, 8, 8, 12, lr=[0.0, 0.3, 0.01], patience=1, eval_every=1),
    "average": partial(members, 8, 8, 12, average=0.5),
    "average_of_tasks": partial(TRAINERS["waves"], average=0.5, accumulate=2),
    "batch_ensemble": partial(one_network, BatchEnsembleTrainer),
    "snapshot": partial(one_network, SnapshotTrainer),
    "mc_dropout": partial(one_network, MCDropoutTrainer, 0.4),
    "dropout": partial(dropping, max_norm=math.inf),
    "dropout_clipped": partial(dropping, max_norm=0.5),
    "private_norm": partial(TRAINERS["private"], clip_quantile={"quantile": 0.5, "rate": 0.5}),
    "private_growth": partial(
        TRAINERS["private"],
        batch_growth={"most": 32, "window": 2, "threshold": 0.01},
        accountant="rdp",
    ),
    "private_empty_parts": partial(TRAINERS["private"], batch_size=3, clip_quantile=0.5),
    "private_few_tasks": partial(TRAINERS["private_meta"], meta_batch=3),
    "swag": partial(one_network, SWAGTrainer, start=0.3, every=1),
    # its fresh networks are global draws, which threads would take for each other's
    "hyper_learning_rates": partial(
        TRAINERS["hyper_learning_rates"], inner={"steps": 3, "batch_size": 8}
    ),
    "hyper_reverse": partial(shaping, "reverse", "example_weights", accumulate=2),
    "hyper_mixed": partial(shaping, "mixed"),
    "hyper_truncated": partial(shaping, "truncated", "distilled", truncation=2),
    "hyper_implicit": partial(shaping, "implicit", implicit={"iterations": 2, "damping": 1.0}),
    "hyper_series": partial(
        shaping,
        "implicit",
        "example_weights",
        implicit={"solver": "neumann", "iterations": 2, "product": "difference"},
    ),
    "hyper_first_order": partial(shaping, "first_order", "learning_rates"),
}
"""Beside those that all contracts run over."""
SHARED = {**{n: make for n, make in TRAINERS.items() if n not in ALONE}, **MORE}

shared = pytest.mark.parametrize("make", SHARED.values(), ids=SHARED)
LENGTH = {"snapshot", "swag", "private_growth"}
"""Those that follow from how long they are: their schedules, or their noise."""
METHODS = {name for name in MORE if name.startswith("hyper_")}
"""Of gradients through runs; what they go on from is that of all kinds of what is learnt."""
RESUMED = {name: make for name, make in SHARED.items() if name not in LENGTH | METHODS}
resumed = pytest.mark.parametrize("make", RESUMED.values(), ids=RESUMED)
counts = pytest.mark.parametrize("count", [2, 3])
CADENCE: dict[str, Any] = {"log_every": 2, "eval_every": 3, "checkpoint_every": 3}


_SOURCES = [
    (SinusoidTasks, "sample"), (FewShotTasks, "sample"), (FewShotTasks, "training_samples"),
    (ClassificationData, "take"), (RegressionData, "take"),
]  # fmt: skip


def _doubled(give: Callable[..., Any]) -> Callable[..., Any]:
    def given(*args: Any, **how: Any) -> Any:
        return tree_map(lambda x: x.double() if x.is_floating_point() else x, give(*args, **how))

    return given


@pytest.fixture(autouse=True)
def _in_double(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Networks and data in float64, in which sums in another order differ by next to nothing."""
    for source, name in _SOURCES:
        monkeypatch.setattr(source, name, _doubled(getattr(source, name)))
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def numbers(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Parameters, buffers, the optimiser's state, what is learnt beside, and all at their best."""
    state = state_of(trainer)
    optimizer = {
        f"{index}/{name}": value
        for index, values in state["optimizer"]["state"].items()
        for name, value in values.items()
    }
    trees = {"optimizer": optimizer, **{n: state.get(n, {}) for n in ("module", "learnt", "best")}}
    return {
        f"{tree}/{name}": value.detach().double().clone()
        for tree, values in trees.items()
        for name, value in values.items()
        if isinstance(value, torch.Tensor)
    }


@shared
@counts
def test_a_step_is_that_of_one_process(make: Make, count: int) -> None:
    alone = make().gradient(0)
    for found in on_ranks(count, lambda ranks: ranks.made(make).gradient(0)):
        assert found.count == alone.count
        torch.testing.assert_close(found.losses, alone.losses, rtol=1e-12, atol=1e-12)
        for name, grad in alone.grads.items():
            torch.testing.assert_close(found.grads[name], grad, rtol=1e-10, atol=1e-12)


@shared
def test_a_run_is_that_of_one_process(make: Make) -> None:
    alone, seen = make(**CADENCE), Recorder()
    alone.tracker = seen
    alone.fit()
    trackers = [Recorder(), Recorder()]

    def run(ranks: ThreadRanks) -> Trainer:
        trainer = ranks.made(make, **CADENCE)
        trainer.tracker = trackers[ranks.rank]
        trainer.fit()
        return trainer

    one, other = on_ranks(2, run)
    torch.testing.assert_close(numbers(one), numbers(alone), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(numbers(one), numbers(other), rtol=0, atol=0)
    assert one.best_step == other.best_step == alone.best_step
    for name in ("train/loss", alone.monitor):
        assert seen.steps(name) == trackers[0].steps(name)
        assert trackers[0].series(name) == pytest.approx(seen.series(name), rel=1e-7)
    assert not trackers[1].numbers  # the first alone keeps records


@resumed
def test_checkpoints_go_on_with_any_number_of_ranks(make: Make, tmp_path: Path) -> None:
    """Two ranks for three steps, one for none, three to the end."""

    def begin(ranks: ThreadRanks) -> None:
        ranks.made(make, steps=3, folder=tmp_path, schedule="constant", **CADENCE).fit()

    def go_on(ranks: ThreadRanks) -> dict[str, torch.Tensor]:
        trainer = ranks.made(make, folder=tmp_path, schedule="constant", **CADENCE)
        trainer.resume(last(tmp_path))
        trainer.fit()
        return numbers(trainer)

    whole = make(schedule="constant", **CADENCE)
    whole.fit()
    on_ranks(2, begin)
    (found, *_) = on_ranks(3, go_on)
    torch.testing.assert_close(found, numbers(whole), rtol=1e-8, atol=1e-8)


@resumed
def test_a_stop_and_as_many_ranks_leave_no_trace(make: Make, tmp_path: Path) -> None:
    """Bit for bit."""
    how: Any = {"schedule": "constant", **CADENCE}

    def whole(ranks: ThreadRanks) -> dict[str, torch.Tensor]:
        trainer = ranks.made(make, **how)
        trainer.fit()
        return numbers(trainer)

    def halves(ranks: ThreadRanks) -> dict[str, torch.Tensor]:
        ranks.made(make, steps=3, folder=tmp_path, **how).fit()
        trainer = ranks.made(make, folder=tmp_path, **how)
        trainer.resume(last(tmp_path))
        trainer.fit()
        return numbers(trainer)

    wanted, found = on_ranks(2, whole)[0], on_ranks(2, halves)
    for one in found:
        torch.testing.assert_close(one, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("name", sorted(ALONE))
def test_what_cannot_be_divided_is_refused(name: str) -> None:
    with pytest.raises((SettingError, TypeError), match="ranks"):
        on_ranks(2, lambda ranks: ranks.made(TRAINERS[name]))


class _OwnLoss(LearntWeightDecay):
    def inner_loss(self, *args: Any) -> torch.Tensor:
        return super().inner_loss(*args) ** 2


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"hyper": _OwnLoss}, "ranks=4: 1 is needed: _OwnLoss.inner_loss is not known"),
        ({"inner": {"batch_size": 3}}, "inner.batch_size=3: at least 4"),
        ({"outer_batch": 3}, "outer_batch=3: at least 4"),
        ({"hyper": "distilled"}, "examples of a step of a run=3: at least 4"),
    ],
)
def test_runs_that_cannot_be_divided_are_refused(settings: dict[str, Any], said: str) -> None:
    def run(ranks: ThreadRanks) -> None:
        given: Any = {"inner": {"steps": 1, "batch_size": 8}, "steps": 1}
        given |= {"progress": False, "hyper": "weight_decay", **settings}
        ranks.made(lambda **own: HyperTrainer(MLP((2,), 3), blobs(), **given, **own)).gradient(0)

    with pytest.raises(SettingError, match=re.escape(said)):
        on_ranks(4, run)


@pytest.mark.parametrize(("method", "most"), [("reverse", 4), ("mixed", 8)])
def test_a_step_of_a_run_takes_few_messages(method: str, most: int) -> None:
    def run(ranks: ThreadRanks, steps: int) -> int:
        inner = {"steps": steps, "batch_size": 8}
        given: Any = {"hyper": "example_weights", "method": method, "progress": False}
        given |= {"inner": inner}
        trainer = ranks.made(lambda **own: HyperTrainer(MLP((2,), 3), blobs(), **given, **own))
        before = len(ranks.messages)
        trainer.gradient(0)
        return len(ranks.messages) - before

    shorter, longer = (on_ranks(2, partial(run, steps=steps))[0] for steps in (4, 8))
    assert 0 < longer - shorter <= 4 * most


@pytest.mark.parametrize("rates", [(DIVERGES, DIVERGES), (DIVERGES, DIVERGES, DIVERGES)])
@pytest.mark.parametrize("count", [1, 2])
def test_where_all_members_diverge_the_run_ends_with_their_best(
    rates: tuple[float, ...], count: int, tmp_path: Path
) -> None:
    def run(ranks: ThreadRanks) -> str:
        trainer = ranks.made(
            partial(members, *[8] * len(rates)), lr=rates, folder=tmp_path, steps=12
        )
        with pytest.raises(NonFiniteError) as caught:
            trainer.fit()
        return str(caught.value)

    first, *_ = on_ranks(count, run)
    assert "every member has diverged" in first and "their best states are in" in first
    assert len(list((tmp_path / "checkpoints").glob("non_finite_step_*.pt"))) == 1


@pytest.mark.parametrize("log_every", [1, 12])
def test_a_rank_whose_members_are_frozen_waits_for_the_others(log_every: int) -> None:
    """It is not known to it, until all meet, that theirs have diverged meanwhile."""

    def run(ranks: ThreadRanks) -> list[bool]:
        how: Any = {"lr": [DIVERGES, 0.0], "patience": 1, "eval_every": 4}
        trainer = ranks.made(partial(members, 8, 8), steps=24, log_every=log_every, **how)
        trainer.fit()
        return trainer.active.tolist()

    assert on_ranks(2, run) == [[False, False]] * 2


def test_a_stop_is_heard_by_all_between_parts_of_a_validation_and_not_twice() -> None:
    def run(ranks: ThreadRanks) -> list[tuple[int, int | None]]:
        trainer = ranks.made(TRAINERS["waves"], **CADENCE)
        found = []
        for _ in range(3):
            with trainer.stoppable() as stop:
                if ranks.rank == 1 and not found:
                    stop.received = 15
                result = trainer.fit()
                found.append((result.step, result.signal))
        return found

    one, other = on_ranks(2, run)
    assert one == other
    (step, signal), *rest = one
    assert step < 6 and signal == 15 and rest == [(6, None), (6, None)]
