"""Where the ranks of a training meet in a step: sums of what each has taken of the batch.

Axes: M members, or 1; R ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from metalearn.core.float64 import widest
from metalearn.ranks import Ranks
from metalearn.trainers.loop.step import StepGradient

__all__ = ["reduced"]

_BASE = 4096


def reduced(gradient: StepGradient, ranks: Ranks) -> StepGradient:
    """Sums and counts over ranks, the same on every one.

    Normalisers are of the whole batch already. Scalars and new values of buffers are means weighted
    by the counts; buffers of whole numbers are alike on all. Noise is drawn once, by rank 0.
    """
    if ranks.count == 1:
        return gradient
    values = {
        **{f"grads/{n}": grad * gradient.divisor for n, grad in gradient.grads.items()},
        **{f"beside/{n}": value * gradient.divisor for n, value in gradient.beside.items()},
        **{f"buffers/{n}": v * gradient.count for n, v in _real(gradient.buffers).items()},
        **{f"scalars/{n}": widest(v) * gradient.count for n, v in gradient.scalars.items()},
        "losses": gradient.losses * gradient.divisor,
        "sizes": _digits(gradient.count, _processed(gradient)).to(_of_message(gradient)),
    }
    found = ranks.sums(values)
    count, processed = _numbers(found["sizes"])
    size = max(count, 1)
    means = {
        name: found[f"buffers/{name}"] / size if f"buffers/{name}" in found else value
        for name, value in gradient.buffers.items()
    }
    return replace(
        gradient,
        grads={name: found[f"grads/{name}"] for name in gradient.grads},
        losses=found["losses"],
        count=count,
        divisor=1.0,
        beside={name: found[f"beside/{name}"] for name in gradient.beside},
        noise=None if gradient.noise is None else _by_the_first(gradient, ranks),
        buffers=means,
        scalars={n: found[f"scalars/{n}"] / size for n in gradient.scalars},
        processed=processed,
        suspects=lambda: _suspects(gradient, ranks),
    )


def _digits(*counts: int) -> Tensor:
    """``[2·counts]``: counts as digits to the base 4096, so that sums over ranks are exact.

    In float32 too, for as many as 4096 ranks and counts below 2²⁴.
    """
    return torch.tensor([digit for count in counts for digit in divmod(count, _BASE)])


def _numbers(sums: Tensor) -> list[int]:
    """The counts whose digits have been summed."""
    digits = [int(digit) for digit in sums]
    return [_BASE * high + low for high, low in zip(digits[::2], digits[1::2])]


def _of_message(gradient: StepGradient) -> torch.dtype:
    """A type in which counts travel beside losses and gradients, as one message.

    On a card they are a message of their own from the processor's memory: to read them there would
    make the host wait for the step.
    """
    losses = gradient.losses
    beside = losses.device.type == "cpu" and losses.dtype in (torch.float32, torch.float64)
    return losses.dtype if beside else torch.float64


def _real(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in values.items() if value.is_floating_point()}


def _processed(gradient: StepGradient) -> int:
    return gradient.count if gradient.processed is None else gradient.processed


def _by_the_first(
    gradient: StepGradient, ranks: Ranks
) -> Callable[[Mapping[str, Tensor], float], Mapping[str, Tensor]]:
    """Noise that rank 0 draws for all."""
    noise = gradient.noise
    assert noise is not None

    def noisy(grads: Mapping[str, Tensor], normalizer: float) -> Mapping[str, Tensor]:
        if ranks.rank == 0:
            return ranks.sums(noise(grads, normalizer))
        return ranks.sums({name: torch.zeros_like(grads[name]) for name in gradient.grads})

    return noisy


def _suspects(gradient: StepGradient, ranks: Ranks) -> str:
    """What the ranks name whose losses are not finite; what all name where all are."""
    finite = bool(torch.isfinite(gradient.losses).all())
    every = ranks.of_each([finite, gradient.suspects()])
    return ", ".join(text for good, text in every if not good) or ", ".join(
        text for _, text in every
    )
