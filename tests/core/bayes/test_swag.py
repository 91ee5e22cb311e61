"""SWAG's moments against a plain loop over the iterates, its draws against their covariance."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.func import vmap

from metalearn.core.bayes.swag import (
    SWAGMoments,
    swag_init,
    swag_sample,
    swag_update,
    swag_variance,
)
from metalearn.errors import SettingError
from tests.support.builders import assert_same


def _iterates(count: int = 7, offset: float = 0.0) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return offset + torch.randn(*shape, generator=generator, dtype=torch.float64)

    return [{"weight": drawn(2, 3), "bias": drawn(2)} for _ in range(count)]


def _moments(iterates: list[Any], rank: int = 4) -> SWAGMoments:
    moments = swag_init(iterates[0], rank=rank)
    for iterate in iterates:
        moments = swag_update(moments, iterate)
    return moments


@pytest.mark.parametrize("count", [1, 3, 7])
def test_moments_are_those_of_a_plain_loop(count: int) -> None:
    iterates = _iterates(count)
    moments = _moments(iterates)
    assert int(moments.iterates) == count
    for name in ("weight", "bias"):
        values = [iterate[name] for iterate in iterates]
        mean = sum(values) / count
        variance = sum((value - mean) ** 2 for value in values) / count
        columns = [value - sum(values[: i + 1]) / (i + 1) for i, value in enumerate(values)]
        filled = [torch.zeros_like(columns[0])] * max(0, 4 - count) + columns[-4:]
        torch.testing.assert_close(moments.mean[name], mean)
        torch.testing.assert_close(swag_variance(moments)[name], variance)
        torch.testing.assert_close(moments.deviations[name], torch.stack(filled))


def test_small_deviations_of_large_values_are_not_lost() -> None:
    """The difference of E[θ²] and E[θ]² would have no digit left."""
    iterates = _iterates(offset=1e8)
    values = torch.stack([iterate["weight"] for iterate in iterates])
    found = swag_variance(_moments(iterates))["weight"]
    torch.testing.assert_close(found, values.var(0, correction=0), rtol=1e-6, atol=0)


def test_without_spread_or_scale_a_draw_is_the_mean() -> None:
    one, iterates = _iterates(1)[0], _iterates()
    generator = torch.Generator().manual_seed(1)
    still = _moments([one] * 3)
    for name, value in swag_sample(still, generator=generator).items():
        torch.testing.assert_close(value, one[name])
    moments = _moments(iterates)
    assert_same(swag_sample(moments, generator=generator, scale=0.0), moments.mean)


@pytest.mark.parametrize("count", [3, 7])
def test_draws_have_the_stated_covariance(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A draw is linear in its standard normal numbers: their unit vectors give its root."""
    moments, generator = _moments(_iterates(count)), torch.Generator()
    mean = torch.cat([moments.mean["weight"].flatten(), moments.mean["bias"]])
    total = 4 + mean.numel()  # z' for the deviations, z for the parameters
    columns = []
    for unit in torch.eye(total, dtype=torch.float64):
        supply = list(unit)

        def numbers(*shape: Any, generator: Any, supply: Any = supply) -> torch.Tensor:
            size = torch.Size(shape if isinstance(shape[0], int) else shape[0])
            return torch.stack([supply.pop(0) for _ in range(size.numel())]).view(size)

        with monkeypatch.context() as patch:
            patch.setattr(torch, "randn", numbers)
            drawn = swag_sample(moments, generator=generator, scale=0.5)
        assert not supply
        columns.append(torch.cat([drawn["weight"].flatten(), drawn["bias"]]) - mean)
    root = torch.stack(columns, 1)
    flat = {n: v.flatten(1) for n, v in moments.deviations.items()}
    deviations = torch.cat([flat["weight"], flat["bias"]], 1)
    variance = swag_variance(moments)
    diagonal = torch.cat([variance["weight"].flatten(), variance["bias"]])
    low_rank = deviations.T @ deviations / (min(count, 4) - 1)
    torch.testing.assert_close(root @ root.T, 0.5 * (torch.diag(diagonal) + low_rank) / 2)


def test_draws_are_normal() -> None:
    moments, generator = _moments(_iterates()), torch.Generator().manual_seed(2)
    draws = [swag_sample(moments, generator=generator)["bias"][0] for _ in range(2_000)]
    scaled = (torch.stack(draws) - moments.mean["bias"][0]) / torch.stack(draws).std()
    shares = [float((scaled.abs() < width).double().mean()) for width in (1.0, 2.0)]
    assert float(scaled.mean()) == pytest.approx(0, abs=0.08)
    assert shares == pytest.approx([0.6827, 0.9545], abs=0.03)


def test_a_generator_decides_the_draw() -> None:
    moments = _moments(_iterates())

    def draw(seed: int) -> Any:
        return swag_sample(moments, generator=torch.Generator().manual_seed(seed))

    assert_same(draw(3), draw(3))
    assert not torch.equal(draw(3)["weight"], draw(4)["weight"])


def test_members_side_by_side_are_members_alone() -> None:
    runs = [_iterates(3), [{n: 2 * v for n, v in it.items()} for it in _iterates(3)]]
    stacked = [{n: torch.stack([a[n], b[n]]) for n in a} for a, b in zip(*runs)]
    moments = vmap(lambda p: swag_init(p, rank=2))(stacked[0])
    for iterate in stacked:
        moments = vmap(swag_update)(moments, iterate)
    for row, run in enumerate(runs):
        alone = _moments(run, rank=2)
        torch.testing.assert_close(moments.mean["weight"][row], alone.mean["weight"])
        torch.testing.assert_close(moments.deviations["bias"][row], alone.deviations["bias"])


def test_bad_settings() -> None:
    params = _iterates(1)[0]
    with pytest.raises(SettingError, match="rank"):
        swag_init(params, rank=0)
    with pytest.raises(SettingError, match=r"scale.*at least 0"):
        swag_sample(swag_init(params), generator=torch.Generator(), scale=-1.0)
