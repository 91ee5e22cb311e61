"""How rows are divided, and what ranks are to a process by itself."""

from __future__ import annotations

import pytest
import torch

from metalearn.errors import SettingError
from metalearn.ranks import OneRank, Share, check_enough, launched, refuse_division


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("rows", [0, 1, 5, 7, 21])
def test_rows_are_divided_in_order_and_evenly(rows: int, count: int) -> None:
    parts = [Share(rank, count).of(range(rows)) for rank in range(count)]
    assert [row for part in parts for row in part] == list(range(rows))
    sizes = [len(part) for part in parts]
    assert sizes == Share(0, count).sizes(rows) == sorted(sizes, reverse=True)
    assert max(sizes) - min(sizes) <= 1


def test_tensors_are_divided_along_their_first_axis() -> None:
    values = torch.arange(10).view(5, 2)
    parts = [Share(rank, 2).of(values) for rank in range(2)]
    assert torch.equal(torch.cat(parts), values)


def test_one_rank_meets_itself() -> None:
    one, values = OneRank(), torch.arange(3)
    assert one.sums({"a": values})["a"] is values
    assert one.joined(values, [3]) is values
    assert one.agreed("x") == "x" and one.of_each(2) == [2] and one.noted(15) == 15


def test_too_little_to_divide_is_refused() -> None:
    check_enough("meta_batch", 3, Share(0, 3))
    with pytest.raises(SettingError, match="meta_batch=2: at least 3 are needed"):
        check_enough("meta_batch", 2, Share(0, 3))
    with pytest.raises(SettingError, match="ranks=3: 1 is needed: a census is not divided"):
        refuse_division("a census", Share(0, 3))


def test_a_process_by_itself_was_launched_by_nobody() -> None:
    assert launched({}) is None
    assert launched({"WORLD_SIZE": "1", "RANK": "0"}) is None


def test_what_torchrun_says_is_read() -> None:
    said = {
        "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "10.0.0.1",
        "MASTER_PORT": "29500", "TORCHELASTIC_RESTART_COUNT": "2",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }  # fmt: skip
    found = launched(said)
    assert found is not None
    assert (found.rank, found.count, found.local_rank, found.restart) == (3, 4, 1, 2)
    assert (found.address, found.port, found.store_is_kept) == ("10.0.0.1", 29500, True)


@pytest.mark.parametrize(
    ("name", "value"), [("RANK", "x"), ("RANK", "4"), ("MASTER_PORT", None), ("RANK", None)]
)
def test_an_environment_that_makes_no_sense_is_refused(name: str, value: str | None) -> None:
    said = {"RANK": "0", "WORLD_SIZE": "4", "MASTER_PORT": "29500"}
    said = {k: v for k, v in said.items() if k != name} | ({} if value is None else {name: value})
    with pytest.raises(SettingError, match=f"^{name}="):
        launched(said)


def test_a_rank_that_takes_itself_for_the_only_one_is_refused() -> None:
    with pytest.raises(SettingError, match="^RANK=1: a number below WORLD_SIZE=1 is needed"):
        launched({"RANK": "1", "WORLD_SIZE": "1", "MASTER_PORT": "29500"})
