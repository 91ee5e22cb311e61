"""Gradients clipped sample by sample against a plain backward pass, opacus, BackPACK and vmap.

Everybody clips to the same bound and gives the mean; times are of the process, contestants in turn.
Axes: N samples of a batch.
"""

from __future__ import annotations

import importlib.util
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from metalearn.benchmarks.clipped_networks import CLIPPED_NETWORKS
from metalearn.core import clipped_gradient, functionalize
from metalearn.core.memory import keep_freed_memory, peak_memory

__all__ = [
    "CLIPPED_WAYS",
    "ClippedTiming",
    "Gradients",
    "Run",
    "clipped_mean",
    "clipped_race",
    "clipped_table",
    "distance",
    "interleaved",
    "looped_gradients",
    "our_gradient",
    "plain_gradient",
    "prepared_ways",
]

Gradients = dict[str, Tensor]
Run = Callable[[], Gradients]
Made = TypeVar("Made")


@dataclass(frozen=True)
class ClippedTiming:
    """One way to a clipped gradient of one network."""

    way: str
    milliseconds: float
    """Median over rounds, of the process's time."""
    plain: float
    """Median over rounds of time ÷ that of the plain gradient of the batch."""
    memory: int
    """Peak bytes of tensors in a step."""
    error: float
    """‖g − g'‖ / ‖g'‖, g' by a loop of backward passes; of the plain gradient, nothing."""


def clipped_race(name: str, *, rounds: int, samples: int | None = None) -> list[ClippedTiming]:
    """Time every way in turn, round by round.

    Args:
        name: key of `CLIPPED_NETWORKS`.
        rounds: how often each runs, after one round that does not count.
        samples: N, in the place of the network's own.
    """
    made, formed, bound = prepared_ways(name, CLIPPED_WAYS, samples)
    exact = clipped_mean(formed, bound)
    runs = {way: run for way, run in made.items() if run is not None}
    seconds, found = interleaved(runs, rounds)
    return [
        ClippedTiming(
            way,
            1e3 * statistics.median(spent),
            statistics.median(a / b for a, b in zip(spent, seconds[_PLAIN])),
            peak_memory(runs[way], torch.device("cpu")),
            float("nan") if way == _PLAIN else distance(found[way], exact),
        )
        for way, spent in seconds.items()
    ]


def prepared_ways(
    name: str, ways: Mapping[str, Callable[..., Made]], samples: int | None
) -> tuple[dict[str, Made], Gradients, float]:
    """Ways to one network's gradient, each on a copy; what is clipped, and to which norm.

    Args:
        name: key of `CLIPPED_NETWORKS`.
        ways: each makes a run of a network, inputs, targets and a bound.
        samples: N, in the place of the network's own.

    Returns:
        Runs by way, the gradient of each sample by a loop, and the median of their norms.
    """
    keep_freed_memory()
    network = CLIPPED_NETWORKS[name]
    problem = network.problem(network.samples if samples is None else samples)
    formed = looped_gradients(*problem)
    bound = float(torch.cat([g.flatten(1) for g in formed.values()], 1).norm(dim=1).median())
    made = {way: make(*network.copied(problem), bound) for way, make in ways.items()}
    return made, formed, bound


def interleaved(
    runs: Mapping[str, Run], rounds: int
) -> tuple[dict[str, list[float]], dict[str, Gradients]]:
    """Seconds of the process of each, by round, the first of which does not count; and results."""
    seconds: dict[str, list[float]] = {way: [] for way in runs}
    found: dict[str, Gradients] = {}
    for _ in range(rounds + 1):
        for way, run in runs.items():
            start = time.process_time()
            found[way] = run()
            seconds[way].append(time.process_time() - start)
    return {way: spent[1:] for way, spent in seconds.items()}, found


