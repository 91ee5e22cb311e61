"""What is decided once: the same whatever the clock and the memory say, and kept from step 0."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from metalearn.checkpoint import load_checkpoint
from metalearn.core import chunking
from metalearn.errors import SettingError
from metalearn.models import MLP, Ensemble
from metalearn.tasks import SinusoidTasks
from metalearn.trainers import (
    MAML,
    LoopSettings,
    MetaTrainer,
    PerSampleTrainer,
    Trainer,
)
from metalearn.trainers.loop import plans as loop_plans
from metalearn.trainers.members import settings as member_settings
from metalearn.trainers.members.settings import plan_members
from metalearn.trainers.meta import planning
from tests.support.builders import (
    assert_same,
    before_gradient,
    ensemble_trainer,
    episode_trainer,
    extra_state,
    last,
    samples,
    sinusoid_trainer,
    state_of,
)


def per_sample_trainer(**settings: Any) -> PerSampleTrainer:
    data = samples()
    model = MLP(data.input_shape, data.outputs, hidden=(8,), seed=0)
    settings = {"steps": 6, "batch_size": 8, "progress": False, "chunk_size": "auto"} | settings
    return PerSampleTrainer(model, data, **settings)


def learners_trainer(**settings: Any) -> MetaTrainer:
    model = Ensemble.from_factory(lambda seed: MLP((1,), 1, hidden=(8,), seed=seed), range(2))
    settings = {"steps": 6, "meta_batch": 4, "validation_tasks": 5, "progress": False} | settings
    tasks = SinusoidTasks(shot=4, query=4)
    return MetaTrainer(model, tasks, maml=MAML(inner_lr=0.02, eval_steps=2), **settings)


TRAINERS: dict[str, Callable[..., Trainer]] = {
    "waves": sinusoid_trainer,
    "pictures": episode_trainer,
    "learners": learners_trainer,
    "ensemble": lambda **given: ensemble_trainer(engine="auto", **given),
    "per-sample": per_sample_trainer,
}
every_trainer = pytest.mark.parametrize("make", TRAINERS.values(), ids=TRAINERS)

PLENTY = 10**12


def plan_of(trainer: Trainer) -> Any:
    return trainer.learner.plan if isinstance(trainer, MetaTrainer) else trainer.plan  # type: ignore[attr-defined]


def machine(
    patch: pytest.MonkeyPatch, *, free: int = PLENTY, seconds: tuple[float, float] = (1.0, 1.0)
) -> None:
    """A machine with so much free memory, on which batched and loop take so long."""
    patch.setattr(loop_plans, "free_memory", lambda device: free)
    patch.setattr(chunking, "free_memory", lambda device: free)
    patch.setattr(member_settings, "_seconds", lambda *_: list(seconds))


def whole(make: Callable[..., Trainer], patch: pytest.MonkeyPatch) -> int:
    """Free memory that is just too little for everything at once."""
    low, high = 1, 10**8
    while high > 1.01 * low + 1:
        middle = (low + high) // 2
        machine(patch, free=middle)
        trainer = make()
        try:
            trainer.prepare()
            low, high = (middle, high) if plan_of(trainer).chunk_size else (low, middle)
        except SettingError:
            low = middle
    return low


@every_trainer
def test_a_deterministic_plan_does_not_depend_on_clock_and_memory(
    make: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    little = whole(make, monkeypatch)
    plans, others = [], []
    for free, seconds in ((PLENTY, (1.0, 9.0)), (PLENTY, (9.0, 1.0)), (little, (1.0, 1.0))):
        machine(monkeypatch, free=free, seconds=seconds)
        for deterministic, found in ((True, plans), (False, others)):
            trainer = make(deterministic=deterministic)
            trainer.prepare()
            found.append(plan_of(trainer))
    assert plans[0] == plans[1] == plans[2]
    assert plans[0].chunk_size is None
    assert len({(getattr(p, "engine", None), p.chunk_size) for p in others}) > 1  # the control


def test_a_deterministic_plan_keeps_a_budget_that_was_given() -> None:
    budget = 10**9
    for expected in (True, False):
        trainer = episode_trainer(deterministic=True, maml=MAML(inner_lr=0.2, memory=budget))
        trainer.prepare()
        plan = trainer.learner.plan
        assert plan is not None and plan.peak is not None and plan.peak <= budget
        assert ((plan.method, plan.chunk_size) == ("reverse", None)) is expected
        budget = plan.peak - 1


class Killed(BaseException):
    """The process ends here."""


def killed_after_the_first_checkpoint(trainer: Trainer) -> None:
    def end(step: int) -> None:
        raise Killed

    before_gradient(trainer, end)
    with pytest.raises(Killed):
        trainer.fit()


@every_trainer
def test_the_first_checkpoint_has_the_plan(
    make: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A run that is killed at once goes on bit for bit, on a machine that would plan otherwise."""
    machine(monkeypatch, free=whole(make, monkeypatch), seconds=(9.0, 1.0))
    first, other = make(folder=tmp_path), make()
    other.fit()
    killed_after_the_first_checkpoint(first)
    kept = {k: v for k, v in extra_state(first).items() if k != "diagnostics"}
    assert_same(load_checkpoint(last(tmp_path))["extra"], kept)
    machine(monkeypatch, seconds=(1.0, 9.0))

    def measured(*_: Any, **__: Any) -> Any:
        raise AssertionError("a resumed run measures nothing")

    for module, name in (
        (loop_plans, "free_memory"), (chunking, "free_memory"), (member_settings, "_seconds"),
        (planning, "plan_meta_gradient"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, measured)
    later = make()
    later.resume(last(tmp_path))
    assert later.fit().reason == "finished"
    kept, before = plan_of(later), plan_of(first)
    assert kept.chunk_size == before.chunk_size
    assert getattr(kept, "engine", None) == getattr(before, "engine", None)
    assert_same(state_of(later), state_of(other))


@pytest.mark.parametrize(
    ("seconds", "engine"),
    [
        ((2.09, 1.81), "batched"),
        ((2.10, 1.81), "batched"),
        ((1.0, 1.0), "batched"),
        ((1.0, 0.81), "batched"),
        ((1.0, 0.79), "loop"),
        ((0.1, 3.0), "batched"),
    ],
)
def test_near_ties_are_batched(
    seconds: tuple[float, float], engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, seconds=seconds)
    plan = plan_members(
        lambda *_: None, 3, engine="auto", chunk_size=None, memory=None, device=torch.device("cpu")
    )
    assert plan.engine == engine
    rule = "1.25 times as fast in the loop" if engine == "loop" else "not 1.25 times"
    batched, loop = (f"{1e3 * value:.3g}" for value in seconds)
    assert f"measured: batched {batched} ms, loop {loop} ms, {rule}" in str(plan)


def test_an_engine_asked_for_when_resuming_is_used(tmp_path: Path) -> None:
    first = ensemble_trainer(engine="batched", steps=2, folder=tmp_path)
    first.fit()
    for asked, found in (("loop", "loop"), ("auto", "batched"), ("batched", "batched")):
        later = ensemble_trainer(engine=asked, steps=4)
        later.resume(last(tmp_path))
        later.prepare()
        assert later.plan is not None and later.plan.engine == found


@pytest.mark.parametrize("kind", ["learner", "members"])
def test_memory_that_is_given_anew_is_planned_for(
    kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What was given for the run, or is left open now, leaves its plan as it is."""

    def make(memory: int | None, **more: Any) -> Any:
        if kind == "members":
            return ensemble_trainer(engine="batched", memory=memory, **more)
        return sinusoid_trainer(maml=MAML(inner_lr=0.02, memory=memory), **more)

    make(PLENTY, steps=2, folder=tmp_path).fit()
    for memory, anew in ((PLENTY, False), (None, False), (PLENTY + 1, True)):
        later = make(memory, steps=4)
        later.resume(last(tmp_path))
        assert (plan_of(later) is None) is anew
        later.fit()


def test_chunks_that_are_given_anew_are_taken(tmp_path: Path) -> None:
    sinusoid_trainer(steps=2, folder=tmp_path).fit()
    later = sinusoid_trainer(maml=MAML(inner_lr=0.02, eval_steps=2, chunk_size=3), steps=4)
    later.resume(last(tmp_path))
    later.fit()
    assert plan_of(later).chunk_size == 3


def test_per_sample_chunks_are_decided_and_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked, free = [], whole(per_sample_trainer, monkeypatch)
    monkeypatch.setattr(chunking, "free_memory", lambda device: asked.append(device) or free)
    trainer = per_sample_trainer()
    caplog.clear()  # of what measuring said
    with caplog.at_level(logging.INFO):
        trainer.fit()
    assert len(asked) == 1
    assert trainer.plan is not None and trainer.plan.chunk_size in range(1, 8)
    lines = [r.getMessage() for r in caplog.records if "per-sample gradients" in r.getMessage()]
    assert lines == [
        f"per-sample gradients: {trainer.plan.chunk_size} samples at a time; "
        "as many as memory has room for"
    ]


def test_deterministic_is_a_yes_or_no() -> None:
    with pytest.raises(SettingError, match="^deterministic=1: true or false is needed"):
        LoopSettings(deterministic=1)  # type: ignore[arg-type]
