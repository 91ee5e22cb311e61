"""Updates that are compiled: equal to the optimiser's, and made only where all is finite.

The graphs run operation by operation here (``aot_eager``); inductor itself has a test of its own.
"""

from __future__ import annotations

import logging
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metalearn.checkpoint import load_checkpoint
from metalearn.core.compilation import CompiledFunction
from metalearn.errors import CompilationError, DataError, NonFiniteError
from metalearn.models import MLP, Ensemble
from metalearn.trainers import EnsembleTrainer
from metalearn.trainers.loop import assembly, compile_cost, compiled_part, flat_update
from metalearn.trainers.loop.compiled_part import CompiledPart
from metalearn.trainers.loop.compiled_update import CompiledUpdate
from metalearn.trainers.loop.flat_update import FlatUpdate, agrees
from metalearn.trainers.loop.outer_optimizer import ModuleUpdate
from metalearn.trainers.loop.protocols import Callback
from metalearn.trainers.loop.step import Proposal
from metalearn.trainers.members.population import Population
from metalearn.trainers.members.update import MemberUpdate
from tests.support.builders import assert_same, sinusoid_trainer, state_of
from tests.support.small_data import blobs

OPTIMIZERS = {
    "adam": partial(torch.optim.Adam, lr=0.01),
    "fused_adam": partial(torch.optim.Adam, lr=0.01, fused=True),
    "foreach_adam": partial(torch.optim.Adam, lr=0.01, foreach=True),
    "amsgrad": partial(torch.optim.Adam, lr=0.01, amsgrad=True, weight_decay=0.1, maximize=True),
    "adamw": partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1, betas=(0.8, 0.99)),
    "sgd": partial(torch.optim.SGD, lr=0.01),
    "momentum": partial(torch.optim.SGD, lr=0.01, momentum=0.9, weight_decay=0.1, dampening=0.2),
    "nesterov": partial(torch.optim.SGD, lr=0.01, momentum=0.9, nesterov=True),
}
AS_THEY_ARE = {
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
}


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (CompiledPart, CompiledUpdate):
        monkeypatch.setattr(assembly, kind.__name__, partial(kind, compiler="aot_eager"))


@pytest.fixture(name="cheap")
def _cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling pays, whatever it is."""
    monkeypatch.setattr(compile_cost, "_LEAST_GAIN", -math.inf)
    monkeypatch.setattr(compile_cost, "_LEAST_CALLS", 0)
    monkeypatch.setattr(compile_cost.Offer, "pays_too", True)


@pytest.fixture(name="made")
def _made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """An entry for each update of compiled code that is made."""
    seen: list[int] = []
    make = Proposal.make

    def noted(self: Proposal) -> None:
        seen.append(1)
        make(self)

    monkeypatch.setattr(Proposal, "make", noted)
    return seen


@pytest.fixture(params=[1, 8, 2**10], ids=["each_alone", "large_alone", "together"])
def bundles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which parameters are stepped as one."""
    monkeypatch.setattr(flat_update, "_LARGE", request.param)


def problem(
    factory: Any, *, members: int = 0, clip: float | None = None, **own: Any
) -> tuple[nn.Module, Any, Population]:
    """A network, or members of it, in float64 after three steps of the update."""
    module: nn.Module = MLP((3,), 2, hidden=(4,), seed=0)
    if members:
        module = Ensemble.from_factory(lambda s: MLP((3,), 2, hidden=(4,), seed=s), range(members))
    module.double()
    optimizer = factory(module.parameters())
    update: Any = MemberUpdate(module, optimizer, **own) if members else ModuleUpdate(optimizer)
    population = Population(module, clip=clip, patience=None, larger_is_better=False)
    for step in range(3):
        for name, grad in gradients(module, step).items():
            dict(module.named_parameters())[name].grad = grad
        update(population.stepped, 1.0)
    return module, update, population


