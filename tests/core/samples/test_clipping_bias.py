"""How far a mean of clipped gradients is from the plain one.

Axes: N samples.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from metalearn.core import clipping_bias


def pulled(params: Any, batch: Tensor) -> Tensor:
    """The gradient of sample i is row i of the batch."""
    return (batch * params["w"]).sum(-1).mean()


PARAMS = {"w": torch.zeros(2, dtype=torch.float64)}


def test_it_is_the_angle_of_a_closed_form() -> None:
    rows = torch.tensor([[4.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    found = clipping_bias(pulled, PARAMS, rows, max_norm=1.0)  # (½, ½) in the place of (2, ½)

    assert float(found.cosine) == pytest.approx((1 + 0.25) / math.sqrt(0.5 * 4.25), rel=1e-12)
    assert float(found.norm_ratio) == pytest.approx(math.sqrt(0.5 / 4.25), rel=1e-12)
    assert float(found.clipped_fraction) == 0.5


@pytest.mark.parametrize("clipping", ["flat", "automatic"])
def test_gradients_of_one_length_are_shortened_and_not_turned(clipping: Any) -> None:
    angles = torch.linspace(0, 2, 7, dtype=torch.float64)
    rows = 3 * torch.stack([angles.cos(), angles.sin()], dim=1)
    found = clipping_bias(pulled, PARAMS, rows, max_norm=0.3, clipping=clipping)
    assert float(found.cosine) == pytest.approx(1.0, abs=1e-12)
    wanted = 0.1 if clipping == "flat" else 0.3 / 3.01
    assert float(found.norm_ratio) == pytest.approx(wanted, rel=1e-12)


def test_without_clipping_there_is_no_bias_and_without_a_gradient_no_angle() -> None:
    rows = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = clipping_bias(pulled, PARAMS, rows, max_norm=100.0)
    assert float(found.cosine) == pytest.approx(1.0) and float(found.norm_ratio) == 1.0
    assert float(found.clipped_fraction) == 0.0
    assert math.isnan(float(clipping_bias(pulled, PARAMS, 0 * rows, max_norm=1.0).cosine))


@pytest.mark.parametrize("method", ["layers", "vmap", "loop"])
def test_ways_and_chunks_agree(method: Any) -> None:
    rows = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    whole = clipping_bias(pulled, PARAMS, rows, max_norm=0.5)
    part = clipping_bias(pulled, PARAMS, rows, max_norm=0.5, method=method, chunk_size=4)
    torch.testing.assert_close(tuple(whole), tuple(part), rtol=1e-12, atol=0)
    assert 0 < float(whole.cosine) < 1
