"""Training steps of M stacked networks against a loop over the networks and the torch.func recipe.

Axes: M members, B samples of a batch.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from metalearn.benchmarks import peers
from metalearn.core import compiled
from metalearn.core.ensemble.stacking import MemberEngine, member_gradients, stack
from metalearn.core.memory import peak_memory
from metalearn.models import MLP, Conv4, Ensemble, Stack
from metalearn.tracking.style import BLUE, GREY, plain_axes
from metalearn.trainers.loop.flat_update import FlatUpdate
from metalearn.trainers.loop.step import like_layout
from metalearn.trainers.members.population import Population
from metalearn.trainers.members.update import MemberUpdate

__all__ = [
    "ENSEMBLES",
    "EnsembleTiming",
    "ensemble_figure",
    "ensemble_race",
    "ensemble_table",
]

_BATCH, _CLASSES, _RATE = 64, 10, 1e-3


@dataclass(frozen=True)
class Members:
    """Networks to be trained side by side."""

    title: str
    make: Callable[[int], nn.Module]
    input_shape: tuple[int, ...]
    sizes: tuple[int, ...]
    """M to be timed."""
    is_small: bool = False
    """Whether calls of operations take longer than their work, so that compiling pays."""


def _small_conv(seed: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(), nn.Flatten(), nn.Linear(32 * 4 * 4, _CLASSES),
    )  # fmt: skip


def _pooled_conv(seed: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32 * 7 * 7, _CLASSES),
    )  # fmt: skip


def _mlp(seed: int) -> nn.Module:
    return MLP((64,), _CLASSES, hidden=(64, 64), seed=seed)


def _conv4(seed: int) -> nn.Module:
    return Conv4((1, 28, 28), _CLASSES, filters=32, seed=seed)


ENSEMBLES: dict[str, Members] = {
    "mlp": Members("MLP 64-64-64-10", _mlp, (64,), (1, 4, 16, 64), True),
    "digits_conv": Members("two convolutions, 8×8 pictures", _small_conv, (1, 8, 8), (8,)),
    "conv4": Members("conv4 of 32 filters, batch norm, 28×28", _conv4, (1, 28, 28), (8,)),
    "pooled_conv": Members("two pooled convolutions, 28×28", _pooled_conv, (1, 28, 28), (8,)),
}


@dataclass(frozen=True)
class EnsembleTiming:
    """A training step (gradients and Adam) of M networks, batch of 64."""

    workload: str
    members: int
    loop: float
    """Milliseconds of one network after another in plain torch, median over rounds."""
    recipe: float
    """Of ``vmap(grad)`` over stacked parameters."""
    ours: Mapping[str, float]
    """Of our engines, by name; of ``compiled`` where the networks are small."""
    gain: float
    """Median over rounds of loop ÷ the fastest of these."""
    recipe_gain: float
    """The same of the recipe."""
    jax: float
    """Milliseconds of a step of ``jit(vmap(grad))`` with Adam; NaN where it took no part."""
    jax_ratio: float
    """Median over rounds of JAX ÷ the fastest of ours."""
    memory: int
    """Most bytes of tensors alive at once in a step of the stack that is not compiled."""


def ensemble_race(name: str, *, rounds: int) -> list[EnsembleTiming]:
    """Time a workload at all its sizes, the contestants in turn within each round."""
    return [_race(name, ENSEMBLES[name], count, rounds) for count in ENSEMBLES[name].sizes]


def _race(name: str, workload: Members, count: int, rounds: int) -> EnsembleTiming:
    x = torch.randn(_BATCH, *workload.input_shape, generator=torch.Generator().manual_seed(0))
    y = torch.arange(_BATCH) % _CLASSES
    runs = {
        "loop": _loop(workload, count, x, y),
        "recipe": _recipe(workload, count, x, y),
        "batched": _stacked(workload, count, x, y, "batched"),
        "looped": _stacked(workload, count, x, y, "loop"),
    }
    if workload.is_small:
        runs["compiled"] = _stacked(workload, count, x, y, "batched", compiles="gradient")
        runs["all compiled"] = _stacked(workload, count, x, y, "batched", compiles="step")
        if peers.installed("jax"):
            runs["jax"] = _jax(workload, count, x, y)
    seconds = _seconds(runs, rounds)
    median = {key: 1e3 * statistics.median(values) for key, values in seconds.items()}
    ways = "batched", "looped", "compiled", "all compiled"
    ours = {str(key): median[key] for key in ways if key in runs}
    chosen = min(ours, key=ours.__getitem__)

    def ratio(slow: str, fast: str) -> float:
        if slow not in runs:
            return math.nan
        return statistics.median(a / b for a, b in zip(seconds[slow], seconds[fast]))

    memory = peak_memory(runs["batched"], torch.device("cpu"))
    return EnsembleTiming(
        workload=name,
        members=count,
        loop=median["loop"],
        recipe=median["recipe"],
        ours=ours,
        gain=ratio("loop", chosen),
        recipe_gain=ratio("loop", "recipe"),
        jax=median.get("jax", math.nan),
        jax_ratio=ratio("jax", chosen),
        memory=memory,
    )


def _seconds(runs: Mapping[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Of each run in each round, the first of which does not count."""
    seconds: dict[str, list[float]] = {key: [] for key in runs}
    for _ in range(rounds + 1):
        for key, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[key].append(time.perf_counter() - start)
    return {key: values[1:] for key, values in seconds.items()}


