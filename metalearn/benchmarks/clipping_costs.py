"""What ways of clipping cost beside flat clipping, and how memory grows with the batch.

Everybody has the same batch, drawn beforehand; times are of the process, contestants in turn.
Axes: N samples of a batch, K groups of parameters that are clipped by themselves.
"""

from __future__ import annotations

import importlib.util
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from metalearn.benchmarks.clipped_networks import CLIPPED_NETWORKS
from metalearn.benchmarks.clipped_steps import (
    Gradients,
    Run,
    clipped_mean,
    distance,
    interleaved,
    our_gradient,
    plain_gradient,
    prepared_ways,
)
from metalearn.core.memory import peak_memory
from metalearn.core.samples.clipping_groups import Clipping
from metalearn.data import ClassificationData
from metalearn.trainers import PrivateTrainer
from metalearn.trainers.loop.step import finish

__all__ = [
    "CLIPPING_WAYS",
    "ClippingCost",
    "clipping_race",
    "clipping_table",
    "private_gradient",
    "step_memory",
    "step_memory_table",
]

_PLAIN, _FLAT, _PRIVATE = "plain gradient", "flat", "private step, flat"
_BASES = _PLAIN, _FLAT, _PRIVATE
_FOLLOWING = "private step, C follows the median"
_CHUNK = 256
_STABILITY = 0.01  # of automatic clipping


@dataclass(frozen=True)
class ClippingCost:
    """One way of clipping on one network."""

    way: str
    milliseconds: float
    """Median over rounds, of the process's time."""
    plain: float
    """Median over rounds of time ÷ that of the plain gradient of the batch."""
    flat: float
    """Median over rounds of time ÷ that of the flat clipped gradient."""
    private: float
    """Median over rounds of time ÷ that of the private step with flat clipping; NaN without one."""
    memory: int
    """Peak bytes of tensors in a step."""
    error: float
    """‖g − g'‖ / ‖g'‖, g' by a loop of backward passes; NaN for the plain one and under noise."""


def clipping_race(name: str, *, rounds: int, samples: int | None = None) -> list[ClippingCost]:
    """Time every way of clipping in turn, round by round.

    Args:
        name: key of `CLIPPED_NETWORKS`.
        rounds: how often each runs, after one round that does not count.
        samples: N, in the place of the network's own.
    """
    runs, formed, bound = prepared_ways(name, CLIPPING_WAYS, samples)
    seconds, found = interleaved(runs, rounds)
    costs = []
    for way, run in runs.items():
        plain, flat, private = (_ratio(seconds, way, base) for base in _BASES)
        exact = _exact(way, formed, bound)
        error = math.nan if exact is None else distance(found[way], exact)
        memory = peak_memory(run, torch.device("cpu"))
        milliseconds = 1e3 * statistics.median(seconds[way])
        costs.append(ClippingCost(way, milliseconds, plain, flat, private, memory, error))
    return costs


def clipping_table(results: Mapping[str, Sequence[ClippingCost]]) -> str:
    """Markdown: a row for each way; time ÷ that of the plain and of the flat clipped gradient."""
    titles = [CLIPPED_NETWORKS[name].title for name in results]
    lines = ["| ÷ plain gradient, ÷ flat | " + " | ".join(titles) + " |"]
    lines.append("| --- " * (len(titles) + 1) + "|")
    for way in CLIPPING_WAYS:
        cells = []
        for costs in results.values():
            (cost,) = [c for c in costs if c.way == way]
            plain = f"{cost.milliseconds:.1f} ms" if way == _PLAIN else f"{cost.plain:.2f}"
            cells.append(f"{plain}, {cost.flat:.2f}")
        lines.append(f"| {way} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def private_gradient(
    module: nn.Module,
    x: Tensor,
    y: Tensor,
    bound: float,
    *,
    noise_multiplier: float = 1.0,
    **settings: Any,
) -> Run:
    """The noisy gradient of `PrivateTrainer` for a batch that is drawn beforehand.

    Args:
        module: that would be trained.
        x: ``[N, ...]``, all of which Poisson sampling takes, as B = N.
        y: ``[N]``, in 0..9.
        bound: C.
        noise_multiplier: σ.
        settings: further ones of the trainer.
    """
    count = len(x)
    splits = {"train": torch.arange(count), "validation": torch.tensor([count])}
    splits["test"] = torch.tensor([count + 1])
    inputs, targets = torch.cat([x, x[:2]]).float(), torch.cat([y, y[:2]])
    data = ClassificationData(inputs, targets, tuple("0123456789"), splits)  # type: ignore[arg-type]
    settings |= {"noise_multiplier": noise_multiplier, "max_norm": bound, "reserve": 1}
    trainer = PrivateTrainer(module, data, batch_size=count, steps=1, **settings)
    trainer.prepare()
    batch = trainer.objective.batch(0)

    def run() -> Gradients:
        return dict(finish(trainer.objective.gradient(trainer.params, batch, step=0)).grads)

    return run


