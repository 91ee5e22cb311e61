"""What the tests of operations share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from metalearn.core.native import kernels_for, without_kernels
from metalearn.core.ops import normalization


@pytest.fixture(params=["kernels", "torch"])
def both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A test by the compiled passes, for few channels too, and one by operations of torch."""
    if request.param == "torch":
        with without_kernels():
            yield request.param
        return
    if kernels_for(torch.zeros(1)) is None:
        pytest.skip("no kernels can be compiled here: Linux with g++ or clang++ is needed")
    monkeypatch.setattr(normalization, "_NARROW", 1)
    yield request.param
