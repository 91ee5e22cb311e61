"""A gradient that stops on its way and goes on: bit for bit as if it had not."""

from __future__ import annotations

import io
from collections.abc import Iterator, MutableMapping
from typing import Any

import pytest
import torch

from metalearn.core import (
    HyperGradient,
    HyperProgress,
    adam,
    adamw,
    hyper_gradient,
    sgd,
    with_gradients,
)
from metalearn.core.tree import leaves
from metalearn.errors import SettingError
from tests.support.weighted_run import HYPER, OUTER, K, batch, each, found_by, inner, start


class Stopped(Exception):
    """Raised where a walk is to stop."""


def saved(tree: Any) -> Any:
    """Through a file, as a checkpoint would be, with no more than torch's safe loader takes."""
    file = io.BytesIO()
    torch.save(tree, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def gradient(**more: Any) -> HyperGradient:
    rates = torch.linspace(0.3, 0.1, K, dtype=torch.float64)
    given: dict[str, Any] = {"optimizer": adam(rates), "memory": 2000, **more}
    return found_by(given.pop("method", "mixed"), each, **given)


def stopped_at(phase: str, step: int, **more: Any) -> dict[str, Any]:
    taken: dict[str, Any] = {}

    def told(progress: HyperProgress) -> None:
        if (progress.phase, progress.step) == (phase, step):
            taken.update(saved(progress.snapshot()))
            raise Stopped

    with pytest.raises(Stopped):
        gradient(progress=told, **more)
    return taken


def assert_same(one: HyperGradient, other: HyperGradient) -> None:
    found, expected = leaves(one), leaves(other)
    assert len(found) == len(expected) > 10
    for a, b in zip(found, expected):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.parametrize("phase", ["forward", "back"])
@pytest.mark.parametrize("step", [0, 1, 3, 6])
@pytest.mark.parametrize(
    "settings",
    [{}, {"method": "truncated", "truncation": K - 1}, {"method": "first_order"}],
    ids=["mixed", "truncated", "first_order"],
)
def test_it_goes_on_as_if_it_had_not_stopped(
    phase: str, step: int, settings: dict[str, Any]
) -> None:
    if phase == "back" and step == 0 and settings.get("method") == "truncated":
        step = 1
    assert_same(
        gradient(**settings), gradient(resume=stopped_at(phase, step, **settings), **settings)
    )


def test_progress_is_of_every_step() -> None:
    seen: list[tuple[str, int]] = []
    gradient(progress=lambda p: seen.append((p.phase, p.step)))
    forward = [("forward", k) for k in range(K + 1)]
    assert seen == forward + [("back", k) for k in reversed(range(K))]


class Elsewhere(MutableMapping[int, Any]):
    """States as bytes; counts how many there are at once."""

    def __init__(self) -> None:
        self.files: dict[int, bytes] = {}
        self.most = 0

    def __setitem__(self, k: int, value: Any) -> None:
        file = io.BytesIO()
        torch.save(value, file)
        self.files[k] = file.getvalue()
        self.most = max(self.most, len(self.files))

    def __getitem__(self, k: int) -> Any:
        return torch.load(io.BytesIO(self.files[k]), weights_only=True)

    def __delitem__(self, k: int) -> None:
        del self.files[k]

    def __iter__(self) -> Iterator[int]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)


def test_states_may_be_kept_elsewhere() -> None:
    place = Elsewhere()
    assert_same(gradient(kept=place, memory=None), gradient(memory=None))
    assert not place.files and place.most == 4  # ⌈√(2·7)⌉


def test_a_walk_with_states_elsewhere_goes_on_from_there() -> None:
    place = Elsewhere()
    snapshot = stopped_at("back", 4, kept=place, memory=None)
    assert snapshot["kept"] == {} and place.files
    assert_same(gradient(kept=place, memory=None, resume=snapshot), gradient(memory=None))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": K + 1, "optimizer": sgd(0.1)}, "resume='steps: 7': .* with the same steps"),
        ({"memory": "1MB"}, "resume='states: .*': .* with the same states"),
        ({"method": "truncated", "truncation": 2}, "resume='back_to: 0'"),
        ({"method": "first_order"}, "resume='first_order: False'"),
        ({"params": start(9)}, "resume='start: other parameters': the snapshot of a gradient"),
        ({"frozen": None}, "resume=.*frozen: .* with the same frozen"),
        ({"optimizer": sgd(0.1)}, "resume='optimizer: another one': .* with the same optimizer"),
    ],
)
def test_the_snapshot_of_another_gradient_is_refused(changes: dict[str, Any], message: str) -> None:
    snapshot = stopped_at("back", 4)
    params = changes.pop("params", None)
    with pytest.raises(SettingError, match=message):
        if params is None:
            gradient(resume=snapshot, **changes)
        else:
            hyper_gradient(
                inner, each, params, HYPER, batch, OUTER, optimizer=adam(0.1), steps=K,
                memory=2000, frozen="unmoved", resume=snapshot,
            )  # fmt: skip


