"""Steps whose gradient is compiled: equal to those that are not, and only where it holds and pays.

The graphs run operation by operation here (``aot_eager``); inductor itself has a test of its own.
"""

from __future__ import annotations

import copy
import logging
import math
import signal
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from metalearn.checkpoint import load_checkpoint, save_checkpoint
from metalearn.core import MetaGradient
from metalearn.core.compilation import CompiledFunction
from metalearn.errors import DataError, SettingError
from metalearn.models import MLP, Ensemble
from metalearn.tasks import SinusoidTasks
from metalearn.trainers import MAML, EnsembleTrainer, MetaLearner, MetaTrainer, PerSampleTrainer
from metalearn.trainers.loop import assembly, compile_cost, compiled_part
from metalearn.trainers.loop.compiled_part import CompiledPart
from metalearn.trainers.loop.compiled_update import CompiledUpdate
from metalearn.trainers.loop.flat_update import FlatUpdate
from metalearn.trainers.loop.protocols import Callback
from metalearn.trainers.loop.pure_calls import as_it_is, held, keyed, same_call
from metalearn.trainers.loop.stop_signal import Stopped
from metalearn.trainers.meta.registry import LEARNERS
from metalearn.types import Batch, Params, TaskBatch
from tests.contracts.trainers import TASKS, TRAINERS, network
from tests.support.builders import assert_same, sinusoid_trainer, state_of
from tests.support.small_data import blobs

NOT_COMPILED = ("private", "hyper", "scripted")
COMPILED = [name for name in TRAINERS if not name.startswith(NOT_COMPILED)]
OFTEN = ["waves", "waves_first_order", "waves_learnt_members", "ensemble", "per_sample", "protonet"]


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (CompiledPart, CompiledUpdate):
        monkeypatch.setattr(assembly, kind.__name__, partial(kind, compiler="aot_eager"))


