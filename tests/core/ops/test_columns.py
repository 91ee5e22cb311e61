"""Windows as rows against `F.unfold`, and their transpose by inner products and `F.fold`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.core.ops.columns import Columns, to_columns
from metalearn.core.ops.windows import Window, window_of
from tests.support import oracles

pytestmark = pytest.mark.usefixtures("both_ways")

SETTINGS: list[tuple[tuple[int, int], Any, Any, Any, Any]] = [
    # (height, width), size, stride, padding, dilation
    ((6, 6), 3, 1, 1, 1),
    ((6, 6), 3, 2, 1, 1),
    ((7, 5), 3, 2, 1, 1),
    ((5, 8), (2, 3), (1, 2), (0, 2), 1),
    ((9, 7), (3, 2), (2, 3), (2, 1), (2, 1)),
    ((9, 7), (2, 3), (3, 1), (1, 2), (1, 2)),
    ((8, 8), 3, 1, 2, 2),
    ((8, 9), 3, 2, 0, (3, 2)),
    ((6, 6), 1, 1, 0, 1),
    ((6, 6), 1, 1, 1, 1),
    ((6, 7), 1, 2, 0, 1),
    ((7, 7), 2, 3, 0, 1),  # gaps: pixels that no window reaches
    ((7, 8), 1, (3, 4), 0, 1),
    ((3, 4), 5, 1, 2, 1),  # a window larger than the picture
    ((2, 2), 5, 3, 4, 1),
    ((4, 4), 4, 1, 0, 1),  # one position
    ((1, 1), 3, 2, 1, 1),
    ((1, 9), (1, 3), (1, 2), (0, 1), 1),
    ((9, 1), (5, 1), (2, 1), (2, 0), 1),
    ((5, 5), 2, 2, 0, 4),  # a window that spans the picture, most phases empty
    ((6, 5), 3, 5, 3, 1),  # some windows lie in the padding alone
]
settings = pytest.mark.parametrize(
    ("picture", "size", "stride", "padding", "dilation"), SETTINGS, ids=str
)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=oracles.generator(seed), dtype=torch.float64)


def channels_last(rows: Tensor, window: Window, positions: tuple[int, int]) -> Tensor:
    """``F.unfold``'s ``[n, C·kh·kw, H'·W']`` as ``[n, H', W', kh·kw·C]``."""
    area = window.size[0] * window.size[1]
    split = rows.unflatten(1, (-1, area))
    return split.permute(0, 3, 2, 1).flatten(2).unflatten(1, positions)


def back_of(columns: Tensor, window: Window, height: int, width: int) -> Tensor:
    """``[n, H', W', K]`` summed into ``[n, H, W, C]``, each picture a task of one sample."""
    n, channels = len(columns), columns.shape[-1] // (window.size[0] * window.size[1])
    shape = (n, 1, height, width, channels)
    kept = Columns(columns, window, shape)
    kept.memory(n).copy_(columns.flatten(1, 2))
    return kept.add_up(columns.new_empty(shape))[:, 0]


@settings
def test_columns_are_those_of_unfold(
    picture: tuple[int, int], size: Any, stride: Any, padding: Any, dilation: Any
) -> None:
    window, x = window_of(size, stride, padding, dilation), noise(2, *picture, 3)
    columns = to_columns(x, window)
    rows = F.unfold(
        x.movedim(-1, 1), window.size, dilation=dilation, padding=padding, stride=stride
    )
    down, across = window.positions(*picture)
    assert rows.shape[-1] == down * across
    assert torch.equal(columns, channels_last(rows, window, (down, across)))


@settings
def test_back_is_the_transpose(
    picture: tuple[int, int], size: Any, stride: Any, padding: Any, dilation: Any
) -> None:
    """⟨columns(x), c⟩ = ⟨x, back(c)⟩ for each unit vector x, which is back(c) entry by entry."""
    window = window_of(size, stride, padding, dilation)
    area = picture[0] * picture[1]
    units = torch.eye(area * 2, dtype=torch.float64).view(-1, *picture, 2)
    images = to_columns(units, window)
    cotangent = noise(*images.shape[1:], seed=1)
    expected = (images * cotangent).flatten(1).sum(1).view(*picture, 2)
    back = back_of(cotangent[None], window, *picture)
    torch.testing.assert_close(back[0], expected, rtol=1e-13, atol=1e-13)


@settings
def test_back_is_fold_for_many_pictures(
    picture: tuple[int, int], size: Any, stride: Any, padding: Any, dilation: Any
) -> None:
    window = window_of(size, stride, padding, dilation)
    down, across = window.positions(*picture)
    area = window.size[0] * window.size[1]
    columns = noise(3, down, across, area * 2, seed=2)
    rows = columns.flatten(1, 2).unflatten(2, (area, 2)).permute(0, 3, 2, 1).flatten(1, 2)
    folded = F.fold(rows, picture, window.size, dilation=dilation, padding=padding, stride=stride)
    back = back_of(columns, window, *picture)
    torch.testing.assert_close(back, folded.movedim(1, -1), rtol=1e-13, atol=1e-13)


