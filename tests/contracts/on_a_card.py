"""Trainings on a simulated card, by name, in a process of its own; what went wrong, as JSON.

``python -m tests.contracts.on_a_card waves ensemble`` with ``METALEARN_TEST_DEVICE=card32``.
"""

from __future__ import annotations

import json
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from metalearn.core import meta_gradient, sgd
from metalearn.models import MLP
from metalearn.types import TaskBatch
from tests.contracts.trainers import TRAINERS
from tests.support.devices import DEVICE


def trained(name: str) -> None:
    """A step, its validation and its log; what it has trained is there."""
    trainer = TRAINERS[name](steps=1, eval_every=1, log_every=1)
    trainer.fit()
    places = {value.device.type for value in trainer.loop.params.values()}
    assert places == {DEVICE.type}, places


def gradient(spoil: Callable[[Tensor], Tensor] = lambda outputs: outputs) -> Tensor:
    """Of tasks, on the card; ``spoil``: what a loss makes of outputs beside."""
    module = MLP((2,), 1, hidden=(3,), seed=0).to(DEVICE)
    draws = torch.Generator().manual_seed(0)
    pair: Any = tuple(torch.randn(2, 4, size, generator=draws).to(DEVICE) for size in (2, 1))
    params = {name: value.detach() for name, value in module.named_parameters()}

    def loss(values: Any, batch: Any) -> Tensor:
        outputs = torch.func.functional_call(module, values, (batch[0],))
        return (spoil(outputs) - batch[1]).square().mean()

    found = meta_gradient(loss, params, TaskBatch(pair, pair), optimizer=sgd(0.1), steps=1)
    return torch.cat([grad.flatten() for grad in found.grads.values()])


def _of_the_processor(outputs: Tensor) -> Tensor:
    return outputs + torch.ones(outputs.shape[-2:])


def _drawn(outputs: Tensor) -> Tensor:
    draws = torch.Generator().manual_seed(0)
    return outputs + torch.randn(outputs.shape[-2:], device=outputs.device, generator=draws)


def _indexed(outputs: Tensor) -> Tensor:
    return outputs.gather(0, torch.zeros(outputs.shape[-2:], dtype=torch.long))


SPOILT: dict[str, Callable[[], Any]] = {
    "a tensor of the processor": lambda: gradient(_of_the_processor),
    "a generator of the processor": lambda: gradient(_drawn),
    "an index of the processor": lambda: gradient(_indexed),
    "float64": lambda: gradient(lambda outputs: outputs.double()),
}
"""Controls: what a card refuses, within transforms."""


def outcome(run: Callable[[], Any]) -> str:
    """What an error says, and where in the library it came from; empty where there is none."""
    try:
        run()
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if "/metalearn/" in frame.filename] or frames
        return f"{type(error).__name__}: {error} ({own[-1].filename}:{own[-1].lineno})"
    return ""


if __name__ == "__main__":
    warnings.simplefilter("ignore", FutureWarning)  # of torch's own, for jvp of other devices
    found = {name: outcome(lambda name=name: trained(name)) for name in sys.argv[1:]}
    found |= {name: outcome(run) for name, run in SPOILT.items()}
    print(json.dumps({"found": found, "gradient": gradient().cpu().tolist()}))