@pytest.mark.parametrize("at", ["forward", "back"])
@pytest.mark.parametrize(
    ("then", "now"),
    [
        (sgd(0.1), sgd(0.11)),
        (sgd(0.1, momentum=0.9), sgd(0.1, momentum=0.91)),
        (sgd(0.1, momentum=0.9), sgd(0.1, momentum=0.9, nesterov=True)),
        (sgd(0.1), sgd(0.1, weight_decay=1e-3)),
        (sgd(0.1), adam(0.1)),
        (sgd(0.1), with_gradients(sgd(0.1), clip_norm=1e6)),
        (adam(0.1), adamw(0.1, weight_decay=0.01)),
        (adam(0.1), adam(0.1, betas=(0.9, 0.99))),
        (adam(0.1), adam(0.1, eps=1e-7)),
        (sgd(torch.tensor(0.1)), sgd(0.1)),
        (sgd(torch.linspace(0.3, 0.1, K)), sgd(torch.linspace(0.3, 0.2, K))),
        (sgd({"w": torch.tensor([0.1, 0.2, 0.3])}), sgd({"w": torch.tensor([0.2, 0.1, 0.3])})),
    ],
)
def test_a_walk_goes_on_with_its_own_optimizer_alone(at: str, then: Any, now: Any) -> None:
    stands: list[Any] = []
    how: Any = {"steps": K, "inner_batches": lambda k: torch.tensor(0.1 * k + 0.1)}
    whole = small_walk(
        optimizer=then, progress=lambda p: stands.append((p.phase, p.snapshot())), **how
    )
    snapshot = [s for phase, s in stands if phase == at][2]
    resumed = small_walk(optimizer=then, resume=saved(snapshot), **how)
    for a, b in zip(leaves(whole), leaves(resumed)):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    with pytest.raises(SettingError, match="resume='optimizer: another one': .*same optimizer"):
        small_walk(optimizer=now, resume=snapshot, **how)


@pytest.mark.parametrize("at", ["forward", "back"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inner_batches": lambda k: torch.tensor(0.2)}, "another inner_loss or inner_batches"),
        ({"inner": lambda p, h, b: p["w"].abs().sum() * b}, "another inner_loss or inner_batches"),
        ({"state": [torch.ones(3)]}, "state: another one': .* with the same state"),
    ],
)
def test_a_walk_goes_on_along_its_own_steps(at: str, change: Any, message: str) -> None:
    stands: list[Any] = []
    how: Any = {"optimizer": sgd(0.1, momentum=0.5), "state": [torch.full((3,), 0.5)], "steps": K}
    how["inner_batches"] = lambda k: torch.tensor(0.1 * k + 0.1)
    small_walk(progress=lambda p: stands.append((p.phase, p.snapshot())), **how)
    snapshot = [s for phase, s in stands if phase == at][2]
    with pytest.raises(SettingError, match=message):
        small_walk(resume=snapshot, **(how | change))


def test_inside_a_transform_there_is_no_progress() -> None:
    params = start()

    def of(rate: Any) -> Any:
        return hyper_gradient(
            inner, each, params, HYPER, batch, OUTER, optimizer=sgd(rate), steps=K, progress=print
        ).loss

    with pytest.raises(SettingError, match="progress=.*None is needed inside a transform"):
        torch.vmap(of)(torch.tensor([0.1, 0.2], dtype=torch.float64))


def small_walk(outer: Any = lambda p, h, batch: (p["w"] - batch) ** 2, **how: Any) -> HyperGradient:
    """A few steps of one vector towards h, scored by three losses."""
    params, hyper = {"w": torch.zeros(3)}, torch.tensor([0.5, -1.0, 2.0])
    six = [torch.tensor(0.1 * k + 0.1) for k in range(6)]
    given = {"inner_batches": six, "optimizer": sgd(0.3), "inner": towards, **how}
    inner, batches = given.pop("inner"), given.pop("inner_batches")
    return hyper_gradient(inner, outer, params, hyper, batches, torch.ones(3), **given)


def towards(p: Any, h: Any, batch: Any) -> Any:
    return ((p["w"] - h) ** 2).sum() * batch


@pytest.mark.parametrize(("factor", "rows"), [(3, 3), (1, 2)])
def test_cotangents_of_another_outer_loss_are_not_gone_on_with(factor: int, rows: int) -> None:
    stands: list[Any] = []
    small_walk(progress=lambda p: stands.append((p.phase, p.snapshot())))
    snapshot = [s for phase, s in stands if phase == "back"][2]
    with pytest.raises(SettingError, match="a gradient of the same outer loss"):
        small_walk(lambda p, h, b: factor * ((p["w"] - b) ** 2)[:rows], resume=snapshot)


@pytest.mark.parametrize("kept", [None, {}])
def test_states_that_are_gone_are_said(kept: Any) -> None:
    stands: list[Any] = []
    small_walk(kept={}, progress=lambda p: stands.append((p.phase, p.snapshot())))
    snapshot = [s for phase, s in stands if phase == "back"][2]
    with pytest.raises(SettingError, match="kept its states in, as it was left"):
        small_walk(kept=kept, resume=snapshot)


@pytest.mark.parametrize("method", ["auto", "reverse", "implicit"])
def test_a_run_of_which_all_is_frozen_is_refused(method: str) -> None:
    with pytest.raises(SettingError, match="leave a parameter to train"):
        small_walk(frozen="*", method=method)
