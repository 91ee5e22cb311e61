"""Things made of data: once while cached, never of other data, never kept afterwards."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor

from metalearn.core.ops.data_cache import cached, caching_data
from metalearn.core.ops.windows import Window, window_of

WINDOW = window_of(2, 1, 0, 1)


class Maker:
    """Doubles x, and counts."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: Tensor, window: Window) -> Tensor:
        self.calls += 1
        return 2 * x


def test_the_same_data_are_looked_at_once_while_remembering() -> None:
    make, x = Maker(), torch.arange(12.0).view(3, 4)
    with caching_data():
        first = cached(make, x, WINDOW)
        assert cached(make, x.view(3, 4), WINDOW) is first and make.calls == 1
    assert torch.equal(cached(make, x, WINDOW), first) and make.calls == 2
    with caching_data():
        assert cached(make, x, WINDOW) is not first
        with caching_data():  # one gradient within another has its own
            cached(make, x, WINDOW)
        cached(make, x, WINDOW)
    assert make.calls == 4


def test_what_differs_is_made_anew() -> None:
    """Another part, shape, order or type of the same memory, window or maker; changed data."""
    make, other, x = Maker(), Maker(), torch.arange(16.0).view(4, 4)
    with caching_data():
        for view in (x, x[:2], x[2:], x.T, x.view(2, 8), x.view(torch.int32)):
            assert torch.equal(cached(make, view, WINDOW), 2 * view)
        assert make.calls == 6
        cached(make, x, window_of(2, 2, 0, 1))
        cached(other, x, WINDOW)
        assert (make.calls, other.calls) == (7, 1)
        before = cached(make, x, WINDOW)
        x.add_(1)
        assert torch.equal(cached(make, x, WINDOW), before + 2)


def test_fresh_data_in_the_place_of_freed_ones_are_not_taken_for_them() -> None:
    make = Maker()
    with caching_data():
        for i in range(20):
            assert float(cached(make, torch.full((4,), float(i)), WINDOW)[0]) == 2 * i


def test_only_the_last_few_are_kept_and_none_after() -> None:
    make = Maker()
    with caching_data():
        held = []
        for i in range(9):
            x = torch.full((8,), float(i))
            held.append(weakref.ref(cached(make, x, WINDOW)))
        del x
        assert sum(ref() is not None for ref in held) == 4
    assert not any(ref() is not None for ref in held)


def test_tensors_without_a_version_or_under_a_transform_are_not_remembered() -> None:
    make = Maker()
    with torch.inference_mode():
        x = torch.ones(3)
    with caching_data():
        for _ in range(2):
            cached(make, x, WINDOW)
        assert make.calls == 2
        y = torch.ones(2, 3)
        for _ in range(2):
            assert torch.equal(torch.vmap(lambda row: cached(make, row, WINDOW))(y), 2 * y)
        assert make.calls == 4