def _loop(workload: Members, count: int, x: Tensor, y: Tensor) -> Callable[[], None]:
    networks = [workload.make(seed) for seed in range(count)]
    optimizers = [torch.optim.Adam(n.parameters(), lr=_RATE, fused=True) for n in networks]

    def run() -> None:
        for network, optimizer in zip(networks, optimizers):
            optimizer.zero_grad()
            torch.autograd.backward(F.cross_entropy(network(x), y))
            optimizer.step()

    return run


def _recipe(workload: Members, count: int, x: Tensor, y: Tensor) -> Callable[[], None]:
    """Model ensembling as torch.func's tutorial has it."""
    networks = [workload.make(seed) for seed in range(count)]
    base = networks[0]
    start: dict[str, Tensor] = stack([dict(network.named_parameters()) for network in networks])
    params = {key: nn.Parameter(value.detach()) for key, value in start.items()}
    optimizer = torch.optim.Adam(params.values(), lr=_RATE)

    def loss(row: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(functional_call(base, row, (x,)), y)

    def run() -> None:
        grads = vmap(grad(loss))({key: p.detach() for key, p in params.items()})
        for key, parameter in params.items():
            parameter.grad = grads[key]
        optimizer.step()

    return run


def _jax(workload: Members, count: int, x: Tensor, y: Tensor) -> Callable[[], None]:
    from metalearn.benchmarks.jax_ensembles import prepare

    return prepare([workload.make(seed) for seed in range(count)], x, y, lr=_RATE)[0]


def _stacked(
    workload: Members,
    count: int,
    x: Tensor,
    y: Tensor,
    engine: MemberEngine,
    *,
    compiles: Literal["nothing", "gradient", "step"] = "nothing",
) -> Callable[[], None]:
    ensemble = Ensemble.from_factory(workload.make, range(count))
    (members,) = ensemble.stacks
    assert isinstance(members, Stack)
    optimizer = torch.optim.Adam(members.parameters(), lr=_RATE, fused=True)

    def loss(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(members.call(params, {}, x), y)

    def gradients(params: dict[str, Tensor], x: Tensor, y: Tensor) -> dict[str, Tensor]:
        found = member_gradients(loss, params, x, y, in_dims=None, engine=engine)
        return dict(found.grads)

    take = gradients if compiles == "nothing" else compiled(gradients)
    params, _ = members.state()

    def run() -> None:
        grads = take(params, x, y)
        for key, parameter in params.items():
            parameter.grad = like_layout(grads[key], parameter)
        optimizer.step()

    if compiles != "step":
        return run
    run()  # so that the optimiser has something to keep
    names = dict(zip(params, (name for name, _ in ensemble.named_parameters())))
    population = Population(ensemble, clip=None, patience=None, larger_is_better=False)
    update = MemberUpdate(ensemble, optimizer)

    def named() -> dict[str, Tensor]:
        return {names[key]: grad for key, grad in take(params, x, y).items()}

    grads, losses = named(), torch.zeros(count)
    own = {name: value.detach() for name, value in ensemble.named_parameters()}
    flat = FlatUpdate(update, population, own, grads, losses)
    code = compiled(flat.function)
    code(*flat.trees(grads, losses, 1.0))

    def run_compiled() -> None:
        flat.proposal(code, named(), losses, 1.0).make()

    return run_compiled


def ensemble_table(timings: Sequence[EnsembleTiming]) -> str:
    """Markdown: one row for each workload and M."""
    lines = [
        "| networks | M | loop, ms | vmap(grad), ms | ours, ms | vmap(grad): gain | ours: gain "
        "| batched: MB | JAX, ms | JAX ÷ ours |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for t in timings:
        chosen = min(t.ours, key=t.ours.__getitem__)
        shown = f"{t.ours[chosen]:.2f} ({chosen})"
        of_jax = " | " if math.isnan(t.jax) else f"{t.jax:.2f} | {t.jax_ratio:.2f}"
        lines.append(
            f"| {ENSEMBLES[t.workload].title} | {t.members} | {t.loop:.2f} | {t.recipe:.2f} "
            f"| {shown} | {t.recipe_gain:.2f} | {t.gain:.2f} | {t.memory / 1e6:.1f} | {of_jax} |"
        )
    return "\n".join(lines)


def ensemble_figure(timings: Sequence[EnsembleTiming]) -> Figure:
    """Gain over the loop, and memory, against M, of the workload with most sizes."""
    names = [t.workload for t in timings]
    most = max(dict.fromkeys(names), key=names.count)
    rows = [t for t in timings if t.workload == most]
    sizes = [t.members for t in rows]
    figure = Figure(figsize=(9.5, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(sizes, [t.gain for t in rows], color=BLUE, marker="o", label="ours")
    left.plot(
        sizes, [t.recipe_gain for t in rows], color=GREY, marker="s", ls="--", label="vmap(grad)"
    )
    left.axhline(1, color="black", lw=1, ls=":", label="a loop over networks")
    left.set(xlabel="members M", ylabel="training steps a second ÷ loop")
    left.legend(frameon=False, fontsize=9)
    right.plot(sizes, [t.memory / 1e6 for t in rows], color=BLUE, marker="o")
    right.set(xlabel="members M", ylabel="memory of a step (MB)")
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [str(size) for size in sizes])
        plain_axes(axes)
    figure.suptitle(f"{ENSEMBLES[most].title}, batch {_BATCH}, Adam", fontsize=11)
    return figure
