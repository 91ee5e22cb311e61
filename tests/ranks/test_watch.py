"""Who is missing is told by pulses, not by who happens to fail first."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from torch.distributed import TCPStore

from metalearn.errors import RankError, SettingError
from metalearn.ranks import watch as room
from metalearn.ranks.watch import Watch


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_PULSE", 0.05)
    monkeypatch.setattr(room, "_PATIENCE", 0.4)
    monkeypatch.setattr(room, "_LONG_PATIENCE", 2.0)


@pytest.fixture(name="store")
def _store() -> TCPStore:
    return TCPStore("127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=20))


def watches(
    store: TCPStore, count: int = 3, heard: list[tuple[int, str]] | None = None
) -> list[Watch]:
    def client() -> TCPStore:
        return TCPStore("127.0.0.1", store.port, is_master=False, timeout=timedelta(seconds=20))

    hears = None if heard is None else lambda rank, words: heard.append((rank, words))
    return [Watch(client(), r, count, 7.0, hears if r == 0 else None) for r in range(count)]


def stopped(watch: Watch) -> None:
    """As if its process had been killed."""
    watch._end.set()
    watch._thread.join()


def test_a_rank_without_a_pulse_is_gone(store: TCPStore) -> None:
    first, second, third = watches(store)
    time.sleep(0.2)
    stopped(second)
    for watch in (first, third):
        watch.enter()
        assert watch.who_is_missing().startswith("rank 1 is gone: it was killed")
    for watch in (first, third):
        watch.leave()


def test_a_rank_that_does_not_come_hangs(store: TCPStore) -> None:
    first, second, third = watches(store)
    for watch in (first, third):
        watch.enter()
    time.sleep(0.2)
    assert first.who_is_missing() == "rank 1 hangs: the others have waited 7 s for it"
    for watch in (first, second, third):
        watch.leave()


def test_what_ended_a_rank_is_said_and_no_consequence_of_it(store: TCPStore) -> None:
    first, second, third = watches(store)
    third.leave("MemoryError: no room")
    second.leave()  # as others had left it
    first.enter()
    assert first.who_is_missing() == "rank 2 ended: MemoryError: no room"
    first.leave()


def test_nobody_is_missing_where_all_came(store: TCPStore) -> None:
    every = watches(store, 2)
    time.sleep(0.2)
    assert every[0].who_is_missing() == ""
    for watch in every:
        watch.leave()


def test_a_rank_that_never_came_is_named(store: TCPStore) -> None:
    client = TCPStore("127.0.0.1", store.port, is_master=False, timeout=timedelta(seconds=20))
    first = Watch(client, 0, 2, 7.0)
    assert first.who_is_missing() == "rank 1 never came"
    first.leave()


def test_words_of_others_come_to_the_first_in_order_and_once(store: TCPStore) -> None:
    heard: list[tuple[int, str]] = []
    first, second, third = watches(store, heard=heard)
    for words in ("one", "two"):
        second.tell(words)
    third.tell("three")
    time.sleep(0.3)
    second.tell("four")
    first.leave()  # which hears what is left
    assert [words for rank, words in heard if rank == 1] == ["one", "two", "four"]
    assert [words for rank, words in heard if rank == 2] == ["three"]
    for watch in (second, third):
        watch.leave()


def test_silence_is_borne_longer_where_ranks_wait_without_a_limit(store: TCPStore) -> None:
    """Of a rank that is busy in one long call, or on a machine that swaps."""
    first, second = watches(store, 2)
    stopped(second)
    first.enter()
    second.enter()
    coming = threading.Timer(1.2, second._publish)  # three times what a meeting's failure waits
    coming.start()
    assert first.wait_for_all() == ""
    coming.join()
    first.leave()


def test_who_never_comes_is_given_up_where_ranks_wait_without_a_limit(store: TCPStore) -> None:
    first, second, third = watches(store)
    stopped(third)
    following = threading.Timer(0.5, stopped, [second])
    following.start()
    first.enter()
    begin = time.monotonic()
    assert first.wait_for_all().startswith("rank 2 is gone: it was killed")
    assert 1.0 < time.monotonic() - begin < 8
    first.leave()


def test_a_cause_is_named_and_not_who_left_because_of_it(store: TCPStore) -> None:
    first, second, third = watches(store)
    second.leave()  # as others had left it
    first.enter()
    telling = threading.Timer(0.2, third.leave, ["MemoryError: no room"])
    telling.start()
    assert first.wait_for_all() == "rank 2 ended: MemoryError: no room"
    telling.join()
    first.leave()


def test_whoever_waits_is_seen_at_once(store: TCPStore) -> None:
    first, second = watches(store, 2)
    for watch in (first, second):
        stopped(watch)  # no pulse tells of it
        watch.enter()
    second._publish()
    assert first.wait_for_all() == "" and second.wait_for_all() == ""


def _beginnings(store: TCPStore, known: list[tuple[int, str]]) -> list[str]:
    """What ranks that know of so many and so much say when they begin."""
    every = [
        Watch(TCPStore("127.0.0.1", store.port, is_master=False), rank, count, 7.0)
        for rank, (count, _) in enumerate(known)
    ]

    def begin(watch: Watch) -> str:
        try:
            watch.begin({"version": known[watch.rank][1]})
        except SettingError as error:
            return str(error)
        finally:
            watch.leave()
        return ""

    with ThreadPoolExecutor(len(every)) as pool:
        return list(pool.map(begin, every))


@pytest.mark.parametrize(
    ("known", "sentence"),
    [
        ([(2, "a"), (2, "a")], ""),
        ([(2, "a"), (3, "a")], "WORLD_SIZE of rank 1=3: 2 is needed, as rank 0 has it"),
        ([(3, "a"), (2, "a"), (3, "a")], "WORLD_SIZE of rank 1=2: 3 is needed, as rank 0 has it"),
        ([(2, "a"), (2, "b")], "version of rank 1='b': a is needed, as rank 0 has it"),
    ],
)
def test_ranks_of_another_launch_are_refused_by_all(
    store: TCPStore, known: list[tuple[int, str]], sentence: str
) -> None:
    assert _beginnings(store, known) == [sentence] * len(known)


def test_a_rank_that_left_before_it_came_is_not_waited_for(store: TCPStore) -> None:
    first, second = watches(store, 2)
    second.leave("SettingError: torchrun='export'")
    before = time.monotonic()
    with pytest.raises(RankError, match="^rank 1 ended: SettingError: torchrun='export'"):
        first.begin({})
    assert time.monotonic() - before < 5
    first.leave()


def test_a_rank_that_does_not_come_in_time_is_named(store: TCPStore) -> None:
    client = TCPStore("127.0.0.1", store.port, is_master=False, timeout=timedelta(seconds=20))
    first = Watch(client, 0, 2, 0.3)
    with pytest.raises(RankError, match="^rank 1 never came$"):
        first.begin({})
    first.leave()
