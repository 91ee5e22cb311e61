"""Who takes the gradient of losses after a run with respect to weights on examples.

Axes: K steps, N examples, R outer losses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from metalearn.benchmarks.runs import unrolling_peers, written_out
from metalearn.benchmarks.runs.entrants import Entrant, Package, Race
from metalearn.benchmarks.runs.weighted_run import HyperProblem, WeightedRun
from metalearn.core import hyper_gradient, sgd

__all__ = ["BERGSON", "BETTY", "HYPER", "TORCHOPT", "our_gradient"]

HIGHER = Package("higher", "pip install higher")
TORCHOPT = Package("torchopt", "pip install torchopt")
BETTY = Package("betty", "pip install betty-ml==0.1.1, by a pip below 24.1")
BERGSON = Package("bergson", "pip install bergson")


def our_gradient(run: WeightedRun, **settings: Any) -> Callable[[], Tensor]:
    """`metalearn.core.hyper_gradient`; ``[R, N]``."""

    def gradient() -> Tensor:
        found = hyper_gradient(
            run.batch_loss,
            lambda params, weights, batch: run.outer(params),
            run.params,
            run.weights,
            lambda step: run.rows[step],
            None,
            optimizer=sgd(run.rates[0], momentum=run.momentum),
            steps=len(run.rows),
            **settings,
        )
        grads: Tensor = found.hyper_grads
        return grads.reshape(-1, len(run.weights))

    return gradient


def _one(problem: HyperProblem) -> bool:
    return problem.losses == 1


def _entrant(title: str, gradient: Callable[..., Any], **how: Any) -> Entrant:
    return Entrant(title, lambda problem: gradient(problem.run()), "mixed", **how)


def _ours(title: str, **settings: Any) -> Entrant:
    return _entrant(title, lambda run: our_gradient(run, **settings))


HYPER = Race(
    HyperProblem,
    {
        "mixed": _ours("ours, mixed", method="mixed"),
        "kept": _ours("ours, mixed, all states kept", method="mixed", memory="4GB"),
        "reverse": _ours("ours, reverse", method="reverse"),
        "unrolled": _entrant("loop of autograd", written_out.unrolled),
        "walked": _entrant("loop of torch.func", written_out.walked),
        "higher": _entrant("higher", unrolling_peers.higher, needs=HIGHER),
        "torchopt": _entrant("TorchOpt, MetaSGD", unrolling_peers.torchopt, needs=TORCHOPT),
        "betty": _entrant(
            "betty, IterativeProblem", unrolling_peers.betty, needs=BETTY, takes=_one,
            limit="it has one outer loss",
        ),
        "bergson": _entrant("bergson, MAGIC", unrolling_peers.bergson, needs=BERGSON),
        "reference": _entrant(
            "loop of torch.func, float64", lambda run: written_out.walked(run.to(torch.float64)),
            timed=False,
        ),
    },
    {"steps": 2, "examples": 20, "batch": 10, "hidden": (4,)},
)  # fmt: skip