@pytest.fixture(name="runs")
def _runs(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether compiled code held, of each time that it was asked."""
    seen, run = [], CompiledFunction.run

    def noted(self: CompiledFunction, *args: Any) -> Any:
        found = run(self, *args)
        seen.append(found is not None)
        return found

    monkeypatch.setattr(CompiledFunction, "run", noted)
    return seen


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in OFTEN else pytest.mark.campaign) for n in COMPILED]
)
def test_a_compiled_training_is_one_that_is_not(name: str, runs: list[bool]) -> None:
    plain, compiled = (TRAINERS[name](compile=w) for w in ("never", "always"))
    plain.fit()
    assert not runs
    compiled.fit()
    changing = name.startswith("mamlpp")  # weights of its losses, in each of these few steps
    assert runs.count(True) >= (0 if changing else plain.settings.steps - 1)
    for key, value in state_of(plain).items():
        torch.testing.assert_close(state_of(compiled)[key], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [n for n in TRAINERS if n.startswith(NOT_COMPILED)])
def test_what_cannot_be_compiled_is_refused_before_the_first_step(name: str) -> None:
    trainer = TRAINERS[name](compile="always")
    before = copy.deepcopy(state_of(trainer)["module"])
    with pytest.raises(SettingError, match="^compile='always': auto or never is needed: its grad"):
        trainer.fit()
    assert trainer.step == 0
    assert_same(before, state_of(trainer)["module"])
    TRAINERS[name]().fit()  # by default it goes on as it is


def test_settings_are_auto_always_or_never() -> None:
    with pytest.raises(SettingError, match="^compile='yes': auto, always or never is needed$"):
        sinusoid_trainer(compile="yes")


# --- when it is compiled -------------------------------------------------------------------------


@pytest.fixture(name="cheap")
def _cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling always pays."""
    monkeypatch.setattr(compiled_part, "worth_a_look", lambda seconds, calls: True)
    monkeypatch.setattr(compile_cost.Offer, "pays", True)


def part_of(trainer: Any) -> CompiledPart:
    (part,) = (c for c in trainer.loop.callbacks if isinstance(c, CompiledPart))
    return part


@pytest.mark.usefixtures("cheap")
def test_by_default_a_few_calls_are_timed_first(
    runs: list[bool], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        sinusoid_trainer(steps=8).fit()
    assert runs == [True] * 5
    said = [r.getMessage() for r in caplog.records if "compil" in r.getMessage()]
    assert "operations" in said[0] and said[1].startswith("compiled in ")


def test_short_runs_are_not_compiled_nor_traced(
    runs: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    offers: list[Any] = []
    monkeypatch.setattr(compiled_part, "offer_of", lambda *given: offers.append(given))
    trainer = sinusoid_trainer(steps=8)
    trainer.fit()
    assert not runs and not offers and part_of(trainer).state()["compiled"]["over"]


def test_what_does_not_pay_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, runs: list[bool]
) -> None:
    monkeypatch.setattr(compiled_part, "worth_a_look", lambda seconds, calls: True)
    with caplog.at_level(logging.INFO):
        sinusoid_trainer(steps=8).fit()
    assert not runs
    (said,) = (r.getMessage() for r in caplog.records if "compil" in r.getMessage())
    assert said.startswith("steps are not compiled, as that does not pay: ")


@pytest.mark.usefixtures("cheap")
def test_deterministic_runs_and_those_that_may_not_are_as_they_are(runs: list[bool]) -> None:
    sinusoid_trainer(deterministic=True).fit()
    sinusoid_trainer(compile="never").fit()
    assert not runs
    sinusoid_trainer(deterministic=True, compile="always").fit()
    assert runs


@pytest.mark.parametrize(
    ("seconds", "calls", "worth"),
    [(1.0, 999, False), (0.005, 1000, False), (0.01, 1000, True), (0.001, 10_000, True)],
)
def test_what_could_pay(seconds: float, calls: int, worth: bool) -> None:
    assert compile_cost.worth_a_look(seconds, calls) is worth


def test_an_offer_is_of_small_operations_alone() -> None:
    code = CompiledFunction(lambda x: sum(x * 0.1 for _ in range(100)), compiler="aot_eager")
    offer = compile_cost.offer_of(code, (torch.ones(8),), 1.0, 1000)
    assert offer.operations == 200 and not offer.known
    assert offer.compiling == pytest.approx(200 * 0.08)
    assert 900 < offer.saved < 1000 and offer.pays
    large = CompiledFunction(lambda x: x @ x, compiler="aot_eager")
    matrix = torch.ones(800, 800)
    floor = large.trace(matrix).seconds((matrix,))
    assert compile_cost.offer_of(large, (matrix,), floor, 100).saved < 0.6 * 100 * floor


# --- what it holds for ---------------------------------------------------------------------------


class Drifting(MetaLearner):
    """A learner whose loss depends on the step, of which its gradient's settings say nothing."""

    late: ClassVar[list[bool]] = [False]  # a list, as numbers among attributes are seen at once
    from_then_on: Any = staticmethod(lambda step: step >= 20)

    def gradient(self, params: Params, tasks: TaskBatch, *, step: int = 0) -> MetaGradient:
        """From some step on, or at some steps, of another loss."""
        self.late[0] = self.from_then_on(step)
        return super().gradient(params, tasks, step=step)

    def loss(self, params: Params, batch: Batch) -> Tensor:
        """Three times as large later."""
        return super().loss(params, batch) * (1 + 2 * self.late[0])


class Turning(Drifting):
    """At each fourth step."""

    from_then_on = staticmethod(lambda step: step % 4 == 3)


class Late(Drifting):
    """In the last steps of 60 alone."""

    from_then_on = staticmethod(lambda step: step >= 58)


@pytest.mark.parametrize(("kind", "most"), [(Drifting, 32), (Turning, 8), (Late, 59)])
def test_a_loss_that_changes_by_itself_is_noticed_and_left_alone(
    caplog: pytest.LogCaptureFixture, runs: list[bool], kind: Any, most: int
) -> None:
    how: Any = {"steps": 60, "meta_batch": 4, "validation_tasks": 5, "progress": False}
    model, tasks = MLP((1,), 1, hidden=(6,), seed=0), SinusoidTasks(shot=4, query=4)
    make = partial(kind, kind="regression")
    trainer = MetaTrainer(model, tasks, learner=make, compile="always", **how)
    trainer.fit()
    (said,) = (r.getMessage() for r in caplog.records if "differs" in r.getMessage())
    assert "from here on steps are not compiled" in said
    assert part_of(trainer).state()["compiled"]["over"] and len(runs) <= most


class Warming(MetaLearner):
    """A learner with a number that changes."""

    factor = 0.0

    def gradient(self, params: Params, tasks: TaskBatch, *, step: int = 0) -> MetaGradient:
        """Its loss grows for ten steps."""
        self.factor = min(step, 10) / 10
        return super().gradient(params, tasks, step=step)

    def loss(self, params: Params, batch: Batch) -> Tensor:
        """Slowly larger."""
        return super().loss(params, batch) * (1 + 1e-4 * self.factor)


@pytest.mark.usefixtures("cheap")
def test_numbers_of_a_learner_and_attributes_of_a_module_are_seen_at_once(
    runs: list[bool], caplog: pytest.LogCaptureFixture
) -> None:
    how: Any = {"steps": 30, "meta_batch": 4, "validation_tasks": 5, "progress": False}
    make = partial(Warming, kind="regression")
    model, tasks = MLP((1,), 1, hidden=(6,), seed=0), SinusoidTasks(shot=4, query=4)
    MetaTrainer(model, tasks, learner=make, **how).fit()
    assert runs == [True] * 17  # of steps 13 to 29: those of 10, 11 and 12 are alike

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.scale = MLP((2,), 3, hidden=(5,), seed=0), 1.0

        def forward(self, inputs: Tensor) -> Tensor:
            found: Tensor = self.inner(inputs) * self.scale
            return found

    class Scaling(Callback):
        def before_step(self, loop: Any, step: int) -> None:
            loop.module.scale = 1.0 if step < 9 else 1.0001

    trained = []
    for wanted in ("never", "always"):
        trainer = PerSampleTrainer(
            Scaled(), blobs(), steps=12, batch_size=8, compile=wanted, progress=False
        )
        trainer.loop.callbacks = (*trainer.loop.callbacks, Scaling())
        trainer.fit()
        trained.append(state_of(trainer)["module"])
    assert_same(*trained)
    assert runs[17:] == [True] * 8
    assert not [r for r in caplog.records if "differs" in r.getMessage()]


@pytest.mark.usefixtures("cheap")
def test_a_model_that_cannot_be_traced_trains_as_it_is(
    caplog: pytest.LogCaptureFixture, runs: list[bool]
) -> None:
    class Reading(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = MLP((2,), 3, hidden=(5,))
            self.register_buffer("scale", torch.ones(()))

        def forward(self, inputs: Tensor) -> Tensor:
            found: Tensor = self.inner(inputs) * float(self.scale)
            return found

    how: Any = {"steps": 6, "batch_size": 8, "noise_multiplier": 0.0, "progress": False}
    with caplog.at_level(logging.INFO):
        PerSampleTrainer(Reading(), blobs(), **how).fit()
    assert not runs
    assert any("steps are not compiled: " in r.getMessage() for r in caplog.records)
    with pytest.raises(SettingError, match="^compile='always': auto or never is needed: "):
        PerSampleTrainer(Reading(), blobs(), compile="always", **how).fit()


def test_batch_norms_of_members_are_refused_in_one_sentence_and_written_once() -> None:
    made = lambda seed: nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))  # noqa: E731
    how: Any = {"steps": 6, "batch_size": 8, "progress": False, "compile": "always"}
    trainer = EnsembleTrainer(Ensemble.from_factory(made, range(2)), blobs(), **how)
    said = (
        "^compile='always': auto or never is needed: this function cannot be compiled: "
        "it writes to its arguments, or to a tensor from elsewhere$"
    )
    with pytest.raises(SettingError, match=said):
        trainer.fit()
    (count,) = (b for n, b in trainer.module.named_buffers() if n.endswith("num_batches_tracked"))
    assert count.tolist() == [1, 1]  # of the gradient that was not applied; tracing wrote nothing


def test_a_failing_compiler_ends_no_training(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(compiled_part, "worth_a_look", lambda seconds, calls: True)
    monkeypatch.setattr(compile_cost.Offer, "pays", True)

    def failing(self: Any, *args: Any, **rest: Any) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(CompiledFunction, "compile", failing)
    plain, trainer = sinusoid_trainer(compile="never"), sinusoid_trainer()
    with caplog.at_level(logging.INFO):
        trainer.fit()
    plain.fit()
    assert_same(state_of(plain), state_of(trainer))
    assert any("steps are not compiled: MemoryError" in r.getMessage() for r in caplog.records)


def test_weights_of_losses_that_change_are_not_those_of_the_first_step(runs: list[bool]) -> None:
    made = mamlpp(multi_step_steps=10, first_order_steps=4)
    plain, compiled = made(compile="never"), made(compile="always")
    plain.fit()
    compiled.fit()
    for key, value in state_of(plain).items():
        torch.testing.assert_close(state_of(compiled)[key], value, rtol=1e-5, atol=1e-6)


def test_members_that_have_stopped_are_not_computed(runs: list[bool]) -> None:
    def trained(compile: str) -> Any:
        trainer: Any = TRAINERS["ensemble"](steps=12, compile=compile)
        trainer.loop.population.active[1] = False
        trainer.fit()
        return trainer

    plain, compiled = trained("never"), trained("always")
    for key, value in state_of(plain).items():
        torch.testing.assert_close(state_of(compiled)[key], value, rtol=1e-5, atol=1e-6)
    assert any(runs)


def test_half_precision_is_compiled_as_such(runs: list[bool]) -> None:
    def trained(compile: str) -> Any:
        trainer = sinusoid_trainer(steps=6, precision="bfloat16", compile=compile)
        trainer.fit()
        return trainer

    plain = trained("never")
    compiled = trained("always")
    assert runs == [True] * 5
    for key, value in state_of(plain).items():
        torch.testing.assert_close(state_of(compiled)[key], value, rtol=2e-2, atol=2e-3)


def test_afterwards_the_learner_is_as_before() -> None:
    trainer = sinusoid_trainer(compile="always")
    trainer.fit()
    assert trainer.loop.objective.pure is as_it_is


@pytest.mark.usefixtures("cheap")
def test_code_that_holds_no_more_is_made_anew_after_a_while(
    monkeypatch: pytest.MonkeyPatch, runs: list[bool]
) -> None:
    monkeypatch.setattr(compiled_part, "_OTHERS", 4)
    trainer = mamlpp(first_order_steps=6, multi_step_steps=1)()
    trainer.fit()
    state = part_of(trainer).state()["compiled"]
    assert state["tries"] == 2 and state["graph"]
    assert runs[-1]


def mamlpp(**settings: Any) -> Any:
    """Trainings of a learner whose gradient changes over them."""
    learner = partial(LEARNERS["mamlpp"].make, **settings)
    how: Any = {"steps": 20, "meta_batch": 4, "validation_tasks": 5, "progress": False}
    how |= {"maml": MAML(inner_lr=0.2, inner_steps=2, eval_steps=2)}
    return lambda **other: MetaTrainer(network(), TASKS, learner=learner, **how, **other)


# --- going on ------------------------------------------------------------------------------------


def split_in_two(folder: Path, name: str, wanted: str, runs: list[bool]) -> None:
    """A run of nine steps that stops after the fifth is one that does not, compiled to the end."""
    make = partial(TRAINERS[name], compile=wanted, schedule="constant", eval_every=3)
    straight, first, again = make(steps=9), make(steps=5, folder=folder), make(steps=9)
    straight.fit()
    taken = runs.count(True)
    runs.clear()
    first.fit()
    again.resume(folder / "checkpoints" / "last.pt")
    again.fit()
    assert runs.count(True) == taken == (8 if wanted == "always" else 6)
    assert_same(state_of(straight)["module"], state_of(again)["module"])
    assert part_of(straight).state() == part_of(again).state()


@pytest.mark.usefixtures("cheap")
@pytest.mark.parametrize("wanted", ["auto", "always"])
@pytest.mark.parametrize("name", ["waves", "ensemble", "regression", "per_sample", "protonet"])
def test_a_resumed_run_is_the_one_that_was_not_stopped(
    tmp_path: Path, name: str, wanted: str, runs: list[bool]
) -> None:
    split_in_two(tmp_path, name, wanted, runs)


def test_a_resumed_run_has_the_bits_of_inductor_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: list[bool]
) -> None:
    monkeypatch.setenv("METALEARN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(assembly, "CompiledPart", CompiledPart)
    split_in_two(tmp_path, "per_sample", "always", runs)


def test_what_did_not_pay_is_not_traced_again(
    monkeypatch: pytest.MonkeyPatch, runs: list[bool]
) -> None:
    offers: list[Any] = []
    monkeypatch.setattr(compiled_part, "_OTHERS", 3)
    monkeypatch.setattr(compiled_part, "worth_a_look", lambda seconds, calls: True)
    monkeypatch.setattr(
        compiled_part,
        "offer_of",
        lambda *given: (offers.append(given), compile_cost.offer_of(*given))[1],
    )
    sinusoid_trainer(steps=20).fit()
    assert len(offers) == 1 and not runs


@pytest.mark.usefixtures("cheap")
def test_a_run_that_decides_no_more_goes_on_with_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: list[bool]
) -> None:
    monkeypatch.setattr(compiled_part, "_TRIES", 1)
    sinusoid_trainer(steps=7, folder=tmp_path).fit()
    assert runs == [True] * 4
    again = sinusoid_trainer(steps=12, folder=tmp_path)
    again.resume(tmp_path / "checkpoints" / "last.pt")
    again.fit()
    assert runs == [True] * 9


def test_a_call_of_another_kind_does_not_take_the_place_of_the_compiled_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """While weights of losses move, no step is traced to see whether it is the one."""
    traces: list[int] = []
    trace = CompiledFunction.trace

    def noted(self: CompiledFunction, *args: Any) -> Any:
        if not isinstance(getattr(self.function, "__self__", None), FlatUpdate):
            traces.append(1)
        return trace(self, *args)

    monkeypatch.setattr(CompiledFunction, "trace", noted)
    made = mamlpp(multi_step_steps=100)
    made(folder=tmp_path, compile="always", checkpoint_every=10).fit()
    again = made(folder=tmp_path, compile="always")
    again.resume(tmp_path / "checkpoints" / "last.pt")
    again.loop.step, count = 10, len(traces)
    again.fit()
    assert count and len(traces) == count
    assert not [r for r in caplog.records if "interruption" in r.getMessage()]


def test_always_is_refused_where_a_run_goes_on_that_cannot(tmp_path: Path) -> None:
    make = TRAINERS["hyper_weight_decay"]
    make(folder=tmp_path, steps=3).fit()
    again = make(folder=tmp_path, compile="always")
    again.resume(tmp_path / "checkpoints" / "last.pt")
    with pytest.raises(SettingError, match="^compile='always': auto or never is needed"):
        again.fit()


def test_members_of_two_kinds_are_neither_timed_nor_compiled_in_turns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compiled_part, "seconds_of", lambda *given: 1 / 0)
    kinds = [MLP((2,), 3, hidden=(4 + kind,), seed=seed) for kind in (0, 1) for seed in (0, 1)]
    how: Any = {"steps": 8, "batch_size": 8, "progress": False}
    EnsembleTrainer(Ensemble.from_modules(kinds), blobs(), **how).fit()


