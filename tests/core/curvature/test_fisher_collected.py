"""Trace and diagonal without gradients of samples, against those of the whole matrix.

Axes: M members.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metalearn.core import fisher_diagonal, fisher_matrix, fisher_trace, functionalize
from metalearn.core.memory import peak_memory
from metalearn.core.tree import ravel
from tests.support.oracles import draw, generator
from tests.support.sample_oracles import Tied, noise


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 3, dropout=0.0, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).mean(1)


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.Tanh(), nn.Conv2d(4, 4, 2, groups=2),
        nn.ConvTranspose2d(4, 2, 2, stride=2), nn.Flatten(), nn.Linear(32, 3),
    )  # fmt: skip


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "perceptron": (lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)), noise(5, 3)),
    "convolutions": (convolutions, noise(3, 1, 5, 5)),
    "attention": (Attending, noise(3, 2, 4)),
    "tied": (Tied, torch.tensor([[0, 1, 6], [2, 2, 2], [5, 4, 3]])),
}
KINDS = {"exact": {}, "empirical": {}, "monte_carlo": {"samples": 2}}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NETWORKS)
def test_trace_and_diagonal_are_those_of_the_matrix(name: str, kind: Any) -> None:
    make, x = NETWORKS[name]
    apply, params, buffers = functionalize(draw(make().double()))
    outputs_fn = lambda p, x: apply(p, buffers, x)  # noqa: E731
    batch = (x, torch.arange(len(x)) % 3)

    def given() -> dict[str, Any]:
        drawn = {"generator": generator(1)} if kind == "monte_carlo" else {}
        return {"likelihood": "categorical", "kind": kind, **KINDS[kind], **drawn}

    matrix = fisher_matrix(outputs_fn, params, batch, **given())
    for chunk_size in (None, 2):
        found = fisher_diagonal(outputs_fn, params, batch, chunk_size=chunk_size, **given())
        torch.testing.assert_close(ravel(found)[0], matrix.diagonal(), rtol=1e-10, atol=1e-13)
        trace = fisher_trace(outputs_fn, params, batch, chunk_size=chunk_size, **given())
        torch.testing.assert_close(trace, matrix.trace(), rtol=1e-10, atol=0)


@pytest.mark.parametrize("name", NETWORKS)
def test_members_and_a_derivative(name: str) -> None:
    make, x = NETWORKS[name]
    apply, params, buffers = functionalize(draw(make().double()))
    rule: Any = {"likelihood": "gaussian", "kind": "exact"}

    def both(params: Any) -> tuple[Tensor, Any]:
        outputs_fn = lambda p, x: apply(p, buffers, x)  # noqa: E731
        batch = (x, None)
        trace = fisher_trace(outputs_fn, params, batch, **rule)
        return trace, fisher_diagonal(outputs_fn, params, batch, **rule)

    sets = {n: torch.stack([p, p.sin()]) for n, p in params.items()}
    traces, diagonals = torch.func.vmap(both)(sets)
    for m in range(2):
        trace, diagonal = both({n: p[m] for n, p in sets.items()})
        torch.testing.assert_close(traces[m], trace)
        torch.testing.assert_close({n: d[m] for n, d in diagonals.items()}, diagonal)
    ends = [both({n: p + h * p.cos() for n, p in params.items()})[0] for h in (1e-6, -1e-6)]
    found = torch.func.grad(lambda p: both(p)[0])(params)
    slope = sum((params[n].cos() * g).sum() for n, g in found.items())
    torch.testing.assert_close(slope, (ends[0] - ends[1]) / 2e-6, rtol=1e-5, atol=1e-7)


def test_no_gradient_of_a_sample_is_held() -> None:
    """64 samples of three columns would hold 192 gradients."""
    apply, params, buffers = functionalize(
        draw(nn.Sequential(nn.Linear(300, 100), nn.Linear(100, 3)))
    )
    size = sum(p.numel() * 8 for p in params.values())
    batch = (noise(64, 300), None)

    def take() -> Any:
        rule: Any = {"likelihood": "categorical", "kind": "exact"}
        return fisher_trace(lambda p, x: apply(p, buffers, x), params, batch, **rule)

    assert peak_memory(take, torch.device("cpu")) < 10 * size
