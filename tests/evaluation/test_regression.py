"""Scores of regression models against plain loops over samples, members and targets.

Axes: M members, N samples, D targets.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from metalearn.errors import SettingError
from metalearn.evaluation import RegressionReport, RegressionStatistics

M, N, D = 4, 30, 2


def drawn(members: int = M, targets: int = D, *, variances: bool = True) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    wanted = torch.randn(N, targets, generator=generator)
    means = wanted + 0.7 * torch.randn(members, N, targets, generator=generator)
    logs = 0.5 * torch.randn(members, N, targets, generator=generator) - 1
    return (torch.cat([means, logs], -1) if variances else means), wanted


def report(outputs: Tensor, targets: Tensor, size: int = N) -> RegressionReport:
    found = RegressionStatistics(len(outputs), targets.shape[1])
    for part, wanted in zip(outputs.split(size, 1), targets.split(size)):
        found.update(part, wanted)
    return found.compute()


def normals(outputs: Tensor, targets: int) -> Normal:
    """Of every member, ``[M, N, D]``."""
    outputs = outputs.double()
    if outputs.shape[-1] == targets:
        return Normal(outputs, torch.ones_like(outputs))
    return Normal(outputs[..., :targets], (outputs[..., targets:].exp() + 1e-6).sqrt())


def oracle(every: Normal, members: list[int], targets: Tensor) -> dict[str, float]:
    """Scores of the mixture of some members, sample by sample."""
    count, targets = targets.shape[1], targets.double()
    nll, square, inside = 0.0, 0.0, 0
    for n, y in enumerate(targets):
        mean, spread = every.mean[members, n], every.stddev[members, n]
        even = Categorical(torch.ones(len(members), dtype=torch.float64))
        mixture = MixtureSameFamily(even, Independent(Normal(mean, spread), 1))
        nll -= float(mixture.log_prob(y))
        for d in range(count):
            square += float(mean[:, d].mean() - y[d]) ** 2 / count
            one = MixtureSameFamily(even, Normal(mean[:, d], spread[:, d]))
            inside += 0.025 <= float(one.cdf(y[d])) <= 0.975
    size = len(targets)
    return {
        "nll": nll / size,
        "rmse": math.sqrt(square / size),
        "coverage": inside / (size * count),
    }


@pytest.mark.parametrize("variances", [True, False])
@pytest.mark.parametrize("targets", [1, 3])
def test_scores_are_those_of_a_loop(targets: int, variances: bool) -> None:
    outputs, wanted = drawn(targets=targets, variances=variances)
    found, every = report(outputs, wanted), normals(outputs, targets)
    for m in range(M):
        assert found.member(m) == pytest.approx(oracle(every, [m], wanted), rel=1e-9)
        size = oracle(every, list(range(m + 1)), wanted)
        assert found.by_size.at(m) == pytest.approx(size, rel=1e-9)
        means = every.mean[: m + 1]
        assert float(found.aleatoric[m]) == pytest.approx(float(every.variance[: m + 1].mean()))
        between = float(means.var(0, unbiased=False).mean())
        assert float(found.epistemic[m]) == pytest.approx(between, rel=1e-9, abs=1e-15)


def test_the_ensemble_is_the_mixture_of_all() -> None:
    outputs, wanted = drawn()
    found = report(outputs, wanted)
    whole = oracle(normals(outputs, D), list(range(M)), wanted)
    rest = {"aleatoric": float(found.aleatoric[-1]), "epistemic": float(found.epistemic[-1])}
    assert found.ensemble() == pytest.approx(whole | rest, rel=1e-9)
    assert found.samples == N


@pytest.mark.parametrize("size", [1, 7, 29])
def test_batches_change_nothing(size: int) -> None:
    outputs, wanted = drawn()
    whole, parts = report(outputs, wanted), report(outputs, wanted, size)
    for name in ("nll", "rmse", "coverage"):
        for kind in ("members", "by_size"):
            torch.testing.assert_close(
                getattr(getattr(parts, kind), name), getattr(getattr(whole, kind), name)
            )
    torch.testing.assert_close(parts.epistemic, whole.epistemic)


def test_the_epistemic_part_does_not_cancel() -> None:
    """Means far from zero that hardly differ: a difference of squares would lose them."""
    outputs = torch.full((3, 5, 2), 1e6, dtype=torch.float64)
    outputs[1, :, 0] += 1e-3
    found = report(outputs, torch.zeros(5, 1))
    assert float(found.epistemic[-1]) == pytest.approx(1e-6 * 2 / 9, rel=1e-3)


def test_calibrated_intervals_hold_their_share() -> None:
    generator = torch.Generator().manual_seed(1)
    targets = torch.randn(20000, 1, generator=generator)
    statistics = RegressionStatistics(1, 1)
    statistics.update(torch.zeros(1, 20000, 2), targets)
    found = statistics.compute().member(0)
    assert found["coverage"] == pytest.approx(0.95, abs=0.01)
    assert found["nll"] == pytest.approx(0.5 * (1 + math.log(2 * math.pi)), abs=0.02)


def test_equal_members_are_one() -> None:
    outputs, wanted = drawn(members=1)
    found = report(outputs.expand(3, -1, -1), wanted)
    torch.testing.assert_close(found.by_size.nll, found.members.nll)
    assert float(found.epistemic.abs().max()) == 0


def test_a_member_that_is_nan_spoils_itself_and_what_contains_it() -> None:
    outputs, wanted = drawn()
    outputs[2, 3] = math.nan
    found = report(outputs, wanted)
    for name in ("nll", "rmse", "coverage"):
        assert getattr(found.members, name).isnan().tolist() == [False, False, True, False]
        assert getattr(found.by_size, name).isnan().tolist() == [False, False, True, True]


@pytest.mark.parametrize(
    ("outputs", "targets", "message"),
    [
        (torch.ones(4, 5, 3), torch.ones(5, 2), "width of outputs=3: 2 means are needed, or as"),
        (torch.ones(3, 5, 4), torch.ones(5, 2), r"shape of outputs=\[3, 5, 4\]: \[4, B, outputs\]"),
        (torch.ones(5, 4), torch.ones(5, 2), r"shape of outputs=\[5, 4\]"),
        (torch.ones(4, 5, 4), torch.ones(6, 2), r"shape of targets=\[6, 2\]: \[5, 2\] is needed"),
        (torch.ones(4, 5, 4), torch.ones(5), r"shape of targets=\[5\]: \[5, 2\] is needed"),
        (
            torch.ones(4, 5, 4).long(),
            torch.ones(5, 2),
            "outputs=torch.int64: a floating-point tensor",
        ),
    ],
)
def test_mistakes(outputs: Any, targets: Any, message: str) -> None:
    with pytest.raises(SettingError, match=f"^{message}"):
        RegressionStatistics(4, 2).update(outputs, targets)


def test_nothing_to_score() -> None:
    with pytest.raises(SettingError, match="^samples=0: update"):
        RegressionStatistics(1, 1).compute()
    for settings in ({"members": 0, "targets": 1}, {"members": 1, "targets": 2**21}):
        with pytest.raises(SettingError, match="a whole number"):
            RegressionStatistics(**settings)