def test_inside_a_transform_calls_are_taken_as_they_are() -> None:
    part = CompiledPart("always", compiler="aot_eager")
    code = CompiledFunction(lambda x: x * 2, compiler="aot_eager")
    code(torch.ones(3))
    found = torch.vmap(lambda x: torch.ones(()) if code.run(x) is None else x)(torch.ones(2, 3))
    assert torch.equal(found, torch.ones(2))
    doubled = torch.vmap(lambda x: part(lambda y: y * 2, x))(torch.ones(2, 3))
    assert torch.equal(doubled, torch.full((2, 3), 2.0)) and not part.state()["compiled"]["like"]


def test_what_was_decided_against_stays_so(tmp_path: Path, runs: list[bool]) -> None:
    sinusoid_trainer(steps=6, folder=tmp_path).fit()
    for wanted, compiled in (("auto", False), ("never", False), ("always", True)):
        again = sinusoid_trainer(steps=9, folder=tmp_path, compile=wanted)
        again.resume(tmp_path / "checkpoints" / "last.pt")
        again.fit()
        assert bool(runs) == compiled
        sinusoid_trainer(steps=6, folder=tmp_path).fit()


@pytest.mark.usefixtures("cheap")
def test_a_run_that_cannot_be_compiled_again_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sinusoid_trainer(steps=6, folder=tmp_path).fit()
    monkeypatch.setattr("torch._dynamo.lookup_backend", lambda name: 1 / 0)
    asked = sinusoid_trainer(steps=9, folder=tmp_path, compile="always")
    asked.resume(tmp_path / "checkpoints" / "last.pt")
    with pytest.raises(SettingError, match="^compile='always': auto or never is needed: "):
        asked.fit()
    again = sinusoid_trainer(steps=9, folder=tmp_path)
    again.resume(tmp_path / "checkpoints" / "last.pt")
    again.fit()
    assert any("goes on otherwise than before" in r.getMessage() for r in caplog.records)
    assert part_of(again).state()["compiled"]["failed"]


