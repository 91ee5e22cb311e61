"""Private training whose clipping norm follows a quantile of the norms.

Axes: N samples of a batch.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from metalearn.auditing import audit_private_step, audit_private_training
from metalearn.core import per_sample_norms
from metalearn.errors import SettingError
from tests.support.builders import Recorder, assert_same
from tests.support.diagnostic_cases import clipped_sum
from tests.support.spreads import assert_normal_spread
from tests.trainers.supervised.test_private import SEEDED, noiseless, private

QUIET: Any = {"noise_multiplier": 1e-6, **SEEDED}


def test_steps_are_clipped_to_norms_that_follow_the_quantile() -> None:
    trainer = private(
        max_norm=0.2, clip_quantile={"quantile": 0.6, "rate": 0.5, "noise": 1e-5}, **QUIET
    )
    trainer.prepare()
    wanted = 0.2
    for step in range(6):
        batch = trainer.objective.batch(step)
        assert trainer.objective.max_norm == pytest.approx(wanted, rel=1e-5)
        found = trainer.objective.gradient(trainer.params, batch, step=step)
        sums = {n: g * found.divisor for n, g in found.grads.items() if n in trainer.params}
        for name, total in clipped_sum(trainer, batch, trainer.objective.max_norm).items():
            torch.testing.assert_close(sums[name], total, rtol=1e-4, atol=1e-6)
        assert found.noise is not None
        sums = {**found.grads, **found.beside}
        loud = found.noise({n: g * found.divisor / 8 for n, g in sums.items()}, 8.0)
        assert set(loud) == set(trainer.params)
        norms = per_sample_norms(trainer.loss, trainer.params, batch) if len(batch[1]) else ()
        within = sum((float(n) <= wanted) - 0.5 for n in norms)
        wanted *= math.exp(-0.5 * (within / 8 + 0.5 - 0.6))


def test_samples_without_a_finite_gradient_have_no_bit() -> None:
    trainer = private(max_norm=1e3, clip_quantile={"quantile": 0.5, "noise": 1e-5}, **QUIET)
    trainer.prepare()
    x, y = trainer.objective.batch(0)
    assert len(y) > 2
    x = x.clone()
    x[:2] = torch.inf
    found = trainer.objective.gradient(trainer.params, (x, y), step=0)
    (bits,) = found.beside.values()
    assert float(bits) * found.divisor == pytest.approx((len(y) - 2) / 2)


def test_noise_of_gradients_and_of_the_count_is_that_which_the_account_pays_for() -> None:
    trainer = private(
        max_norm=0.5, noise_multiplier=2.0, clip_quantile={"quantile": 0.5, "noise": 3.0}
    )
    following = trainer.following
    assert following is not None
    batch, _ = noiseless(trainer, 0)
    quiet = trainer.objective.gradient(trainer.params, batch, step=0)
    assert quiet.noise is not None
    bits = float(following.bits(per_sample_norms(trainer.loss, trainer.params, batch)))
    means = {n: g * quiet.divisor / 8 for n, g in {**quiet.grads, **quiet.beside}.items()}
    noise, counts = [], []
    for _ in range(300):
        loud = quiet.noise(means, 8.0)
        noise.append(torch.cat([(loud[n] - means[n]).flatten().double() for n in loud]))
        share = -math.log(following.state()["clipping_norm"] / 0.5) / 0.2 + 0.5
        counts.append((share - 0.5) * 8 - bits)
    wanted = (2.0**-2 - 6.0**-2) ** -0.5
    assert_normal_spread(torch.stack(noise), wanted * 0.5 / 8)
    assert_normal_spread(counts, 3.0)


def test_a_resumed_run_is_the_one_that_was_not_interrupted(tmp_path: Path) -> None:
    how: Any = {"clip_quantile": 0.5, "max_norm": 0.1, **SEEDED, "schedule": "constant"}
    whole = private(**how)
    whole.fit()
    first = private(**how, steps=3, folder=tmp_path)
    first.fit()
    again = private(**how, folder=tmp_path)
    again.resume(tmp_path / "checkpoints" / "last.pt")
    assert first.following is not None
    assert again.objective.max_norm == first.following.state()["clipping_norm"] != 0.1
    again.fit()
    assert_same(dict(whole.params), dict(again.params))
    assert whole.objective.max_norm == again.objective.max_norm != 0.1


def test_the_account_is_that_of_the_same_multiplier() -> None:
    seen = Recorder()
    fixed, moving = private(), private(clip_quantile=0.5, tracker=seen, log_every=1)
    for trainer in (fixed, moving):
        trainer.fit()
    assert moving.account.spent() == fixed.account.spent()
    assert any("privacy/max_norm" in numbers for _, numbers in seen.numbers)
    summary = moving.results()["privacy"]
    assert summary["max_norm"] != 1.0
    assert summary["noise_multipliers"]["gradients"] > summary["noise_multiplier"]
    assert "max_norm" not in fixed.results()["privacy"]


def test_an_audit_of_its_step_does_not_refute_it_and_leaves_it_as_it_is() -> None:
    trainer = private(clip_quantile={"quantile": 0.5, "noise": 2.0})
    audit = audit_private_step(trainer, trials=200)
    assert not audit.refuted and trainer.objective.max_norm == 1.0
    with pytest.raises(SettingError, match=r"trainer\.clip_quantile=0\.5: null is needed"):
        audit_private_training(trainer, models=16)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clip_quantile": 1.0}, r"clip_quantile=1\.0: a number in \(0, 1\)"),
        ({"clip_quantile": {}}, r"clip_quantile\.quantile=None: a number in \(0, 1\)"),
        ({"clip_quantile": {"quantile": 2}}, r"clip_quantile\.quantile=2: a number in \(0, 1\)"),
        ({"clip_quantile": {"quantil": 0.5}}, r"clip_quantile='quantil': .*quantile"),
        ({"clip_quantile": {"quantile": 0.5, "rate": 0.0}}, r"clip_quantile\.rate=0\.0: "),
        ({"clip_quantile": {"quantile": 0.5, "noise": 0.5}}, r"clip_quantile\.noise=0\.5: .*σ/2"),
        ({"clip_quantile": 0.5, "clipping": "automatic"}, "clipping='automatic': flat is needed"),
        ({"clip_quantile": 0.5, "clip_groups": "layers"}, "clip_groups='layers': all is needed"),
        (
            {"clip_quantile": 0.5, "noise_bands": 2},
            "noise_bands=2: 1 is needed where clip_quantile",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        private(**settings)
