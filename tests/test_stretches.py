"""Long stretches of work tell how far they are, to whoever listens, and come to their end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from metalearn.attribution import attribute
from metalearn.data.folder import load_folder
from metalearn.models import MLP
from metalearn.stretches import Tell, stretch, watched_by
from metalearn.tasks import SinusoidTasks
from metalearn.trainers import EnsembleTrainer, MetaTrainer
from metalearn.trainers.diagnostics import DiagnosisData, diagnose
from tests.attribution.test_attributing import scored
from tests.data.test_folder import six
from tests.support.small_data import trainer

Listened = list[tuple[str, int, str, list[int]]]


def listened(work: Callable[[], object]) -> Listened:
    """What is told of a piece of work: what, how much, the unit, and each step of it."""
    found: Listened = []

    @contextmanager
    def watcher(what: str, total: int, unit: str) -> Iterator[Tell]:
        steps: list[int] = []
        found.append((what, total, unit, steps))
        yield steps.append

    with watched_by(watcher):
        work()
    return found


def meta() -> MetaTrainer:
    tasks = SinusoidTasks(seed=0)
    return MetaTrainer(
        MLP((1,), 1, hidden=(4,)), tasks, meta_batch=2, steps=1, validation_tasks=5, progress=False
    )


def ensemble_diagnosis() -> None:
    data = DiagnosisData(run="it", split="test", samples=8)
    names = ["gradient_norms", "noise_scale", "cosines", "traces"]
    diagnose(trainer(EnsembleTrainer).diagnosis_sources(data), names)


WORK: dict[str, tuple[Callable[[Path], object], list[tuple[str, int, str]]]] = {
    "tasks": (
        lambda _: meta().reports(tasks=5),
        [("test", 5, "tasks"), ("test, inductive", 5, "tasks")],
    ),
    "ensemble": (lambda _: trainer(EnsembleTrainer).reports("test"), [("test", 24, "samples")]),
    "diagnosis": (lambda _: ensemble_diagnosis(), [("diagnostics", 4, "quantities")]),
    "attribution": (
        lambda _: attribute([scored(), scored()], ["cosine", "representation"], ["el2n"]),
        [("scoring", 4, "methods × networks"), ("scoring", 2, "methods × networks")],
    ),
    "folder": (
        lambda path: load_folder(six(path / "six"), image_size=4),
        [("reading six", 21, "pictures")],
    ),
}


@pytest.mark.parametrize("name", WORK)
def test_what_may_take_long_says_how_far_it_is(name: str, tmp_path: Path) -> None:
    work, expected = WORK[name]
    found = listened(lambda: work(tmp_path))
    assert set(expected) <= {(what, total, unit) for what, total, unit, _ in found}
    for _, total, _, steps in found:
        assert sum(steps) == total > 0, "what is begun is told to its end"


def test_validations_of_a_training_tell_only_who_trains_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown: list[tuple[str, int, str, bool | None]] = []

    @contextmanager
    def record(what: str, total: int, unit: str, *, enabled: bool | None) -> Iterator[Tell]:
        shown.append((what, total, unit, enabled))
        yield lambda more: None

    monkeypatch.setattr("metalearn.trainers.loop.loop.shown_stretch", record)
    assert listened(meta().fit) == []
    assert shown and set(shown) == {("validation", 5, "tasks", False)}


def test_nobody_is_told_without_a_listener_or_of_nothing() -> None:
    with stretch("rest", 3, "steps") as tell:
        tell(3)

    def nothing() -> None:
        with stretch("rest", 0, "steps") as tell:
            tell(1)

    assert listened(nothing) == []


def test_threads_do_not_tell_who_listens_elsewhere() -> None:
    def aside() -> None:
        thread = threading.Thread(target=lambda: stretch("x", 1, "steps").__enter__()(1))
        thread.start()
        thread.join()

    assert listened(aside) == []