def step_memory(name: str, samples: Sequence[int]) -> dict[int, dict[str, int]]:
    """Peak bytes of tensors by batch size: a plain step, clipped and private ones, and in chunks.

    Args:
        name: key of `CLIPPED_NETWORKS`.
        samples: the sizes N.
    """
    return {count: _peaks(name, count) for count in samples}


def step_memory_table(peaks: Mapping[str, Mapping[int, Mapping[str, int]]]) -> str:
    """Markdown: peak MB of a plain step and of the others, by network and batch size."""
    ways = list(next(iter(next(iter(peaks.values())).values())))
    lines = ["| peak MB | N | " + " | ".join(ways) + " |", "| --- " * (len(ways) + 2) + "|"]
    for name, points in peaks.items():
        for count, found in points.items():
            cells = " | ".join(f"{found[way] / 1e6:.1f}" for way in ways)
            lines.append(f"| {CLIPPED_NETWORKS[name].title} | {count} | {cells} |")
    return "\n".join(lines)


def _peaks(name: str, count: int) -> dict[str, int]:
    network = CLIPPED_NETWORKS[name]
    problem = network.problem(count)

    def peak(make: Callable[..., Run], **settings: Any) -> int:
        run = make(*network.copied(problem), 1.0, **settings)
        run()  # what is found once, such as a trial, is no part of a step
        return peak_memory(run, torch.device("cpu"))

    pieces = {"chunk_size": _CHUNK}
    found = {"plain": peak(plain_gradient), "clipped": peak(our_gradient)}
    found[f"clipped, chunk_size={_CHUNK}"] = peak(our_gradient, **pieces)
    if _ACCOUNTED:
        found["private"] = peak(private_gradient)
        found[f"private, chunk_size={_CHUNK}"] = peak(private_gradient, **pieces)
    return found


def _ratio(seconds: Mapping[str, Sequence[float]], way: str, base: str) -> float:
    """Median over rounds of one time ÷ another; NaN where there is no other."""
    if base not in seconds:
        return math.nan
    return statistics.median(a / b for a, b in zip(seconds[way], seconds[base]))


def _exact(way: str, formed: Gradients, bound: float) -> Gradients | None:
    """What a way gives, of all gradients ``[N, ...]``; None where there is noise, or no clipping.

    Each of K groups is clipped to C/√K as if there were no other.
    """
    layers = {name: name.rpartition(".")[0] for name in formed}
    if way == "automatic":
        norms = torch.cat([g.flatten(1) for g in formed.values()], 1).norm(dim=1)
        factors = bound / (norms + _STABILITY) / len(norms)
        return {name: torch.tensordot(factors, g, 1) for name, g in formed.items()}
    if way == "layers":
        groups = list(dict.fromkeys(layers.values()))
        parts = [[n for n in formed if layers[n] == layer] for layer in groups]
    elif way == "the head by itself":
        head = layers[list(formed)[-1]]
        parts = [[n for n in formed if (layers[n] == head) is inside] for inside in (True, False)]
    elif way == _FLAT:
        parts = [list(formed)]
    else:
        return None
    found: Gradients = {}
    for names in parts:
        found |= clipped_mean({n: formed[n] for n in names}, bound / math.sqrt(len(parts)))
    return found


def _clipping(clipping: Clipping, groups: str) -> Callable[[nn.Module, Tensor, Tensor, float], Run]:
    """Of `clipped_gradient`; the group of a user is the network's last layer."""

    def make(module: nn.Module, x: Tensor, y: Tensor, bound: float) -> Run:
        last = [name for name, _ in module.named_parameters()][-1].rpartition(".")[0]
        chosen: Any = {"head": f"{last}.*"} if groups == "head" else groups
        return our_gradient(module, x, y, bound, clipping=clipping, groups=chosen)

    return make


def _following(module: nn.Module, x: Tensor, y: Tensor, bound: float) -> Run:
    return private_gradient(module, x, y, bound, clip_quantile=0.5)


_ACCOUNTED = importlib.util.find_spec("dp_accounting") is not None

CLIPPING_WAYS: dict[str, Callable[[nn.Module, Tensor, Tensor, float], Run]] = {
    _PLAIN: plain_gradient,
    _FLAT: _clipping("flat", "all"),
    "layers": _clipping("flat", "layers"),
    "the head by itself": _clipping("flat", "head"),
    "automatic": _clipping("automatic", "all"),
}
"""By name; each is given a network, inputs, targets and the bound."""
if _ACCOUNTED:
    CLIPPING_WAYS |= {_PRIVATE: private_gradient, _FOLLOWING: _following}