def clipped_table(results: Mapping[str, Sequence[ClippedTiming]]) -> str:
    """Markdown: a row for each way; time ÷ that of the plain gradient, and megabytes."""
    titles = [CLIPPED_NETWORKS[name].title for name in results]
    lines = ["| ÷ plain gradient, peak MB | " + " | ".join(titles) + " |"]
    lines.append("| --- " * (len(titles) + 1) + "|")
    for way in dict.fromkeys(t.way for timings in results.values() for t in timings):
        cells = []
        for timings in results.values():
            found = [_cell(t) for t in timings if t.way == way]
            cells.append(found[0] if found else "")
        lines.append(f"| {way} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plain_gradient(module: nn.Module, x: Tensor, y: Tensor, bound: float) -> Run:
    """A step of everybody's: the gradient of the mean loss, which clips nothing."""

    def run() -> Gradients:
        module.zero_grad()
        torch.autograd.backward(F.cross_entropy(module(x), y))
        return _grads_of(module)

    return run


def our_gradient(module: nn.Module, x: Tensor, y: Tensor, bound: float, **settings: Any) -> Run:
    """`clipped_gradient`, with further settings of it."""
    apply, params, buffers = functionalize(module)

    def loss(params: Gradients, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(apply(params, buffers, batch[0]), batch[1])

    def run() -> Gradients:
        grads: Gradients = clipped_gradient(loss, params, (x, y), max_norm=bound, **settings).grads
        return grads

    return run


def looped_gradients(module: nn.Module, x: Tensor, y: Tensor) -> Gradients:
    """Gradients of single samples ``[N, ...]``, one backward pass after another."""
    names = [name for name, _ in module.named_parameters()]
    rows = []
    for i in range(len(x)):
        loss = F.cross_entropy(module(x[i : i + 1]), y[i : i + 1])
        rows.append(torch.autograd.grad(loss, list(module.parameters())))
    return {name: torch.stack(column) for name, column in zip(names, zip(*rows))}


def clipped_mean(grads: Mapping[str, Tensor], bound: float) -> Gradients:
    """The mean of gradients ``[N, ...]`` clipped to a bound."""
    norms = torch.stack([g.flatten(1).norm(dim=1) for g in grads.values()]).norm(dim=0)
    factors = (bound / norms).clamp(max=1) / len(norms)
    return {name: torch.tensordot(factors, g, 1) for name, g in grads.items()}


def distance(found: Gradients, exact: Gradients) -> float:
    """‖g − g'‖ / ‖g'‖, all parameters together."""
    gap = torch.cat([(found[n] - g).flatten() for n, g in exact.items()]).norm()
    return float(gap / torch.cat([g.flatten() for g in exact.values()]).norm())


def _cell(timing: ClippedTiming) -> str:
    plain = timing.way == _PLAIN
    time = f"{timing.milliseconds:.1f} ms" if plain else f"{timing.plain:.2f}"
    return f"{time}, {timing.memory / 1e6:.0f} MB"


_PLAIN = "plain gradient"


def _vmapped(module: nn.Module, x: Tensor, y: Tensor, bound: float) -> Run:
    params = {name: p.detach() for name, p in module.named_parameters()}

    def one(params: Gradients, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(module, params, (x[None],)), y[None])

    def run() -> Gradients:
        with sdpa_kernel(SDPBackend.MATH):  # the one that vmap knows
            return clipped_mean(vmap(grad(one), in_dims=(None, 0, 0))(params, x, y), bound)

    return run


def _opacus(module: nn.Module, x: Tensor, y: Tensor, bound: float) -> Run:
    from opacus.grad_sample import GradSampleModule

    wrapped: Any = _quietly(lambda: GradSampleModule(module))

    def run() -> Gradients:
        wrapped.zero_grad()
        for p in module.parameters():
            p.grad_sample = None  # type: ignore[attr-defined]
        _quietly(lambda: torch.autograd.backward(F.cross_entropy(wrapped(x), y)))
        formed = {n: p.grad_sample for n, p in module.named_parameters()}  # type: ignore[attr-defined]
        return clipped_mean(formed, bound)

    return run


def _two_passes(ghost: bool) -> Callable[[nn.Module, Tensor, Tensor, float], Run]:
    """Of opacus: norms in one backward pass, the weighted loss in a second."""

    def make(module: nn.Module, x: Tensor, y: Tensor, bound: float) -> Run:
        from opacus.grad_sample import GradSampleModuleFastGradientClipping

        wrapped: Any = _quietly(
            lambda: GradSampleModuleFastGradientClipping(
                module, max_grad_norm=bound, use_ghost_clipping=ghost, loss_reduction="mean"
            )
        )

        def passes() -> None:
            wrapped.enable_hooks()
            wrapped.zero_grad()
            losses = F.cross_entropy(wrapped(x), y, reduction="none")
            torch.autograd.backward(losses.mean(), retain_graph=True)
            factors = wrapped.get_clipping_coef()
            wrapped.zero_grad()
            wrapped.disable_hooks()
            torch.autograd.backward((factors * losses).mean())

        def run() -> Gradients:
            for p in module.parameters():
                p.grad_sample = p._norm_sample = None  # type: ignore[attr-defined]
            _quietly(passes)
            return _grads_of(module)

        return run

    return make


def _backpack(module: nn.Module, x: Tensor, y: Tensor, bound: float) -> Run | None:
    from backpack import backpack, extend
    from backpack.extensions import BatchGrad

    if not all(isinstance(layer, _OF_BACKPACK) for layer in module.modules()):
        return None
    extended, criterion = extend(module), extend(nn.CrossEntropyLoss())

    def run() -> Gradients:
        extended.zero_grad()
        with backpack(BatchGrad()):
            _quietly(lambda: torch.autograd.backward(criterion(extended(x), y)))
        # BackPACK gives shares of the mean
        shares = {n: getattr(p, "grad_batch") for n, p in module.named_parameters()}  # noqa: B009
        return clipped_mean({n: g * len(x) for n, g in shares.items()}, bound)

    return run


def _grads_of(module: nn.Module) -> Gradients:
    return {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}


def _quietly(function: Callable[[], Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function()


_OF_BACKPACK = (nn.Sequential, nn.Linear, nn.Conv2d, nn.ReLU, nn.MaxPool2d, nn.Flatten)

CLIPPED_WAYS: dict[str, Callable[[nn.Module, Tensor, Tensor, float], Run | None]] = {
    _PLAIN: plain_gradient,
    "ours": our_gradient,
    "vmap(grad) and clip": _vmapped,
}
"""By name; each is given a network, inputs, targets and the bound, and gives None if it can't."""
if importlib.util.find_spec("opacus") is not None:
    CLIPPED_WAYS |= {
        "opacus, materialised": _opacus,
        "opacus, ghost": _two_passes(ghost=True),
        "opacus, fast": _two_passes(ghost=False),
    }
if importlib.util.find_spec("backpack") is not None:
    CLIPPED_WAYS["BackPACK"] = _backpack
