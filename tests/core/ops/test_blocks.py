"""Products of a block's rows, by one thread and by several, against all rows at once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from metalearn.core.ops import blocks
from metalearn.core.ops.blocks import Block
from tests.support import oracles


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=oracles.generator(seed), dtype=torch.float64)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("sums", [10, 40, 2**22])
@pytest.mark.parametrize("columns", [1, 5])
@pytest.mark.parametrize("rows", [1, 7, 511, 512, 768, 1025])
@pytest.mark.parametrize("tasks", [1, 2])
def test_products_of_rows_are_added_up(
    tasks: int, rows: int, columns: int, sums: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first samples write, those behind add; other tasks are left alone."""
    monkeypatch.setattr(blocks, "_SUMS", sums)
    a, b = noise(tasks, 2 * rows, 4, seed=0), noise(tasks, 2 * rows, columns, seed=1)
    total = torch.full((tasks + 1, 4, columns), float("nan"), dtype=torch.float64)
    total[0] = 3.0
    own = slice(1, tasks + 1)
    for i in range(2):
        part = slice(i * rows, (i + 1) * rows)
        Block(own, slice(i, i + 1), part).add_product(a[:, part], b[:, part], total)
    torch.testing.assert_close(total[own], torch.einsum("tno,tnk->tok", a, b))
    assert bool((total[0] == 3).all())


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("rows", [1024, 1125])
def test_products_have_the_type_of_their_place_under_autocast(rows: int) -> None:
    """A loss may leave autocast for a part, whose backward pass is under it all the same."""
    a, b = (noise(1, rows, 4, seed=i).float() for i in range(2))
    block, wanted = Block(slice(0, 1), slice(0, 1), slice(0, rows)), torch.empty(1, 4, 4)
    block.add_product(a, b, wanted)
    total = torch.empty(1, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        block.add_product(a, b, total)
    assert torch.equal(total, wanted)