def test_memory_that_was_not_written_does_not_come_out() -> None:
    """Nothing is left of the uninitialised memory, where no window reaches or all overlap."""
    for picture, size, stride, padding, dilation in SETTINGS:
        window = window_of(size, stride, padding, dilation)
        down, across = window.positions(*picture)
        shape = (2, down, across, window.size[0] * window.size[1] * 2)
        previous = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(True)  # fills fresh memory with NaN
        try:
            back = back_of(torch.ones(shape), window, *picture)
            columns = to_columns(torch.ones(2, *picture, 2), window)
        finally:
            torch.use_deterministic_algorithms(previous)
        assert bool(torch.isfinite(back).all()) and bool(torch.isfinite(columns).all())
        assert float(back.double().sum()) == float(columns.double().sum())


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("dilation", [1, 2, (1, 3)])
@pytest.mark.parametrize("size", [1, 2, 3, (2, 5)])
def test_same_and_valid_are_those_of_torch(size: Any, dilation: Any) -> None:
    x, window = noise(1, 2, 7, 9), window_of(size, 1, "same", dilation)
    weight = noise(3, 2, *window.size, seed=1)
    columns = to_columns(x.movedim(1, -1), window)
    matrix = weight.permute(2, 3, 1, 0).flatten(0, 2)
    expected = F.conv2d(x, weight, padding="same", dilation=dilation)
    torch.testing.assert_close((columns @ matrix).movedim(-1, 1), expected)
    assert window.positions(7, 9) == (7, 9)
    assert window_of(size, 2, "valid", dilation) == window_of(size, 2, 0, dilation)


def test_pairs_and_single_numbers_name_the_same_window() -> None:
    assert window_of(3, 2, 1, 1) == window_of((3, 3), (2, 2), (1, 1), (1, 1))
    assert window_of([3], [2], [1], [1]) == window_of(3, 2, 1, 1)
    assert window_of(torch.Size([3, 2]), (1, 2), (0, 1), 1) == Window(
        (3, 2), (1, 2), ((0, 0), (1, 1)), (1, 1)
    )


def test_a_window_of_one_pixel_copies_nothing() -> None:
    x, window = noise(2, 4, 5, 3), window_of(1, 1, 0, 1)
    assert window.is_pixel and not window_of(1, 1, 1, 1).is_pixel
    assert not window_of(1, 2, 0, 1).is_pixel and not window_of((1, 2), 1, 0, 1).is_pixel
    assert to_columns(x, window) is x and torch.equal(back_of(x, window, 4, 5), x)
    assert Columns(x, window, (2, 1, 4, 5, 3)).of(x[:, None]).data_ptr() == x.data_ptr()


def test_pictures_in_another_order_of_memory() -> None:
    """A picture that is not contiguous has the columns of one that is."""
    x = noise(2, 3, 6, 5).movedim(1, -1)
    assert not x.is_contiguous()
    for padding in (0, 1):
        window = window_of(3, 2, padding, 1)
        assert torch.equal(to_columns(x, window), to_columns(x.contiguous(), window))
    offset = noise(3, 6, 5, 2)[1:]
    assert offset.storage_offset() > 0
    window = window_of((2, 3), 1, 0, (1, 2))
    assert torch.equal(to_columns(offset, window), to_columns(offset.clone(), window))


@settings
def test_memory_is_used_again_by_fewer_tasks_and_behind_a_gate(
    picture: tuple[int, int], size: Any, stride: Any, padding: Any, dilation: Any
) -> None:
    """Borders stay zero, nothing is left of what was there, and the part of a tensor will do."""
    window, x = window_of(size, stride, padding, dilation), noise(3, 2, *picture, 2)
    gate, kept = noise(3, 2, *picture, 2, seed=1), Columns(x, window, x.shape)
    for part in (slice(0, 3), slice(1, 3), slice(2, 3), slice(0, 3)):
        for given, shown in ((None, x), (gate, x * (gate > 0))):
            found = kept.of(x[part], None if given is None else given[part])
            columns = to_columns(shown.flatten(0, 1), window).reshape(3, found.shape[1], -1)
            assert torch.equal(found, columns[part])
            out, alone = torch.full_like(x, 7.0), Columns(x, window, x[part].shape)
            for memory, pictures in ((kept, out[part]), (alone, alone_out := x[part].clone())):
                memory.memory(len(pictures)).copy_(columns[part])
                assert memory.add_up(pictures) is pictures
            assert torch.equal(out[part], alone_out)
            assert int((out == 7).sum()) >= out.numel() - out[part].numel()
