"""Training by per-sample gradients: closed forms, plain loops, what is refused.

Axes: N samples of a batch.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.errors import SettingError
from metalearn.models import MLP
from tests.support.builders import Recorder, assert_same
from tests.support.diagnostic_cases import blobs, clipped_sum, per_sample

SGD: Any = lambda ps: torch.optim.SGD(ps, lr=0.1)  # noqa: E731


def test_without_clipping_it_is_a_plain_training_loop() -> None:
    trainer = per_sample(max_norm=math.inf, clip=None, schedule="constant", optimizer=SGD)
    model = MLP((4,), 3, hidden=(5,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer.fit()
    for step in range(6):
        x, y = trainer.objective.batch(step)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    for name, value in model.named_parameters():
        torch.testing.assert_close(trainer.params[name], value.detach(), rtol=1e-5, atol=1e-7)


def _loop(trainer: Any, step: int, limit: float) -> tuple[dict[str, Tensor], Tensor]:
    """Mean of clipped gradients and their norms by backward passes over single samples."""
    x, y = trainer.objective.batch(step)
    total = {n: torch.zeros_like(p) for n, p in trainer.module.named_parameters()}
    norms = []
    for a, b in zip(x, y):
        trainer.module.zero_grad()
        F.cross_entropy(trainer.module(a[None]), b[None]).backward()
        grads = {n: p.grad.clone() for n, p in trainer.module.named_parameters()}
        norm = torch.sqrt(sum(g.square().sum() for g in grads.values()))
        norms.append(norm)
        for name, grad in grads.items():
            total[name] += grad * min(1.0, limit / float(norm)) / len(y)
    return total, torch.stack(norms)


@pytest.mark.parametrize("chunk_size", [None, 3])
def test_a_step_is_the_mean_of_clipped_gradients(chunk_size: int | None) -> None:
    _, norms = _loop(per_sample(), 2, math.inf)
    limit = float(norms.median())
    trainer = per_sample(max_norm=limit, chunk_size=chunk_size)
    report = trainer.gradient(2)
    wanted, _ = _loop(trainer, 2, limit)
    for name, grad in wanted.items():
        torch.testing.assert_close(report.grads[name], grad, rtol=1e-4, atol=1e-7)
    clipped = report.scalars["train/clipped_fraction"]
    assert float(clipped) == pytest.approx(float((norms > limit).double().mean()), abs=1 / 8)


def test_noise_has_the_size_of_the_clipping_norm_and_is_that_of_the_step() -> None:
    quiet, loud = per_sample(max_norm=0.5), per_sample(max_norm=0.5, noise_multiplier=4.0)
    noise = []
    for step in range(40):
        one, other = quiet.gradient(step).grads, loud.gradient(step).grads
        noise.append(torch.cat([(other[n] - one[n]).flatten() for n in one]))
    rows = torch.stack(noise)
    assert float(rows.std()) == pytest.approx(4.0 * 0.5 / 8, rel=0.1)
    assert abs(float(rows.mean())) < 0.02
    again = per_sample(max_norm=0.5, noise_multiplier=4.0).gradient(7).grads
    assert_same(dict(again), dict(loud.gradient(7).grads))
    other = per_sample(max_norm=0.5, noise_multiplier=4.0, seed=1)
    assert not torch.equal(other.gradient(7).grads["1.weight"], again["1.weight"])


def test_batch_norm_by_policy() -> None:
    def model() -> nn.Module:
        layers = (nn.Linear(4, 8), nn.Unflatten(1, (4, 2)), nn.BatchNorm1d(4), nn.Flatten())
        return nn.Sequential(*layers, nn.Linear(8, 3))

    with pytest.raises(SettingError, match=r"BatchNorm1d 2 normalises with .*batch_norm=groupnorm"):
        per_sample(model=model())
    for policy, kind in (("groupnorm", nn.GroupNorm), ("eval", nn.BatchNorm1d)):
        trainer = per_sample(model=model(), batch_norm=policy)
        layer = trainer.module[2]
        assert type(layer) is kind
        before = {n: b.clone() for n, b in trainer.module.named_buffers()}
        trainer.fit()
        assert_same(dict(trainer.module.named_buffers()), before)
        if kind is nn.BatchNorm1d:
            assert not layer.training
    flat = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    with pytest.raises(SettingError, match=r"a sample alone is what it gets .*more than 1 value"):
        per_sample(model=flat, batch_norm="groupnorm")
    with pytest.raises(SettingError, match="batch_stats"):
        per_sample(model=model(), batch_norm="batch_stats")


def test_the_report_is_that_of_one_member() -> None:
    seen = Recorder()
    quick: Any = lambda ps: torch.optim.Adam(ps, lr=0.05)  # noqa: E731
    trainer = per_sample(steps=60, eval_every=30, tracker=seen, optimizer=quick)
    trainer.fit()
    report = trainer.test().report
    x, y = blobs().part("test")
    logits = trainer.predict(x)[0]
    right = float((logits.argmax(1) == y).double().mean())
    assert report.ensemble()["accuracy"] == report.member(0)["accuracy"] == pytest.approx(right)
    assert report.ensemble()["nll"] == pytest.approx(float(F.cross_entropy(logits, y)), rel=1e-5)
    assert right > 0.6
    names = {name for step, numbers in seen.numbers for name in numbers if step == trainer.step}
    assert {"validation/nll", "validation/ece"} <= names
    assert {"validation/reliability"} <= {name for _, name, _ in seen.drawn}


def test_diagnostics_are_on_by_default() -> None:
    seen = Recorder()
    trainer = per_sample(tracker=seen, diagnostics=None)
    trainer.fit()
    for name in ("gradient_norms/sample_median", "gradient_variance/sample", "noise_scale/sample"):
        assert seen.steps(name) == [1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_norm": 0.0}, r"^max_norm=0\.0: a number above 0 is needed, or infinity$"),
        ({"max_norm": math.nan}, "^max_norm=nan"),
        ({"noise_multiplier": -1.0}, r"^noise_multiplier=-1\.0: a finite number of at least 0"),
        (
            {"noise_multiplier": 1.0, "max_norm": math.inf},
            r"^noise_multiplier=1\.0: noise needs a finite max_norm$",
        ),
        ({"monitor": "ece"}, "^monitor='ece': one of loss, accuracy is needed$"),
        ({"chunk_size": 0}, "^chunk_size=0: a whole number of at least 1 is needed$"),
        ({"batch_size": 99}, "^batch_size=99: the training part has 30 samples"),
        ({"seed": -1}, "^seed=-1: "),
        ({"model": MLP((5,), 3)}, "^model='MLP': inputs \\[4\\] are what it gets"),
        ({"model": MLP((4,), 2)}, r"^model='MLP': outputs \[2, 3\] are needed, not \[2, 2\]$"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        per_sample(**settings)


def test_what_clipping_does_to_the_validation_gradient_is_recorded() -> None:
    seen = Recorder()
    data = blobs()
    trainer = per_sample(max_norm=0.05, tracker=seen)
    trainer.fit()
    found = {name: value for _, numbers in seen.numbers for name, value in numbers.items()}
    batch = data.take(data.splits["validation"], device=torch.device("cpu"))
    clipped = clipped_sum(trainer, batch, 0.05)
    plain = torch.func.grad(trainer.loss)(dict(trainer.params), batch)
    one, other = (torch.cat([part[n].flatten() for n in plain]) for part in (clipped, plain))
    wanted = float(torch.nn.functional.cosine_similarity(one, other, dim=0))
    assert found["validation/clipping_cosine"] == pytest.approx(wanted, rel=1e-4)
    assert 0 < wanted < 0.9999 and 0 < found["validation/clipping_norm_ratio"] < 1