class Breaking(Callback):
    """Breaks off a step after its gradient, once."""

    def __init__(self, step: int) -> None:
        self.step = step

    def after_gradient(self, loop: Any, batch: Any, grads: Any) -> None:
        """As a diagnostic does that is stopped."""
        if loop.step == self.step:
            self.step = -1
            raise Stopped


@pytest.mark.usefixtures("cheap")
@pytest.mark.parametrize("step", [1, 2, 3, 5])
@pytest.mark.parametrize("anew", [True, False])
def test_a_step_that_was_broken_off_leaves_no_trace(tmp_path: Path, step: int, anew: bool) -> None:
    straight, broken = sinusoid_trainer(steps=9), sinusoid_trainer(steps=9, folder=tmp_path)
    straight.fit()
    broken.loop.callbacks = (*broken.loop.callbacks, Breaking(step))
    broken.fit()
    assert broken.step == step
    kept = part_of(broken).state()["compiled"]
    assert kept["calls"] == max(0, step - 3) and bool(kept["graph"]) == (step > 2)
    if anew:
        broken = sinusoid_trainer(steps=9, folder=tmp_path)
        broken.resume(tmp_path / "checkpoints" / "last.pt")
    broken.fit()
    assert part_of(broken).state() == part_of(straight).state()
    assert_same(state_of(straight)["module"], state_of(broken)["module"])


