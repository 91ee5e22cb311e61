"""Kronecker factors wherever a module keeps its samples, however it calls its layers.

Axes: N samples, S positions.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.core import fisher_kfac, fisher_trace, functionalize
from metalearn.core.tree import ravel
from metalearn.errors import SettingError
from tests.support.oracles import draw, generator

LAYOUTS = (
    "batch", "sequence first", "flattened", "keyword", "function", "kept and changed",
    "one by one", "heads",
)  # fmt: skip


class Sequence(nn.Module):
    """One function of ``[N, S, 4]``, its layer called in different ways."""

    def __init__(self, layout: str) -> None:
        super().__init__()
        self.layer, self.head, self.layout = nn.Linear(4, 3), nn.Linear(3, 3), layout

    def forward(self, x: Tensor) -> Tensor:
        n, s, _ = x.shape
        if self.layout == "sequence first":
            h = self.layer(x.transpose(0, 1)).transpose(0, 1)
        elif self.layout == "flattened":
            h = self.layer(x.reshape(n * s, -1)).view(n, s, -1)
        elif self.layout == "keyword":
            h = self.layer(input=x)
        elif self.layout == "function":
            h = F.linear(x, bias=self.layer.bias, weight=self.layer.weight)
        elif self.layout == "kept and changed":
            given = 1 * x
            h = self.layer(given)
            given.mul_(0)
        elif self.layout == "one by one":
            h = self.layer(x.flatten(0, 1).unsqueeze(1)).squeeze(1).unflatten(0, (n, s))
        elif self.layout == "heads":
            h = self.layer(x.permute(1, 0, 2)[:, :, None]).squeeze(2).permute(1, 0, 2)
        else:
            h = self.layer(x)
        return self.head(h.tanh().sum(1))


def of_layout(layout: str) -> nn.Module:
    return draw(Sequence(layout))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("samples", [5, 7])
@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("corrected", [False, True])
def test_factors_do_not_depend_on_where_samples_are(
    layout: str, samples: int, sharing: Any, corrected: bool
) -> None:
    x = torch.randn(samples, 5, 4, generator=generator(1), dtype=torch.float64)
    plain, module = of_layout("batch"), of_layout(layout)
    module.load_state_dict(plain.state_dict())
    apply, params, buffers = functionalize(plain)
    kind: dict[str, Any] = {"likelihood": "categorical", "kind": "exact"}
    given: dict[str, Any] = {**kind, "sharing": sharing, "corrected": corrected}
    wanted = fisher_kfac(plain, params, (x, None), **given).dense(params)
    found = fisher_kfac(module, params, (x, None), **given, chunk_size=3).dense(params)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
    if corrected:
        exact = fisher_trace(lambda p, z: apply(p, buffers, z), params, (x, None), **kind)
        torch.testing.assert_close(found.trace(), exact)


class Pictures(nn.Module):
    """A convolution of patches, which stand where samples do, and a linear head."""

    def __init__(self, padding: Any) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 2, 2, padding=padding), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        patches = x.unfold(2, 3, 3).unfold(3, 3, 3).flatten(1, 3).flatten(0, 1)[:, None]
        return self.head(self.conv(patches).tanh().mean((2, 3)).view(len(x), -1, 2).sum(1))


@pytest.mark.parametrize("padding", ["valid", "same", 1])
def test_patches_folded_into_the_samples(padding: Any) -> None:
    module = draw(Pictures(padding))
    apply, params, buffers = functionalize(module)
    x = torch.randn(4, 1, 6, 6, generator=generator(2), dtype=torch.float64)
    kind: dict[str, Any] = {"likelihood": "gaussian", "kind": "exact"}
    found = fisher_kfac(module, params, (x, None), corrected=True, **kind).trace()
    exact = fisher_trace(lambda p, z: apply(p, buffers, z), params, (x, None), **kind)
    torch.testing.assert_close(found, exact)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    module = of_layout("batch")
    _, params, _ = functionalize(module)
    x = torch.randn(6, 5, 4, generator=generator(3), dtype=torch.float64)
    kind: dict[str, Any] = {"likelihood": "categorical", "kind": "exact"}
    wanted = fisher_kfac(module, params, (x, None), **kind)
    rounded = {n: v.to(dtype) for n, v in params.items()}
    found = fisher_kfac(module.to(dtype), rounded, (x.to(dtype), None), **kind)
    assert all(part.dtype == torch.float32 for block in found.blocks.values() for part in block)
    torch.testing.assert_close(found.trace().double(), wanted.trace(), rtol=0.03, atol=0)
    pulled = found.inverse_product(rounded, damping=0.1)
    assert all(value.dtype == dtype for value in pulled.values())
    exact, close = (
        ravel(f.inverse_product(p, damping=0.1))[0].double()
        for f, p in ((wanted, params), (found, rounded))
    )
    assert float((close - exact).norm() / exact.norm()) < 0.05


class Odd(nn.Module):
    """A weight that is called in ways without factors."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.layer, self.spare, self.how = nn.Linear(3, 3), nn.Linear(3, 3), how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "bare":
            return F.linear(self.spare(x), self.layer.weight)
        if self.how == "other bias":
            return F.linear(x, self.layer.weight, self.spare.bias) + self.spare(x)
        if self.how == "embedding":
            return self.spare(F.embedding(x[:, 0].long().clamp(0, 2), self.layer.weight))
        if self.how == "without gradients":
            with torch.no_grad():
                y = self.layer(x)
            return self.spare(y)
        return F.linear(self.layer(x), self.layer.weight, self.layer.bias) + self.spare(x)


@pytest.mark.parametrize(
    ("how", "got"),
    [
        ("bare", "called without its bias"),
        ("other bias", "called with spare.bias"),
        ("function again", "called twice"),
        ("embedding", "called as an embedding"),
    ],
)
def test_a_weight_that_is_no_layers_own_is_refused(how: str, got: str) -> None:
    module = draw(Odd(how))
    _, params, _ = functionalize(module)
    x = torch.randn(4, 3, generator=generator(4), dtype=torch.float64)
    needed = "a layer that is used once is needed, with its own weight and bias"
    if how == "embedding":
        needed = "only matrix products and convolutions have Kronecker factors"
    with pytest.raises(SettingError, match=rf"module\[layer\]='{got}': {needed}"):
        fisher_kfac(module, params, (x, None), likelihood="gaussian", kind="exact")


def test_a_layer_without_gradients_counts_as_never_called() -> None:
    module = draw(Odd("without gradients"))
    _, params, _ = functionalize(module)
    x = torch.randn(4, 3, generator=generator(4), dtype=torch.float64)
    with pytest.raises(SettingError, match=r"module\[layer\]='never called': freeze what"):
        fisher_kfac(module, params, (x, None), likelihood="gaussian", kind="exact")
