"""Digits with wrong labels: the scores that should find them do.

Axes: N examples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.attribution import (
    el2n_scores,
    grand_scores,
    kronecker_self_influence,
    tracin_self_influence,
)
from metalearn.core import fisher_kfac, functionalize
from metalearn.data import digits_data
from tests.support.oracles import draw, generator


@pytest.fixture(scope="module")
def known() -> dict[str, Any]:
    """A network trained on digits of which a tenth has another label."""
    inputs, labels = digits_data().part("train", device="cpu")
    inputs, labels = inputs[:300].flatten(1).double(), labels[:300].clone()
    inputs = (inputs - inputs.mean()) / inputs.std()
    wrong = torch.zeros(300, dtype=torch.bool)
    wrong[torch.randperm(300, generator=generator(0))[:30]] = True
    labels[wrong] = (labels[wrong] + 1 + torch.arange(30) % 9) % 10
    module = draw(nn.Sequential(nn.Linear(inputs.shape[1], 16), nn.Tanh(), nn.Linear(16, 10)))
    apply, params, buffers = functionalize(module)

    def outputs_fn(params: Any, inputs: Tensor) -> Tensor:
        found: Tensor = apply(params, buffers, inputs)
        return found

    def loss_fn(params: Any, batch: Any) -> Tensor:
        return F.cross_entropy(outputs_fn(params, batch[0]), batch[1])

    checkpoints = []
    for step in range(1, 91):
        grads = torch.func.grad(loss_fn)(params, (inputs, labels))
        params = {n: p - 0.5 * grads[n] for n, p in params.items()}
        if step % 30 == 0:
            checkpoints.append(params)
    return {
        "module": module,
        "outputs_fn": outputs_fn,
        "loss_fn": loss_fn,
        "checkpoints": checkpoints,
        "examples": (inputs, labels),
        "wrong": wrong,
    }


def kronecker(known: dict[str, Any]) -> Tensor:
    params, examples = known["checkpoints"][-1], known["examples"]
    fisher = fisher_kfac(
        known["module"], params, examples, likelihood="categorical", kind="exact", corrected=True
    )
    damping = 0.1 * float(fisher.trace()) / sum(p.numel() for p in params.values())
    return kronecker_self_influence(
        known["loss_fn"],
        params,
        examples,
        fisher=fisher,
        damping=damping,
    )


SCORES: dict[str, Callable[[dict[str, Any]], Tensor]] = {
    "Kronecker factors": kronecker,
    "TracIn": lambda k: tracin_self_influence(
        k["loss_fn"], k["checkpoints"], k["examples"], learning_rates=[0.5] * 3
    ),
    "GraNd": lambda k: grand_scores(k["loss_fn"], k["checkpoints"], k["examples"]),
    "EL2N": lambda k: el2n_scores(k["outputs_fn"], k["checkpoints"], k["examples"]),
}


@pytest.mark.parametrize("name", SCORES)
def test_wrong_labels_have_large_scores(name: str, known: dict[str, Any]) -> None:
    scores, wrong = SCORES[name](known), known["wrong"]
    above = scores[wrong][:, None] > scores[~wrong]
    assert above.double().mean() > 0.9  # the area under the curve