@pytest.mark.usefixtures("cheap")
def test_what_a_trainer_knew_before_it_resumes_is_forgotten(tmp_path: Path) -> None:
    sinusoid_trainer(steps=2, folder=tmp_path, schedule="constant").fit()
    used, fresh = (sinusoid_trainer(steps=9, schedule="constant") for _ in range(2))
    used.fit()
    for trainer in (used, fresh):
        trainer.resume(tmp_path / "checkpoints" / "last.pt")
        trainer.fit()
    assert part_of(used).state() == part_of(fresh).state()


@pytest.mark.usefixtures("cheap")
@pytest.mark.parametrize("wanted", ["auto", "always"])
def test_code_that_fails_later_ends_no_training_and_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, wanted: str
) -> None:
    run, calls = CompiledFunction.run, [0]

    def failing(self: CompiledFunction, *args: Any) -> Any:
        calls[0] += 1
        if calls[0] == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(self, *args)

    plain = sinusoid_trainer(steps=9, compile="never")
    plain.fit()
    monkeypatch.setattr(CompiledFunction, "run", failing)
    trainer = sinusoid_trainer(steps=9, compile=wanted, folder=tmp_path)
    trainer.fit()
    assert_same(state_of(plain)["module"], state_of(trainer)["module"])
    assert sum("compiled code fails" in r.getMessage() for r in caplog.records) == 1
    again = sinusoid_trainer(steps=12, compile=wanted, folder=tmp_path)
    again.resume(tmp_path / "checkpoints" / "last.pt")
    again.fit()
    assert calls == [2]
    said = [r for r in caplog.records if "as that failed before in this run" in r.getMessage()]
    assert len(said) == (wanted == "always")  # which a person may not find ignored


