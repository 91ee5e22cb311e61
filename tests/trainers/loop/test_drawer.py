"""Batches that threads draw ahead: the same ones, whatever the timing, and no thread is left."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any

import pytest
import torch

from metalearn.errors import DataError, SettingError
from metalearn.models import MLP
from metalearn.tasks import MixtureTasks, SinusoidTasks
from metalearn.tasks.thread_safety import threads_may_draw
from metalearn.trainers import MetaTrainer
from metalearn.trainers.loop import draw_times, draw_workers
from metalearn.trainers.loop.draw_times import DrawTimes, spare_processors
from metalearn.trainers.loop.draw_workers import DrawWorkers
from metalearn.trainers.loop.drawer import Drawer
from tests.support.builders import assert_same

CPU = torch.device("cpu")


class Slow(SinusoidTasks):
    """Sine waves that take as long as chance says, and keep who drew what."""

    tasks_ahead = 1  # type: ignore[assignment]
    thread_safe = True

    def __init__(self, longest: float = 0.02) -> None:
        super().__init__(shot=3, query=2)
        self.longest, self.threads, self.most = longest, set[str](), 0
        self._lock, self._inside = threading.Lock(), 0

    def sample(self, split: Any, indices: Sequence[int], **how: Any) -> Any:
        if split != "train":
            return super().sample(split, indices, **how)
        with self._lock:
            self.threads.add(threading.current_thread().name)
            self._inside += 1
            self.most = max(self.most, self._inside)
        time.sleep(random.random() * self.longest)
        try:
            return super().sample(split, indices, **how)
        finally:
            with self._lock:
                self._inside -= 1


def drawing_threads() -> list[str]:
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name.startswith("metalearn-draws")]


def trained(source: Any, workers: Any, **settings: Any) -> MetaTrainer:
    given: dict[str, Any] = {"steps": 12, "meta_batch": 3, "validation_tasks": 2, "eval_every": 5}
    model = MLP((1,), 1, hidden=(6,), seed=0)
    trainer = MetaTrainer(model, source, draw_workers=workers, progress=False, **given | settings)
    trainer.fit()
    return trainer


def test_a_training_is_the_same_with_any_number_of_threads() -> None:
    alone = trained(Slow(), 0, accumulate=2)
    for workers in (1, 3):
        source = Slow()
        ahead = trained(source, workers, accumulate=2)
        assert_same(dict(alone.module.state_dict()), dict(ahead.module.state_dict()))
        assert any(name.startswith("metalearn-draws") for name in source.threads)
        assert source.most <= workers + 1 and not drawing_threads()


def test_blocks_are_drawn_ahead_too() -> None:
    class Blocks(Slow):
        tasks_ahead = 12  # type: ignore[assignment]

    source = Blocks()
    ahead = trained(source, 2)
    assert_same(dict(trained(Slow(), 0).module.state_dict()), dict(ahead.module.state_dict()))
    assert any(name.startswith("metalearn-draws") for name in source.threads)


@pytest.mark.parametrize("workers", [0, 2])
def test_what_a_thread_raised_is_raised_at_its_step(workers: int) -> None:
    class Broken(Slow):
        thread_safe = True

        def sample(self, split: Any, indices: Sequence[int], **how: Any) -> Any:
            if split == "train" and 14 in indices:
                raise DataError("picture 14 is damaged")
            return super().sample(split, indices, **how)

    given: dict[str, Any] = {"steps": 12, "meta_batch": 3, "validation_tasks": 2}
    model = MLP((1,), 1, hidden=(6,), seed=0)
    trainer = MetaTrainer(model, Broken(0.001), draw_workers=workers, progress=False, **given)
    with pytest.raises(DataError, match="^picture 14 is damaged$"):
        trainer.fit()
    assert trainer.loop.step == 4 and not drawing_threads()


def test_an_interrupt_ends_the_threads() -> None:
    drawer = Drawer(lambda numbers: time.sleep(0.05), 2, CPU)
    source = SinusoidTasks()
    with pytest.raises(KeyboardInterrupt), drawer.training(source):
        drawer(source, range(1), (range(k, k + 1) for k in count(1)))
        assert drawing_threads()
        raise KeyboardInterrupt
    assert not drawing_threads()


def test_few_batches_wait_and_none_twice() -> None:
    drawn: list[range] = []

    def draw(numbers: range) -> range:
        drawn.append(numbers)
        return numbers

    workers = DrawWorkers(draw, 2, CPU)

    def later(k: int) -> list[range]:
        return [range(i, i + 1) for i in range(k + 1, k + 9)]

    for k in range(4):
        assert workers.take(range(k, k + 1), later(k)) == range(k, k + 1)
    assert workers.take(range(90, 91), later(90)) == range(90, 91)  # another place: all anew
    workers.close()
    first = sorted(numbers.start for numbers in drawn if numbers.start < 90)
    assert first == list(range(len(first))) and len(first) <= 7


@pytest.mark.parametrize("safe", [None, False, 1])
def test_a_source_that_does_not_say_so_is_drawn_from_by_one_thread(safe: Any) -> None:
    class Plain(Slow):
        thread_safe = safe

    source = Plain(0.001)
    trained(source, "auto")
    assert source.threads == {threading.current_thread().name}
    with pytest.raises(SettingError, match="draw_workers=2: 0 or auto is needed: Plain does not"):
        trained(Plain(), 2)


class Changed(Slow):
    def sample(self, *arguments: Any, **settings: Any) -> Any:
        return super().sample(*arguments, **settings)


class SaidAnew(Changed):
    thread_safe = True


class Renamed(SaidAnew):
    shots = 3


def test_what_is_said_of_a_draw_holds_for_that_draw() -> None:
    """A subclass may keep state where its parent does not."""
    found = [threads_may_draw(kind()) for kind in (Slow, Changed, SaidAnew, Renamed)]
    assert found == [True, False, True, True]
    changed = Changed()
    changed.thread_safe = True
    assert threads_may_draw(changed)
    assert not threads_may_draw(object())
    assert not MixtureTasks({"a": SinusoidTasks(), "b": Loud()}).thread_safe
    assert MixtureTasks({"a": SinusoidTasks(), "b": SinusoidTasks(seed=1)}).thread_safe


class Loud(SinusoidTasks):
    def sample(self, *arguments: Any, **settings: Any) -> Any:
        return super().sample(*arguments, **settings)


@pytest.mark.parametrize("bad", [-1, 2.0, "two", None, True, 257])
def test_what_is_no_number_of_threads_is_refused(bad: Any) -> None:
    with pytest.raises(SettingError, match="draw_workers="):
        trained(Slow(), bad)


def noting(names: list[str]) -> Callable[[range], None]:
    """Notes which thread draws."""

    def draw(numbers: range) -> None:
        names.append(threading.current_thread().name)

    return draw


def test_another_source_is_not_drawn_from_by_threads() -> None:
    names: list[str] = []
    drawer, one, other = Drawer(noting(names), 1, CPU), SinusoidTasks(), SinusoidTasks()
    with drawer.training(one):
        drawer(other, range(3), iter(()))
    assert names == [threading.current_thread().name]


def times(draw: float, rest: float, before: DrawTimes | None = None) -> DrawTimes:
    """As if so much time had been measured."""
    found = DrawTimes()
    found._draws, found._rests = [9.0] * 2 + [draw] * 5, [9.0] * 2 + [rest] * 5
    return found


def test_what_pays() -> None:
    assert times(0.05, 0.1).seen and not DrawTimes().seen
    assert times(0.05, 0.1).worth_a_try()
    assert not times(0.05, 1.0).worth_a_try(), "a small part of a step"
    assert not times(0.001, 0.001).worth_a_try(), "shorter than what threads cost"
    assert times(0, 0.1).saved(times(0.05, 0.1)) and not times(0, 0.149).saved(times(0.05, 0.1))


def test_by_itself_it_begins_where_drawing_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draw_times, "_SKIPPED", 0)
    monkeypatch.setattr(draw_times, "_LOOKS", 2)
    monkeypatch.setattr(draw_times, "_LEAST", 0.0)
    monkeypatch.setattr(draw_times, "_SHARE", 0.0)
    ends: list[int] = []
    for gain, kept in ((1e9, True), (0.0, False)):
        monkeypatch.setattr(draw_times, "_GAIN", gain)
        source, names = SinusoidTasks(), list[str]()
        drawer = Drawer(noting(names), "auto", CPU)
        with drawer.training(source):
            for k in range(12):
                drawer(source, range(k, k + 1), (range(i, i + 1) for i in range(k + 1, 12)))
            assert bool(drawing_threads()) == kept
        main = threading.current_thread().name
        assert names[:3] == [main] * 3 and any(name != main for name in names)
        ends.append(names.count(main))
    assert ends[1] > ends[0], "threads that do not help are ended"


def test_processors_are_shared_by_the_ranks_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(8), raising=False)
    for ranks, expected in (("1", 4), ("2", 3), ("4", 1), ("8", 1), ("many", 4)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
        assert spare_processors() == expected


class Lane:
    """In place of a stream: what is asked of it, in order."""

    said: list[str]

    def __init__(self, device: torch.device) -> None:
        self.said = []
        Lane.last = self

    last: Any = None

    @contextmanager
    def beside(self) -> Iterator[None]:
        self.said.append("beside")
        yield
        self.said.append("done")

    def reached(self) -> str:
        self.said.append("reached")
        return "event"

    def hand_over(self, values: Any, event: Any) -> None:
        self.said.append(f"{values} after {event}")


def test_on_a_gpu_steps_wait_for_the_stream_of_the_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draw_workers, "_Lane", Lane)
    workers = DrawWorkers(
        lambda numbers: Lane.last.said.append("drawn") or 7, 1, torch.device("cuda")
    )
    assert workers.take(range(1), []) == 7
    workers.close()
    assert Lane.last.said == ["beside", "drawn", "reached", "done", "7 after event"]
    Lane.last = None
    DrawWorkers(lambda numbers: numbers, 1, CPU).close()
    assert Lane.last is None, "a processor has no streams"
