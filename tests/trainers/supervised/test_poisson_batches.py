"""Batches whose size is drawn by chance, an empty one among them: sums over B, noise all the same.

Axes: N samples of a batch, B expected ones.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from metalearn.models import MLP
from metalearn.trainers.loop.step import StepGradient, finish
from tests.support.builders import Recorder
from tests.support.diagnostic_cases import blobs, clipped_sum, per_sample

EXPECTED = 4
EMPTY = 2  # the step without a sample


def _drawn(step: int) -> tuple[Tensor, Tensor]:
    """Each sample of the training part with probability B / 30; at one step none."""
    x, y = blobs().part("train")
    draws = torch.Generator().manual_seed(step)
    taken = torch.rand(len(y), generator=draws) < EXPECTED / len(y)
    taken &= torch.tensor(step != EMPTY)
    return x[taken], y[taken]


def _trainer(**settings: Any) -> Any:
    made = per_sample(clip=None, batch_size=EXPECTED, **settings)
    made.objective.batches = _drawn
    return made


def test_sizes_are_not_all_the_same() -> None:
    sizes = [len(_drawn(step)[1]) for step in range(6)]
    assert sizes[EMPTY] == 0
    assert len(set(sizes)) > 2


@pytest.mark.parametrize("step", range(5))
def test_a_gradient_is_the_sum_over_the_expected_size(step: int) -> None:
    trainer = _trainer(max_norm=0.5)
    found = trainer.gradient(step)
    for name, total in clipped_sum(trainer, _drawn(step), 0.5).items():
        torch.testing.assert_close(found.grads[name], total / EXPECTED, rtol=1e-4, atol=1e-7)
    assert torch.isfinite(found.losses).all()


@pytest.mark.parametrize("step", [0, EMPTY])
def test_noise_is_the_same_whatever_the_size(step: int) -> None:
    """Its standard deviation is σ·C/B, and an empty batch is nothing but noise."""
    quiet, loud = _trainer(max_norm=0.5), _trainer(max_norm=0.5, noise_multiplier=4.0)
    one, other = quiet.gradient(step).grads, loud.gradient(step).grads
    noise = torch.cat([(other[n] - one[n]).flatten() for n in one])
    assert float(noise.std()) == pytest.approx(4.0 * 0.5 / EXPECTED, rel=0.3)
    full = per_sample(max_norm=0.5, batch_size=EXPECTED, noise_multiplier=4.0)
    plain = per_sample(max_norm=0.5, batch_size=EXPECTED)
    a, b = full.gradient(step).grads, plain.gradient(step).grads
    for name in one:
        torch.testing.assert_close(other[name] - one[name], a[name] - b[name], rtol=0, atol=1e-5)


def test_parts_of_a_batch_on_two_ranks_are_the_whole_with_noise_once() -> None:
    """Sums of the parts, then the mean, then the noise of the step."""
    trainer = _trainer(max_norm=0.5, noise_multiplier=1.0)
    trainer.prepare()
    objective, params = trainer.objective, trainer.loop.params
    for step in (0, 1, EMPTY):
        x, y = _drawn(step)
        cut = len(y) // 2
        parts = [
            objective.gradient(params, part, step=step)
            for part in ((x[:cut], y[:cut]), (x[cut:], y[cut:]))
        ]
        together = StepGradient(
            {n: sum(p.grads[n] * p.divisor for p in parts) for n in params},  # type: ignore[misc]
            sum(p.losses * p.divisor for p in parts),  # type: ignore[arg-type]
            sum(p.count for p in parts),
            normalizer=parts[0].normalizer,
            noise=parts[0].noise,
        )
        found, whole = finish(together), trainer.gradient(step)
        torch.testing.assert_close(found.losses, whole.losses)
        for name, grad in whole.grads.items():
            torch.testing.assert_close(found.grads[name], grad, rtol=1e-4, atol=1e-6)


def test_a_training_goes_through_an_empty_batch() -> None:
    seen = Recorder()
    trainer = _trainer(
        model=MLP((4,), 3, hidden=(5,)),
        noise_multiplier=0.5,
        diagnostics=(),
        log_every=1,
        tracker=seen,
    )
    assert trainer.fit().step == 6
    losses = seen.series("train/loss")
    assert losses[EMPTY] == 0
    assert all(loss > 0 for step, loss in enumerate(losses) if step != EMPTY)
    fractions = seen.steps("train/clipped_fraction")
    assert fractions == [step + 1 for step in range(6) if step != EMPTY]