@pytest.mark.usefixtures("cheap")
def test_a_compiler_that_a_stop_ends_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = sinusoid_trainer(steps=9, folder=tmp_path)
    compiling = CompiledFunction.compile

    def interrupted(self: Any, *args: Any, **rest: Any) -> None:
        signal.raise_signal(signal.SIGTERM)
        raise RuntimeError("g++ was killed")

    monkeypatch.setattr(CompiledFunction, "compile", interrupted)
    trainer.fit()
    assert trainer.step == 2 and not part_of(trainer).state()["compiled"]["failed"]
    monkeypatch.setattr(CompiledFunction, "compile", compiling)
    again = sinusoid_trainer(steps=9, folder=tmp_path)
    again.resume(tmp_path / "checkpoints" / "last.pt")
    again.fit()
    assert part_of(again).state()["compiled"]["graph"]


@pytest.mark.usefixtures("cheap")
def test_before_a_long_compilation_a_checkpoint_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    compiling = CompiledFunction.compile

    def noted(self: Any, *args: Any, **rest: Any) -> None:
        steps.append(load_checkpoint(tmp_path / "checkpoints" / "last.pt")["step"])
        compiling(self, *args, **rest)

    monkeypatch.setattr(CompiledFunction, "compile", noted)
    monkeypatch.setattr(compiled_part, "PATIENCE", 0.0)
    sinusoid_trainer(steps=9, folder=tmp_path, checkpoint_every=100).fit()
    assert steps == [2]


