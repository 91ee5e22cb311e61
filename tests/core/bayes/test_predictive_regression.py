"""Regression ensembles against closed forms and torch.distributions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal
from torch.func import vmap

from metalearn.core.bayes.predictive_regression import gaussian_mixture_nll, regression_uncertainty
from metalearn.errors import SettingError

M, B, D = 4, 6, 3


def _members(*shape: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    means, spread = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    targets = torch.randn(*shape[1:], generator=generator, dtype=torch.float64)
    return means, spread.exp(), targets


def _mixture(means: Tensor, variances: Tensor) -> MixtureSameFamily:
    members = Independent(Normal(means.movedim(0, -2), variances.movedim(0, -2).sqrt()), 1)
    weights = torch.ones(*means.shape[1:-1], len(means), dtype=means.dtype)
    return MixtureSameFamily(Categorical(weights), members)


@pytest.mark.parametrize("shape", [(M, B, D), (1, B, 1), (M, 2, B, D)])
def test_nll_and_variance_are_those_of_the_mixture(shape: tuple[int, ...]) -> None:
    means, variances, targets = _members(*shape)
    mixture = _mixture(means, variances)
    nll = gaussian_mixture_nll(means, variances, targets)
    torch.testing.assert_close(nll, -mixture.log_prob(targets))
    total, aleatoric, epistemic = regression_uncertainty(means, variances)
    torch.testing.assert_close(total, mixture.variance)
    torch.testing.assert_close(total, aleatoric + epistemic)
    torch.testing.assert_close(aleatoric, variances.mean(0))


def test_members_without_variances_have_no_aleatoric_part() -> None:
    means = torch.tensor([[[1.0]], [[3.0]]])
    total, aleatoric, epistemic = regression_uncertainty(means)
    assert (float(total), float(aleatoric), float(epistemic)) == (1, 0, 1)
    assert float(regression_uncertainty(means[:1]).epistemic) == 0


def test_far_targets_stay_finite() -> None:
    means, variances = torch.zeros(2, 1, 1), torch.full((2, 1, 1), 1e-6)
    nll = gaussian_mixture_nll(means, variances, torch.tensor([[1e3]]))
    assert float(nll) == pytest.approx(0.5e12, rel=1e-5)


def test_inside_an_outer_vmap() -> None:
    means, variances, targets = _members(5, M, B, D)
    targets = targets[0].expand(5, B, D)
    looped = [gaussian_mixture_nll(*one) for one in zip(means, variances, targets)]
    mapped = vmap(gaussian_mixture_nll)(means, variances, targets)
    torch.testing.assert_close(mapped, torch.stack(looped))
    both = vmap(regression_uncertainty)(means, variances)
    torch.testing.assert_close(both.total[2], regression_uncertainty(means[2], variances[2]).total)


def test_shapes_that_do_not_fit_are_refused() -> None:
    means, variances, targets = _members(M, B, D)
    with pytest.raises(SettingError, match=r"shape of means=\[0, 6, 3\]: .* one member"):
        regression_uncertainty(means[:0])
    with pytest.raises(
        SettingError, match=r"shape of variances=\[4, 6, 2\]: \[4, 6, 3\] is needed"
    ):
        regression_uncertainty(means, variances[..., :2])
    with pytest.raises(SettingError, match=r"shape of targets=\[5, 3\]: \[6, 3\] is needed"):
        gaussian_mixture_nll(means, variances, targets[:5])
