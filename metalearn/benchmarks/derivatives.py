"""Jacobians, Hessians and Hessian products against row-by-row autograd and torch.func."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from metalearn.core import compiled, hessian, hvp, jacobian, jacobian_mode
from metalearn.core.autodiff.products import hessian_product

__all__ = ["DerivativeTiming", "derivative_race", "derivative_table"]

_LAYERS = ((16, 16), (2048, 32), (32, 2048))  # inputs, outputs


@dataclass(frozen=True)
class DerivativeTiming:
    """One way to one derivative."""

    what: str
    way: str
    milliseconds: float
    """Median over rounds."""
    ratio: float
    """Median over rounds of the slow way's time ÷ this one's."""
    error: float
    """Relative, against the slow way."""


def derivative_race(*, rounds: int) -> list[DerivativeTiming]:
    """Time all ways to each derivative in turn; the first way is the slow one."""
    found = []
    for inputs, outputs in _LAYERS:
        f, x = _layer(inputs, outputs)
        mode = jacobian_mode(f, (x,))
        found += _race(
            f"Jacobian {outputs}×{inputs}",
            {
                "rows by autograd": partial(_rows, f, x),
                "torch.func.jacrev": partial(torch.func.jacrev(f), x),
                "torch.func.jacfwd": partial(torch.func.jacfwd(f), x),
                f"jacobian (chose {mode})": partial(jacobian(f), x),
            },
            rounds,
        )
    layer, x = _layer(512, 32)

    def energy(x: Tensor) -> Tensor:
        return layer(x).square().sum()

    v = torch.randn(512, generator=torch.Generator().manual_seed(2))
    found += _race(
        "Hessian 512×512",
        {
            "rows by autograd": partial(_rows, partial(_slope, energy), x),
            "torch.func.hessian": partial(torch.func.hessian(energy), x),
            "hessian": partial(hessian(energy), x),
        },
        rounds,
    )
    found += _race(
        "Hessian product, 512",
        {
            "twice by autograd": partial(_double, energy, x, v),
            "hvp, reverse over reverse": partial(hvp, energy, x, v),
            "compiled(hvp)": partial(compiled(lambda x, v: hvp(energy, x, v)), x, v),
            "hvp, forward over reverse": partial(
                hessian_product, energy, x, v, "forward_over_reverse", tested=True
            ),
        },
        rounds,
    )
    return found


def derivative_table(timings: Sequence[DerivativeTiming]) -> str:
    """Markdown: a row for each way."""
    lines = ["| | | ms | faster by | error |", "| --- | --- | --- | --- | --- |"]
    for t in timings:
        lines.append(
            f"| {t.what} | {t.way} | {t.milliseconds:.3g} | {t.ratio:.3g} | {t.error:.0e} |"
        )
    return "\n".join(lines)


def _layer(inputs: int, outputs: int) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    source = torch.Generator().manual_seed(0)
    weight = torch.randn(outputs, inputs, generator=source) / inputs**0.5
    return lambda x: torch.tanh(weight @ x), torch.randn(inputs, generator=source)


def _race(what: str, runs: dict[str, Callable[[], Tensor]], rounds: int) -> list[DerivativeTiming]:
    seconds: dict[str, list[float]] = {way: [] for way in runs}
    results: dict[str, Tensor] = {}
    for _ in range(rounds + 1):
        for way, run in runs.items():
            start = time.perf_counter()
            results[way] = run()
            seconds[way].append(time.perf_counter() - start)
    slow = next(iter(runs))
    return [
        DerivativeTiming(
            what,
            way,
            1e3 * statistics.median(spent[1:]),
            statistics.median(a / b for a, b in zip(seconds[slow][1:], spent[1:])),
            float((results[way] - results[slow]).norm() / results[slow].norm()),
        )
        for way, spent in seconds.items()
    ]


def _rows(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The Jacobian, one backward pass for each output."""
    x = x.clone().requires_grad_()
    y = f(x)
    rows = [torch.autograd.grad(value, x, retain_graph=True)[0] for value in y.flatten()]
    return torch.stack(rows)


def _slope(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return torch.autograd.grad(f(x), x, create_graph=True)[0]


def _double(f: Callable[[Tensor], Tensor], x: Tensor, v: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(_slope(f, x), x, v)[0]