@pytest.mark.parametrize("bad", [3, {"graph": 1}, {"graph": "", "over": False, "like": -1}, {}])
def test_a_damaged_entry_is_refused(tmp_path: Path, bad: Any) -> None:
    sinusoid_trainer(steps=6, folder=tmp_path, compile="always").fit()
    path = tmp_path / "checkpoints" / "last.pt"
    state = load_checkpoint(path)
    state["extra"]["compiled"] = bad
    save_checkpoint(path, state)
    with pytest.raises(DataError, match=r"extra\.compiled"):
        sinusoid_trainer(steps=9, folder=tmp_path).resume(path)


# --- like calls ----------------------------------------------------------------------------------


def called(*given: Any, **by_name: Any) -> None:
    """A function."""


def test_calls_are_like_by_settings_and_by_the_objects_that_they_hold() -> None:
    held, net = torch.ones(2), nn.Linear(2, 2)
    made = lambda **other: partial(called, net, [1, (2.0, "a")], **{"k": {"n": None}, **other})  # noqa: E731
    assert same_call(made(), made()) and same_call(made(t=held), made(t=held))
    assert same_call(net.forward, net.forward) and same_call(keyed(called, 3), keyed(called, 3))
    for other in ({"k": {"n": 0}}, {"k": {"m": None}}, {"t": held}, {"k": {}}):
        assert not same_call(made(), made(**other))
    assert not same_call(made(t=held), made(t=held.clone()))
    assert not same_call(keyed(called, 3), keyed(called, 4))
    assert not same_call(partial(called, 1), partial(called, True))
    assert not same_call(partial(called, math.nan), partial(called, -math.nan))
    assert not same_call(net.forward, nn.Linear(2, 2).forward)
    assert not same_call(lambda: 1, lambda: 1)


def test_lists_that_change_in_place_make_another_call() -> None:
    weights, options = [0.0, 1.0], {"a": [1]}
    function = partial(called, weights, b=options)
    kept = held(keyed(function, 3))
    assert same_call(kept, keyed(function, 3))
    weights[0] = 0.5
    assert not same_call(kept, keyed(function, 3))
    weights[0] = 0.0
    options["a"].append(2)
    assert not same_call(kept, keyed(function, 3))


def test_inductor_compiles_a_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: list[bool]
) -> None:
    monkeypatch.setenv("METALEARN_CACHE", str(tmp_path))
    monkeypatch.setattr(assembly, "CompiledPart", CompiledPart)
    net = lambda: MLP((1,), 1, hidden=(6,), seed=0)  # noqa: E731
    states = []
    for wanted in ("never", "always"):
        how: Any = {"steps": 5, "meta_batch": 4, "validation_tasks": 5, "progress": False}
        trainer = MetaTrainer(net(), SinusoidTasks(), compile=wanted, **how)
        trainer.fit()
        states.append(state_of(trainer))
    assert runs == [True] * 4
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, rtol=1e-5, atol=1e-6)