def gradients(module: nn.Module, step: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {
        name: torch.randn(p.shape, generator=generator, dtype=p.dtype)
        for name, p in module.named_parameters()
    }


def plain_step(
    module: nn.Module, update: Any, population: Population, grads: dict[str, Tensor]
) -> dict[str, Tensor]:
    """What the loop does where nothing is compiled; the clipped gradients."""
    losses = torch.zeros(population.rows.count)
    clipped, _, _ = population.clip_and_check(grads, losses, step=3, suspects=str)
    for name, parameter in module.named_parameters():
        parameter.grad = clipped[name].clone()
    update(population.stepped, 1.0)
    return dict(clipped)


def assert_is_the_step(made: tuple[nn.Module, Any, Population]) -> None:
    """The flat step of a fourth gradient is the plain one, to 1e-10; nothing is written before."""
    module, update, population = made
    grads = gradients(module, 3)
    params = {name: p.detach() for name, p in module.named_parameters()}
    losses = torch.zeros(population.rows.count)
    flat = FlatUpdate(update, population, params, grads, losses)
    before = [place.clone() for place in flat.places]
    read, clipped, new = flat.function(*flat.trees(grads, losses, 1.0))
    assert_same(before, flat.places)
    wanted = plain_step(module, update, population, grads)
    torch.testing.assert_close(read[0], population.norms.to(read), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(dict(zip(grads, clipped)), wanted, rtol=1e-10, atol=1e-10)
    found = torch.utils._pytree.tree_leaves(new)
    assert len(found) == len(flat.places)
    for one, other in zip(found, flat.places):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    assert agrees(found, before, flat.places)


@pytest.mark.usefixtures("bundles")
@pytest.mark.parametrize("clip", [None, 0.5, 1e6])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_of_one_network_it_is_the_optimisers_step(name: str, clip: float | None) -> None:
    assert_is_the_step(problem(OPTIMIZERS[name], clip=clip))


@pytest.mark.usefixtures("bundles")
@pytest.mark.parametrize("own", [
    {}, {"rates": [0.01, 0.02, 0.005]}, {"decays": [0.0, 0.1, 0.3]},
    {"rates": [0.01, 0.0, 0.005], "decays": [0.2, 0.1, 0.3]},
])  # fmt: skip
@pytest.mark.parametrize("name", ["adam", "momentum", "plain_adamw"])
def test_of_members_it_is_each_ones_own(name: str, own: dict[str, Any]) -> None:
    """Some are trained no more: they stay as they are to the last bit."""
    factory: Any = partial(torch.optim.AdamW, lr=0.01, weight_decay=0.0)
    if name != "plain_adamw":
        factory = OPTIMIZERS[name]
        if "decays" in own:
            factory = partial(factory.func, **{**factory.keywords, "weight_decay": 0.0})
    assert_is_the_step(problem(factory, members=3, clip=0.5, **own))
    module, update, population = problem(factory, members=3, clip=0.5, **own)
    population.active[1] = False
    assert_is_the_step((module, update, population))


def test_the_largest_parameters_are_stepped_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as there may be; all others together, so that a program does not become long."""
    monkeypatch.setattr(flat_update, "_ALONE", 2)
    sizes = [1024, 3, 4096, 2048, 1023]
    found = flat_update._bundles_of([torch.zeros(size) for size in sizes])
    assert [bundle.where for bundle in found] == [[2], [3], [0, 1, 4]]
    elsewhere = flat_update._bundles_of([torch.zeros(size, device="meta") for size in sizes])
    assert [bundle.where for bundle in elsewhere] == [[0, 1, 2, 3, 4]]


def test_numbers_have_a_place_in_memory() -> None:
    """What is computed of step counts is read from there, and not worked out for each element."""
    module, update, population = problem(OPTIMIZERS["adam"])
    params = {name: p.detach() for name, p in module.named_parameters()}
    grads, losses = gradients(module, 3), torch.zeros(1)
    flat = FlatUpdate(update, population, params, grads, losses)
    trace = CompiledFunction(flat.function).trace(*flat.trees(grads, losses, 1.0))
    powers = [n for n in trace.graph.graph.nodes if n.target is torch.ops.aten.pow.Scalar]
    assert len(powers) == 2
    readers = {reader.target for power in powers for reader in power.users}
    assert readers == {torch.ops.aten.as_strided.default}
    with flat_update._NumbersOnce():
        numbers = torch.arange(3.0)
        assert numbers[2].storage_offset() == 2 == numbers[2].item()  # views stay as they are
        assert (2 * numbers[2])._is_view()


@pytest.mark.usefixtures("bundles")
def test_groups_have_their_own_rates_and_options() -> None:
    def factory(parameters: Any) -> torch.optim.Optimizer:
        first, *rest = parameters
        return torch.optim.Adam([{"params": rest}, {"params": [first], "lr": 0.1, "eps": 1e-3}])

    assert_is_the_step(problem(factory, clip=0.5))


@pytest.mark.parametrize("name", AS_THEY_ARE)
def test_other_optimisers_step_as_they_are(
    name: str, made: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        trainer = sinusoid_trainer(
            steps=5, compile="always", optimizer=partial(AS_THEY_ARE[name], lr=0.01)
        )
        trainer.fit()
    assert not made
    assert "updates are not compiled" in caplog.text


@pytest.mark.parametrize("name", [n for n in OPTIMIZERS if n != "amsgrad"])
def test_a_training_is_the_one_that_is_not_compiled(name: str, made: list[int]) -> None:
    trainers = [
        sinusoid_trainer(steps=20, compile=wanted, optimizer=OPTIMIZERS[name], clip=0.5)
        for wanted in ("never", "always")
    ]
    for trainer in trainers:
        trainer.fit()
    assert len(made) > 3, "all but the first steps and those that are checked"
    plain, compiled = map(state_of, trainers)
    for key, value in plain.items():
        torch.testing.assert_close(compiled[key], value, rtol=1e-4, atol=1e-5)


def beside(trainer: Any, callback: Callback) -> Any:
    """The trainer, with a callback that comes before what compiles."""
    trainer.loop.callbacks = (callback, *trainer.loop.callbacks)
    return trainer


class Watching(Callback):
    """What stands in ``grad`` after each update."""

    def __init__(self) -> None:
        self.norms: list[float] = []

    def after_update(self, loop: Any) -> None:
        grads = [p.grad for p in loop.parameters.values() if p.grad is not None]
        self.norms.append(float(torch.nn.utils.get_total_norm(grads)))


def test_gradients_of_parameters_are_the_clipped_ones(made: list[int]) -> None:
    found = []
    for wanted in ("never", "always"):
        watching = Watching()
        beside(sinusoid_trainer(steps=20, compile=wanted, clip=0.01), watching).fit()
        found.append(watching.norms)
    assert made
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    assert max(found[1]) <= 0.01 + 1e-6


class Meddling(Callback):
    """Does something before some step."""

    def __init__(self, step: int, what: Any) -> None:
        self.step, self.what = step, what

    def before_step(self, loop: Any, step: int) -> None:
        if step == self.step:
            self.what(loop)


def _other_decay(loop: Any) -> None:
    loop.update.optimizer.param_groups[0]["weight_decay"] = 0.5


def _other_state(loop: Any) -> None:
    optimizer = loop.update.optimizer
    optimizer.load_state_dict(optimizer.state_dict())
    for state in optimizer.state.values():
        state["exp_avg"] = torch.ones_like(state["exp_avg"])


@pytest.mark.parametrize("what", [_other_decay, _other_state])
def test_what_a_callback_changes_is_seen_at_once(what: Any, made: list[int]) -> None:
    plain, compiled = (
        beside(
            sinusoid_trainer(steps=25, compile=wanted, optimizer=OPTIMIZERS["adam"]),
            Meddling(18, what),
        )
        for wanted in ("never", "always")
    )
    plain.fit()
    compiled.fit()
    assert made
    for key, value in state_of(plain).items():
        torch.testing.assert_close(state_of(compiled)[key], value, rtol=1e-4, atol=1e-5)


def test_a_rate_of_zero_moves_nothing_and_divides_by_nothing(made: list[int]) -> None:
    trainer = sinusoid_trainer(steps=30, compile="always")
    trainer.loop.schedule = lambda step: 0.0 if step >= 20 else 1.0
    trainer.fit()
    assert made
    assert all(bool(torch.isfinite(p).all()) for p in trainer.module.parameters())


class Spoiling(Callback):
    """Makes a parameter infinite, so that the next loss is not finite."""

    def __init__(self, step: int, member: int | None = None) -> None:
        self.step, self.member = step, member

    def after_update(self, loop: Any) -> None:
        if loop.step == self.step:
            value = next(iter(loop.params.values()))
            (value if self.member is None else value[self.member]).fill_(math.inf)


def test_nothing_that_is_not_finite_is_made(tmp_path: Path, made: list[int]) -> None:
    found = []
    for wanted in ("never", "always"):
        trainer = beside(
            sinusoid_trainer(steps=40, compile=wanted, folder=tmp_path / wanted), Spoiling(20)
        )
        with pytest.raises(NonFiniteError) as caught:
            trainer.fit()
        found.append((str(caught.value).replace(wanted, ""), trainer.loop.step))
    assert made
    assert found[0] == found[1]


def members_trainer(**settings: Any) -> EnsembleTrainer:
    ensemble = Ensemble.from_factory(lambda s: MLP((2,), 3, hidden=(8,), seed=s), range(3))
    return EnsembleTrainer(ensemble, blobs(), batch_size=20, eval_every=50, **settings)


def test_a_member_that_diverges_is_frozen_and_the_others_go_on(made: list[int]) -> None:
    found = []
    for wanted in ("never", "always"):
        trainer = beside(members_trainer(steps=40, compile=wanted), Spoiling(20, member=1))
        trainer.fit()
        assert trainer.loop.population.diverged.tolist() == [False, True, False]
        found.append(state_of(trainer))
    assert made
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("cheap")
@pytest.mark.parametrize("wanted", ["auto", "always"])
@pytest.mark.parametrize("stop", [3, 12, 22])
def test_a_resumed_run_has_the_bits_of_the_one_that_was_not_stopped(
    tmp_path: Path, wanted: str, stop: int, made: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    """Before the update is compiled, and after."""
    settings: Any = {"compile": wanted, "schedule": "constant", "optimizer": OPTIMIZERS["adam"]}
    straight, again = (sinusoid_trainer(steps=40, **settings) for _ in range(2))
    straight.fit()
    assert made
    sinusoid_trainer(steps=stop, folder=tmp_path, **settings).fit()
    again.resume(tmp_path / "checkpoints" / "last.pt")
    again.fit()
    assert not [r for r in caplog.records if "interruption" in r.getMessage()]
    assert_same(state_of(straight)["module"], state_of(again)["module"])


def test_an_update_that_differs_is_noticed_and_not_taken_again(
    monkeypatch: pytest.MonkeyPatch, made: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    """The compiled code is another's: a step twice as long."""
    plain = sinusoid_trainer(steps=20, compile="never", optimizer=OPTIMIZERS["adam"])
    plain.fit()
    moved = ModuleUpdate.moved
    monkeypatch.setattr(ModuleUpdate, "moved", lambda self, old, new, active: new + (new - old))
    trainer = sinusoid_trainer(steps=20, compile="always", optimizer=OPTIMIZERS["adam"])
    trainer.fit()
    monkeypatch.setattr(ModuleUpdate, "moved", moved)
    assert not made
    assert "the compiled update differs" in caplog.text
    assert caplog.text.count("updates are not compiled") == 1
    for key, value in state_of(plain).items():
        torch.testing.assert_close(state_of(trainer)[key], value, rtol=1e-4, atol=1e-5)


def test_code_that_fails_ends_no_training(
    monkeypatch: pytest.MonkeyPatch, made: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    from metalearn.core.compilation import CompiledFunction

    run = CompiledFunction.run_leaves

    def failing(self: CompiledFunction, values: Any) -> Any:
        if isinstance(getattr(self.function, "__self__", None), FlatUpdate) and len(made) > 2:
            raise MemoryError("no room")
        return run(self, values)

    monkeypatch.setattr(CompiledFunction, "run_leaves", failing)
    trainer = sinusoid_trainer(steps=30, compile="always")
    trainer.fit()
    assert len(made) == 3
    assert trainer.loop.step == 30
    assert "the compiled update fails (MemoryError: no room)" in caplog.text


@pytest.mark.parametrize("accumulate", [1, 5])
@pytest.mark.usefixtures("cheap")
def test_the_first_updates_are_held_to_the_optimisers_whatever_the_gradient_did(
    accumulate: int, monkeypatch: pytest.MonkeyPatch, made: list[int]
) -> None:
    """Calls of the compiled gradient are many by then where it is accumulated."""
    moved = ModuleUpdate.moved
    monkeypatch.setattr(
        ModuleUpdate, "moved", lambda self, old, new, on: moved(self, old, new, on) + (new - old)
    )
    settings: Any = {"accumulate": accumulate, "optimizer": OPTIMIZERS["adam"]}
    sinusoid_trainer(steps=40, compile="auto", **settings).fit()
    sinusoid_trainer(steps=40, compile="always", **settings).fit()
    assert not made


def test_a_check_that_fails_for_lack_of_memory_ends_no_step(
    monkeypatch: pytest.MonkeyPatch, made: list[int]
) -> None:
    def short(*given: Any) -> bool:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr("metalearn.trainers.loop.compiled_update.agrees", short)
    trainer = sinusoid_trainer(steps=20, compile="always")
    trainer.fit()
    assert trainer.loop.step == 20
    assert made


def test_a_trainer_that_resumes_itself_goes_on_with_compiled_updates(
    tmp_path: Path, made: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    settings: Any = {"compile": "always", "schedule": "constant", "checkpoint_every": 10}
    straight = sinusoid_trainer(steps=30, **settings)
    straight.fit()
    trainer = sinusoid_trainer(steps=30, folder=tmp_path, **settings)
    beside(trainer, Meddling(15, _broken))
    with pytest.raises(RuntimeError, match="broken"):
        trainer.fit()
    trainer.resume(tmp_path / "checkpoints" / "last.pt")
    trainer.loop.callbacks = trainer.loop.callbacks[1:]
    made.clear()
    trainer.fit()
    assert made
    assert "others than before" not in caplog.text
    assert_same(state_of(straight)["module"], state_of(trainer)["module"])


def _broken(loop: Any) -> None:
    raise RuntimeError("broken")


def test_a_callback_that_changes_weights_is_no_difference(
    made: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    class Clamping(Callback):
        def after_update(self, loop: Any) -> None:
            for value in loop.params.values():
                value.clamp_(-0.3, 0.3)

    trainer = sinusoid_trainer(steps=20, compile="always")
    trainer.loop.callbacks = (*trainer.loop.callbacks, Clamping())
    trainer.fit()
    assert made
    assert "differs" not in caplog.text


def test_hooks_around_steps_are_called(made: list[int]) -> None:
    """Those of the optimiser, and those of all; from the step on at which they are set."""
    seen: list[int] = []

    def hook(*given: Any) -> None:
        seen.append(1)

    trainer = sinusoid_trainer(steps=20, compile="always")
    own = Meddling(10, lambda loop: loop.update.optimizer.register_step_post_hook(hook))
    beside(trainer, own).fit()
    assert made
    assert len(seen) == 10


def test_a_schedule_is_asked_once_a_step() -> None:
    for wanted in ("never", "always"):
        asked: list[int] = []
        trainer = sinusoid_trainer(steps=20, compile=wanted)
        trainer.loop.schedule = lambda step, asked=asked: asked.append(step) or 1.0
        trainer.fit()
        assert asked == list(range(20))


def test_norms_of_mixed_types_have_the_wider() -> None:
    module = nn.Sequential(nn.Linear(1, 1, bias=False).half(), nn.Linear(1, 1, bias=False))
    population = Population(module, clip=None, patience=None, larger_is_better=False)
    grads = {"0.weight": torch.ones(1, 1).half(), "1.weight": torch.full((1, 1), 2e5)}
    _, _, norm = population.clip_and_check(grads, torch.zeros(1), step=0, suspects=str)
    assert norm == pytest.approx(2e5)


def test_parameters_that_share_memory_are_stepped_as_they_are() -> None:
    module = nn.Module()
    module.one, module.two = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    module.two.data = module.one.data
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    population = Population(module, clip=None, patience=None, larger_is_better=False)
    params = {n: p.detach() for n, p in module.named_parameters()}
    grads = {n: torch.ones(2) for n in params}
    with pytest.raises(CompilationError, match="share memory"):
        FlatUpdate(ModuleUpdate(optimizer), population, params, grads, torch.zeros(1))


def test_without_a_compiled_gradient_there_is_none(made: list[int]) -> None:
    for settings in (
        {"compile": "never"},
        {"compile": "auto"},
        {"compile": "auto", "deterministic": True},
    ):
        sinusoid_trainer(steps=10, **settings).fit()  # type: ignore[arg-type]
    assert not made


def test_an_offer_that_does_not_pay_is_declined(
    monkeypatch: pytest.MonkeyPatch, made: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(compile_cost, "_LEAST_GAIN", -math.inf)
    monkeypatch.setattr(compile_cost, "_LEAST_CALLS", 0)
    monkeypatch.setattr(compile_cost.Offer, "pays_too", False)
    monkeypatch.setattr(compiled_part, "_LOOKS", 2)
    with caplog.at_level(logging.INFO):
        sinusoid_trainer(steps=20, compile="auto").fit()
    assert not made
    assert "updates are not compiled, as that does not pay" in caplog.text


@pytest.mark.parametrize(
    "bad",
    [
        3,
        {"graph": 1, "over": False, "seen": 0, "calls": 0, "failed": False},
        {"graph": ""},
        {"graph": "", "over": False, "seen": -1},
    ],
)
def test_a_damaged_entry_is_refused(tmp_path: Path, bad: Any) -> None:
    from metalearn.checkpoint import save_checkpoint

    sinusoid_trainer(steps=4, compile="always", folder=tmp_path).fit()
    path = tmp_path / "checkpoints" / "last.pt"
    state = load_checkpoint(path)
    assert state["extra"]["compiled_update"]["graph"]
    state["extra"]["compiled_update"] = bad
    save_checkpoint(path, state)
    with pytest.raises(DataError, match="compiled_update"):
        sinusoid_trainer(steps=4, folder=tmp_path).resume(path)


def refused(change: Any) -> str:
    module, update, population = problem(OPTIMIZERS["adam"])
    change(update.optimizer)
    params = {name: p.detach() for name, p in module.named_parameters()}
    grads = gradients(module, 3)
    with pytest.raises(CompilationError) as caught:
        flat = FlatUpdate(update, population, params, grads, torch.zeros(1))
        flat.function(*flat.trees(grads, torch.zeros(1), 1.0))
    return str(caught.value)


def test_what_is_no_plain_step_of_torch_is_refused() -> None:
    def own_step(optimizer: Any) -> None:
        optimizer.step = lambda: None

    def other_count(optimizer: Any) -> None:
        next(iter(optimizer.state.values()))["step"] += 1

    def nothing_kept(optimizer: Any) -> None:
        optimizer.state.clear()

    def known_to_one(optimizer: Any) -> None:
        list(optimizer.state.values())[-1]["more"] = torch.zeros(())

    assert "taken as they are" in refused(own_step)
    assert "hooks" in refused(lambda o: o.register_step_post_hook(lambda *a: None))
    assert "step is not the same" in refused(other_count)
    assert "kept nothing yet" in refused(nothing_kept)
    assert "other things of some" in refused(known_to_one)


def test_members_of_two_kinds_have_no_rows_in_common() -> None:
    networks = [MLP((2,), 3, hidden=(n,), seed=0) for n in (4, 8, 4)]
    ensemble = Ensemble(networks)
    optimizer = torch.optim.Adam(ensemble.parameters())
    population = Population(ensemble, clip=None, patience=None, larger_is_better=False)
    params = {name: p.detach() for name, p in ensemble.named_parameters()}
    with pytest.raises(CompilationError, match="several kinds"):
        grads, update = gradients(ensemble, 0), MemberUpdate(ensemble, optimizer)
        FlatUpdate(update, population, params, grads, torch.zeros(3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_step_is_told_from_another_but_not_from_its_rounding(dtype: torch.dtype) -> None:
    old = torch.linspace(-2, 2, 50, dtype=dtype)
    step = torch.full_like(old, 1e-3)
    new = old + step
    assert agrees([new], [old], [new])
    assert agrees([torch.nextafter(new, torch.full_like(new, 9))], [old], [new])
    assert not agrees([old + 1.1 * step], [old], [new])
    assert not agrees([torch.full_like(new, math.nan)], [old], [new])
    tiny = torch.nextafter(old, torch.full_like(old, 9))  # a step as small as its rounding
    assert agrees([old], [old], [tiny])


@pytest.mark.inductor
def test_inductor_compiles_an_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: list[int]
) -> None:
    monkeypatch.setenv("METALEARN_CACHE", str(tmp_path))
    for kind in (CompiledPart, CompiledUpdate):
        monkeypatch.setattr(assembly, kind.__name__, kind)
    for optimizer in (OPTIMIZERS["fused_adam"], OPTIMIZERS["nesterov"]):
        plain, compiled = (
            sinusoid_trainer(steps=15, compile=wanted, optimizer=optimizer, clip=0.5)
            for wanted in ("never", "always")
        )
        plain.fit()
        compiled.fit()
        assert made
        for key, value in state_of(plain).items():
            torch.testing.assert_close(state_of(compiled)[key], value, rtol=1e-4, atol=1e-5)
        made.clear()
