"""Temperature scaling: known temperatures, scipy, the two orders of pooling, degenerate cases."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from metalearn.errors import SettingError
from metalearn.evaluation import fit_temperature, tempered_log_probabilities
from metalearn.evaluation.temperature import Pooling

POOLINGS: list[Pooling] = ["members", "scale_then_pool", "pool_then_scale"]


def _drawn(members: int = 3, samples: int = 300, classes: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    base = 2 * torch.randn(samples, classes, generator=generator)
    targets = torch.multinomial(base.softmax(-1), 1, generator=generator).squeeze(-1)
    return 3 * (base + torch.randn(members, samples, classes, generator=generator)), targets


@pytest.mark.parametrize("true", [0.2, 1.0, 4.0])
def test_a_known_temperature_is_found(true: float) -> None:
    """Each class occurs just as often as the scaled model says."""
    counts = torch.tensor([[7, 2, 1], [1, 1, 8], [3, 4, 3]])
    rows = torch.arange(3).repeat_interleave(10)
    targets = torch.cat([torch.arange(3).repeat_interleave(row) for row in counts])
    logits = true * counts.double().log()[rows]
    for pooling in POOLINGS:
        found = fit_temperature(logits[None], targets, pooling=pooling)
        assert float(found.temperature) == pytest.approx(true, rel=1e-8)
        assert not bool(found.at_bound)
        assert float(found.nll_after) <= float(found.nll_before)


@pytest.mark.parametrize("pooling", ["scale_then_pool", "pool_then_scale"])
def test_against_scipy(pooling: Pooling) -> None:
    logits, targets = _drawn()

    def nll(log_t: float) -> float:
        p = (logits.double() / math.exp(log_t)).softmax(-1).mean(0)
        if pooling == "pool_then_scale":
            p = logits.double().softmax(-1).mean(0) ** (1 / math.exp(log_t))
            p /= p.sum(-1, keepdim=True)
        return -float(p[torch.arange(len(targets)), targets].log().mean())

    best = minimize_scalar(nll, bounds=(-4, 4), method="bounded", options={"xatol": 1e-9})
    found = fit_temperature(logits, targets, pooling=pooling)
    assert float(found.temperature.log()) == pytest.approx(best.x, abs=1e-6)
    assert float(found.nll_after) == pytest.approx(best.fun, abs=1e-10)
    assert float(found.nll_before) == pytest.approx(nll(0.0))
    log_p = tempered_log_probabilities(logits.double(), found.temperature, pooling=pooling)
    assert float(-log_p.gather(-1, targets[:, None]).mean()) == pytest.approx(best.fun)
    torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(300, dtype=torch.float64))


def test_each_member_has_the_temperature_it_would_have_alone() -> None:
    logits, targets = _drawn()
    logits = logits * torch.tensor([0.2, 1.0, 5.0]).reshape(3, 1, 1)
    found = fit_temperature(logits, targets, pooling="members")
    assert found.temperature.shape == (3,)
    for m in range(3):
        for pooling in ("scale_then_pool", "pool_then_scale"):
            alone = fit_temperature(logits[m : m + 1], targets, pooling=pooling)  # type: ignore[arg-type]
            assert float(alone.temperature) == pytest.approx(float(found.temperature[m]))
            assert float(alone.nll_after) == pytest.approx(float(found.nll_after[m]))
    scaled = tempered_log_probabilities(logits, found.temperature, pooling="members")
    expected = (logits[2] / found.temperature[2].float()).log_softmax(-1)
    torch.testing.assert_close(scaled[2], expected)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_always_right_goes_to_the_lower_bound_and_says_so(pooling: Pooling) -> None:
    targets = torch.arange(6) % 3
    logits = torch.eye(3)[targets][None]
    found = fit_temperature(logits, targets, pooling=pooling)
    assert float(found.temperature) == pytest.approx(0.01)
    assert bool(found.at_bound) and float(found.nll_after) < 1e-12


@pytest.mark.parametrize("pooling", POOLINGS)
def test_always_wrong_goes_to_the_upper_bound_and_says_so(pooling: Pooling) -> None:
    targets = torch.arange(6) % 3
    logits = torch.eye(3)[(targets + 1) % 3][None]
    found = fit_temperature(logits, targets, pooling=pooling)
    assert float(found.temperature) == pytest.approx(100)
    assert bool(found.at_bound)
    assert math.log(3) < float(found.nll_after) < math.log(3) + 0.01


@pytest.mark.parametrize("pooling", POOLINGS)
def test_where_nothing_helps_it_stays_one(pooling: Pooling) -> None:
    found = fit_temperature(torch.full((2, 5, 3), 7.0), torch.arange(5) % 3, pooling=pooling)
    assert found.temperature.flatten().tolist() == [1.0] * found.temperature.numel()
    assert not bool(found.at_bound.any())
    sure = fit_temperature(1e4 * torch.eye(3)[None], torch.arange(3), pooling=pooling)
    assert float(sure.temperature) == 1 and float(sure.nll_after) == 0


@pytest.mark.parametrize("pooling", POOLINGS)
def test_extreme_logits_stay_finite(pooling: Pooling) -> None:
    logits = 1e4 * torch.tensor([[[1.0, -1, 0], [-1, 1, 0]]]).expand(2, -1, -1)
    found = fit_temperature(logits, torch.tensor([0, 0]), pooling=pooling)
    for value in (found.temperature, found.nll_before, found.nll_after):
        assert bool(value.isfinite().all())
    assert bool(found.at_bound.all())


def test_bad_inputs_get_a_sentence() -> None:
    logits, targets = _drawn()
    with pytest.raises(SettingError, match="pooling='mean': one of members, scale_then_pool"):
        fit_temperature(logits, targets, pooling="mean")  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="pooling='mean': one of members, scale_then_pool"):
        tempered_log_probabilities(logits, 1.0, pooling="mean")  # type: ignore[arg-type]
    with pytest.raises(SettingError, match=r"shape of logits=\[300, 4\]: \[M, N, C\]"):
        fit_temperature(logits[0], targets, pooling="members")
    with pytest.raises(SettingError, match=r"shape of logits=\[3, 0, 4\]: .* sample"):
        fit_temperature(logits[:, :0], targets[:0], pooling="members")
    with pytest.raises(SettingError, match="finite logits are needed"):
        fit_temperature(logits / 0, targets, pooling="members")
    with pytest.raises(SettingError, match=r"target=4: a class in 0\.\.3 is needed"):
        fit_temperature(logits, targets.clone().fill_(4), pooling="members")
