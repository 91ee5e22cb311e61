"""Risk at each coverage against a slow loop and by hand."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch

from metalearn.errors import SettingError
from metalearn.evaluation import area_under_risk_coverage, risk_coverage


@pytest.mark.parametrize("samples", [1, 2, 50])
def test_the_curve_is_that_of_a_slow_loop(samples: int) -> None:
    generator = torch.Generator().manual_seed(samples)
    confidences = torch.rand(3, samples, generator=generator)
    hits = torch.rand(3, samples, generator=generator) < confidences
    found = risk_coverage(confidences, hits)
    for row in range(3):
        order = sorted(range(samples), key=lambda i: -float(confidences[row, i]))
        wrong = [1.0 - float(hits[row, i]) for i in order]
        risk = [sum(wrong[:n]) / n for n in range(1, samples + 1)]
        torch.testing.assert_close(found.risk[row], torch.tensor(risk, dtype=torch.float64))
    torch.testing.assert_close(found.coverage[-1], torch.tensor(1.0, dtype=torch.float64))
    torch.testing.assert_close(found.risk[:, -1], 1 - hits.double().mean(-1))


def test_ties_have_the_mean_over_their_orders() -> None:
    hits = [True, False, False]
    risks = []
    for order in permutations(hits):
        wrong = [1.0 - hit for hit in (True, *order)]  # the surest sample comes first in any case
        risks.append([sum(wrong[:n]) / n for n in range(1, 5)])
    found = risk_coverage(torch.tensor([0.9, 0.5, 0.5, 0.5]), torch.tensor([True, *hits]))
    expected = torch.tensor(risks, dtype=torch.float64).mean(0)
    torch.testing.assert_close(found.risk, expected)


def test_areas_at_the_ends() -> None:
    hits = torch.tensor([True, True, False, False])
    knowing = area_under_risk_coverage(torch.tensor([0.9, 0.8, 0.2, 0.1]), hits)
    assert float(knowing) == pytest.approx((0 + 0 + 1 / 3 + 1 / 2) / 4)
    silent = area_under_risk_coverage(torch.full((4,), 0.7), hits)
    assert float(silent) == pytest.approx(0.5)
    assert float(area_under_risk_coverage(torch.rand(4), torch.ones(4))) == 0.0


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(SettingError, match=r"^shape of hits=\[2\]: \[3\] is needed"):
        risk_coverage(torch.rand(3), torch.ones(2))
    with pytest.raises(SettingError, match=r"^shape of confidences=\[0\]"):
        area_under_risk_coverage(torch.rand(0), torch.ones(0))
