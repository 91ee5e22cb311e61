"""Torch's list of operations through our derivatives: right, or refused with the way out named."""

from __future__ import annotations

import pytest

pytest.importorskip("expecttest")  # which torch's lists want
from tests.contracts.operations import cases, op_db, table, verdicts

EVERY = 29  # of the list in an ordinary run
PARTS = 20  # of the whole list


def check(start: int, step: int) -> None:
    found = [verdict for case in cases(start, step) for verdict in verdicts(case)]
    assert found
    bad = [v for v in found if v.kind in ("raw", "wrong")]
    assert not bad, "\n".join([table(found), *(f"{v.entry}, {v.case}: {v.why}" for v in bad)])
    assert sum(v.kind == "right" for v in found) > 0.5 * len(found)


def test_a_sample_of_the_list() -> None:
    check(7, EVERY)


NAMED = (
    "cdist", "nn.functional.pdist", "nn.functional.grid_sample", "scatter_reduce",
    "linalg.cholesky", "logcumsumexp", "nn.functional.hardsigmoid", "nn.functional.embedding",
    "nn.functional.huber_loss", "masked_select", "tensor_split",
    "nn.functional.max_unpool1d", "nn.functional.layer_norm",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMED)
def test_operations_that_torch_has_wrong_or_not_at_all_in_some_mode(name: str) -> None:
    numbers = [i for i, info in enumerate(op_db) if info.name == name]
    assert numbers
    for number in numbers:
        check(number, len(op_db))


@pytest.mark.campaign
@pytest.mark.parametrize("part", range(PARTS))
def test_the_whole_list(part: int) -> None:
    check(part, PARTS)
