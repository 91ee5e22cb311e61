"""Per-sample gradients against plain torch.func, a loop, opacus and BackPACK.

Axes: N samples of a batch.
"""

from __future__ import annotations

import importlib.util
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from metalearn.benchmarks.clipped_networks import mnist_network
from metalearn.core import clipped_gradient, functionalize, per_sample_gradients, per_sample_norms
from metalearn.core.memory import peak_memory
from metalearn.models import Conv4

__all__ = [
    "SAMPLE_WORKLOADS",
    "SampleTiming",
    "ghost_memory",
    "memory_table",
    "sample_race",
    "sample_table",
]

Run = Callable[[], object]


@dataclass(frozen=True)
class SampleWorkload:
    """A network and a batch of noise."""

    title: str
    make: Callable[[], nn.Module]
    input_shape: tuple[int, ...]
    samples: int

    def problem(self) -> tuple[nn.Module, Tensor, Tensor]:
        """Network, inputs, targets; the same at every call."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            module = self.make()
        source = torch.Generator().manual_seed(0)
        x = torch.randn(self.samples, *self.input_shape, generator=source)
        return module, x, torch.arange(self.samples) % 10


def _mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
    )


def _conv4() -> nn.Module:
    layers: list[nn.Module] = []
    for block in Conv4((1, 28, 28), 10, pool="flatten").blocks:
        convolution, _, relu = block.children()
        layers += [convolution, relu]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(256, 10))


SAMPLE_WORKLOADS: dict[str, SampleWorkload] = {
    "mlp": SampleWorkload("MLP 64-128-128-10, batch 256", _mlp, (64,), 256),
    "mnist": SampleWorkload("opacus' MNIST network, batch 64", mnist_network, (1, 28, 28), 64),
    "conv4": SampleWorkload("conv4 without norms, batch 64", _conv4, (1, 28, 28), 64),
}


@dataclass(frozen=True)
class SampleTiming:
    """One way to per-sample gradients (or norms) on one workload."""

    way: str
    milliseconds: float
    """Median over rounds."""
    plain: float
    """Median over rounds of time ÷ that of the plain gradient of the batch."""
    error: float
    """Largest relative error of a leaf against a loop of backward passes; NaN for norms."""


def sample_race(name: str, *, rounds: int) -> list[SampleTiming]:
    """Time every way in turn, round by round."""
    workload = SAMPLE_WORKLOADS[name]
    runs = _runs(workload)
    seconds: dict[str, list[float]] = {way: [] for way in runs}
    found: dict[str, object] = {}
    for _ in range(rounds + 1):
        for way, run in runs.items():
            start = time.perf_counter()
            found[way] = run()
            seconds[way].append(time.perf_counter() - start)
    plain = seconds["batch gradient"][1:]
    return [
        SampleTiming(
            way,
            1e3 * statistics.median(spent[1:]),
            statistics.median(a / b for a, b in zip(spent[1:], plain)),
            _error(found[way], found["loop"]),
        )
        for way, spent in seconds.items()
    ]


def sample_table(results: Mapping[str, Sequence[SampleTiming]]) -> str:
    """Markdown: a row for each way, a column of milliseconds for each workload."""
    ways = list(dict.fromkeys(t.way for timings in results.values() for t in timings))
    titles = [SAMPLE_WORKLOADS[name].title for name in results]
    lines = ["| ms (÷ batch gradient) | " + " | ".join(titles) + " |"]
    lines.append("| --- " * (len(titles) + 1) + "|")
    for way in ways:
        cells = []
        for timings in results.values():
            (t,) = [t for t in timings if t.way == way]
            cells.append(f"{t.milliseconds:.1f} ({t.plain:.2f})")
        lines.append(f"| {way} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def ghost_memory(name: str, samples: Sequence[int]) -> dict[int, dict[str, int]]:
    """Peak bytes of tensors by batch size: a plain step, norms, a clipped gradient, gradients."""
    return {count: _peaks(SAMPLE_WORKLOADS[name], count) for count in samples}


def memory_table(peaks: Mapping[str, Mapping[int, Mapping[str, int]]]) -> str:
    """Markdown: peak MB of a plain step, and of the others ÷ that, by batch size."""
    ways = list(next(iter(next(iter(peaks.values())).values())))
    plain, *others = ways
    lines = [f"| | N | {plain}, MB | " + " | ".join(f"{way} ÷" for way in others) + " |"]
    lines.append("| --- " * (len(ways) + 2) + "|")
    for name, points in peaks.items():
        for count, found in points.items():
            ratios = " | ".join(f"{found[way] / found[plain]:.2f}" for way in others)
            title = SAMPLE_WORKLOADS[name].title.partition(",")[0]
            lines.append(f"| {title} | {count} | {found[plain] / 1e6:.1f} | {ratios} |")
    return "\n".join(lines)


def _peaks(workload: SampleWorkload, count: int) -> dict[str, int]:
    module, x, y = replace(workload, samples=count).problem()
    loss, params = _loss(module)
    leaves = {n: p.clone().requires_grad_() for n, p in params.items()}
    runs: dict[str, Run] = {
        "batch gradient": lambda: torch.autograd.grad(loss(leaves, (x, y)), list(leaves.values())),
        "norms": lambda: per_sample_norms(loss, params, (x, y)),
        "clipped gradient": lambda: clipped_gradient(loss, params, (x, y), max_norm=1.0),
        "gradients": lambda: per_sample_gradients(loss, params, (x, y)),
    }
    return {way: peak_memory(run, torch.device("cpu")) for way, run in runs.items()}


def _runs(workload: SampleWorkload) -> dict[str, Run]:
    module, x, y = workload.problem()
    loss, params = _loss(module)
    names = list(params)

    def plain() -> object:
        module.zero_grad()
        torch.autograd.backward(F.cross_entropy(module(x), y))
        return [p.grad for p in module.parameters()]

    def loop() -> dict[str, Tensor]:
        rows = []
        for i in range(len(x)):
            module.zero_grad()
            torch.autograd.backward(F.cross_entropy(module(x[i : i + 1]), y[i : i + 1]))
            rows.append([p.grad.clone() for p in module.parameters() if p.grad is not None])
        return {n: torch.stack(column) for n, column in zip(names, zip(*rows))}

    def one(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(module, params, (x[None],)), y[None])

    start = {n: p.detach() for n, p in module.named_parameters()}
    runs: dict[str, Run] = {
        "batch gradient": plain,
        "vmap(grad)": lambda: vmap(grad(one), in_dims=(None, 0, 0))(start, x, y),
        "loop": loop,
        "ours": lambda: per_sample_gradients(loss, params, (x, y)),
        "ours, norms alone": lambda: per_sample_norms(loss, params, (x, y)),
        "ours, clipped": lambda: clipped_gradient(loss, params, (x, y), max_norm=1.0),
    }
    if importlib.util.find_spec("opacus") is not None:
        runs["opacus"] = _opacus(workload)
    if importlib.util.find_spec("backpack") is not None:
        runs["BackPACK"] = _backpack(workload)
    return runs


def _opacus(workload: SampleWorkload) -> Run:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from opacus.grad_sample import GradSampleModule

        module, x, y = workload.problem()
        wrapped = GradSampleModule(module)

    def run() -> dict[str, Tensor]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wrapped.zero_grad()
            for p in wrapped.parameters():
                p.grad_sample = None
            torch.autograd.backward(F.cross_entropy(wrapped(x), y))
        return {n.removeprefix("_module."): p.grad_sample for n, p in wrapped.named_parameters()}

    return run


def _backpack(workload: SampleWorkload) -> Run:
    from backpack import backpack, extend
    from backpack.extensions import BatchGrad

    module, x, y = workload.problem()
    extended, criterion = extend(module), extend(nn.CrossEntropyLoss())

    def run() -> dict[str, Tensor]:
        extended.zero_grad()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with backpack(BatchGrad()):
                torch.autograd.backward(criterion(extended(x), y))
        # BackPACK gives shares of the mean
        return {n: p.grad_batch * len(x) for n, p in extended.named_parameters()}

    return run


def _loss(module: nn.Module) -> tuple[Callable[..., Tensor], dict[str, Tensor]]:
    apply, params, buffers = functionalize(module)

    def loss(params: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(apply(params, buffers, batch[0]), batch[1])

    return loss, params


def _error(found: object, exact: object) -> float:
    if not isinstance(found, dict) or not isinstance(exact, dict):
        return float("nan")
    gaps = [(found[n] - g).norm() / g.norm() for n, g in exact.items()]
    return float(torch.stack(gaps).max())
