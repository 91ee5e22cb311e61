"""Conformal sets against slow loops, and their coverage where it is promised."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from metalearn.errors import SettingError
from metalearn.evaluation import ConformalRule, fit_conformal, set_scores

RULES: tuple[ConformalRule, ...] = ("thr", "aps", "raps")
rules = pytest.mark.parametrize("rule", RULES)


def _drawn(samples: int, classes: int = 5, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities, targets drawn from them but not quite, and draws."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(samples, classes, generator=generator, dtype=torch.float64)
    targets = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
    draws = torch.rand(samples, generator=generator, dtype=torch.float64)
    return (1.5 * logits).softmax(-1), targets, draws


def _slow_score(p: list[float], c: int, rule: str, penalty: float, free: int, u: float) -> float:
    if rule == "thr":
        return 1 - p[c]
    above = [q for q in p if q > p[c]]
    score = sum(above) + u * p[c]
    if rule == "raps":
        score += penalty * max(0, len(above) + 1 - free)
    return score


def _slow_threshold(scores: list[float], coverage: float) -> float:
    """The smallest score that enough of the samples and infinity are at most."""
    for value in sorted([*scores, math.inf]):
        if sum(score <= value for score in scores) >= coverage * (len(scores) + 1) - 1e-9:
            return value
    return math.inf


@pytest.mark.parametrize(
    ("rule", "drawn"),
    [("thr", False), ("aps", False), ("raps", False), ("aps", True), ("raps", True)],
)
@pytest.mark.parametrize(("samples", "coverage"), [(1, 0.5), (1, 0.6), (9, 0.9), (40, 0.8)])
def test_sets_are_those_of_a_slow_loop(
    rule: ConformalRule, drawn: bool, samples: int, coverage: float
) -> None:
    p, y, u = _drawn(samples, seed=samples)
    new, _, v = _drawn(30, seed=7)
    how: dict[str, Any] = {"rule": rule, "penalty": 0.2, "free_ranks": 2}
    found = fit_conformal(p, y, coverage=coverage, draws=u if drawn else None, **how)
    slow = [
        _slow_score(row, int(c), rule, 0.2, 2, float(share) if drawn else 1.0)
        for row, c, share in zip(p.tolist(), y, u)
    ]
    threshold = _slow_threshold(slow, coverage)
    assert float(found.threshold) == pytest.approx(threshold, abs=1e-12)
    sets = found.sets(new, draws=v if drawn else None)
    expected = [
        [_slow_score(r, c, rule, 0.2, 2, float(s) if drawn else 1.0) <= threshold for c in range(5)]
        for r, s in zip(new.tolist(), v)
    ]
    assert sets.tolist() == expected


@rules
def test_new_samples_are_covered_as_promised(rule: ConformalRule) -> None:
    """On average over calibrations with N samples, between coverage and coverage + 1/(N + 1)."""
    rounds, count = 2000, 19
    p, y, u = (x.unflatten(0, (rounds, count + 1)) for x in _drawn(rounds * (count + 1), seed=3))
    drawn = rule != "thr"
    found = fit_conformal(
        p[:, :-1], y[:, :-1], coverage=0.8, rule=rule, draws=u[:, :-1] if drawn else None
    )
    sets = found.sets(p[:, -1:], draws=u[:, -1:] if drawn else None)
    covered = float(set_scores(sets, y[:, -1:]).coverage.mean())
    error = 3 * math.sqrt(0.8 * 0.2 / rounds)
    assert 0.8 - error < covered < 0.8 + 1 / (count + 1) + error


@rules
def test_rows_are_calibrated_side_by_side(rule: ConformalRule) -> None:
    p, y, _ = _drawn(60)
    together = fit_conformal(p.unflatten(0, (3, 20)), y.unflatten(0, (3, 20)), rule=rule)
    sets = together.sets(p.unflatten(0, (3, 20)))
    for row in range(3):
        part = slice(20 * row, 20 * row + 20)
        alone = fit_conformal(p[part], y[part], rule=rule)
        assert torch.equal(alone.threshold, together.threshold[row])
        assert torch.equal(alone.sets(p[part]), sets[row])


@rules
def test_too_few_samples_put_every_class_into_every_set(rule: ConformalRule) -> None:
    p, y, _ = _drawn(8)
    found = fit_conformal(p, y, coverage=0.9, rule=rule)
    assert math.isinf(found.threshold) and found.sets(p).all()
    assert not math.isinf(fit_conformal(*_drawn(9)[:2], coverage=0.9, rule=rule).threshold)


@rules
def test_classes_by_another_order_are_in_the_same_sets(rule: ConformalRule) -> None:
    p, y, _ = _drawn(50)
    order = torch.tensor([3, 0, 4, 1, 2])
    places = order.argsort()
    one, other = fit_conformal(p, y, rule=rule), fit_conformal(p[:, order], places[y], rule=rule)
    assert torch.equal(one.sets(p)[:, order], other.sets(p[:, order]))


def test_raps_without_a_penalty_is_aps_and_with_one_has_smaller_tails() -> None:
    p, y, _ = _drawn(400, classes=20)
    aps, free = (fit_conformal(p, y, rule=r, penalty=0.0) for r in ("aps", "raps"))
    assert torch.equal(aps.sets(p), free.sets(p))
    held = fit_conformal(p, y, rule="raps", penalty=0.5, free_ranks=2)
    assert held.sets(p).sum(-1).max() < aps.sets(p).sum(-1).max()


def test_scores_of_sets_by_hand() -> None:
    sets = torch.tensor([[True, True, False], [False, False, False], [False, True, False]])
    found = set_scores(sets, torch.tensor([0, 1, 2]))
    assert float(found.coverage) == pytest.approx(1 / 3)
    assert float(found.size) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"coverage": 1.0}, "coverage=1.0"),
        ({"rule": "lac"}, "rule='lac': one of thr, aps, raps"),
        ({"penalty": -1.0}, "penalty=-1.0"),
        ({"free_ranks": -1}, "free_ranks=-1"),
        ({"targets": torch.tensor([0, 5])}, "target=5: a class in 0..4"),
        ({"targets": torch.tensor([0])}, r"shape of targets=\[1\]: \[2\] is needed"),
        ({"probabilities": torch.full((2, 5), 1.5)}, "probabilities=1.5: numbers in 0..1"),
        ({"probabilities": torch.full((2, 5), math.nan)}, "probabilities=nan"),
        ({"probabilities": torch.ones(0, 5)}, r"shape of probabilities=\[0, 5\]"),
        ({"draws": torch.rand(2)}, r"draws=\[2\]: None is needed"),
        ({"rule": "aps", "draws": torch.rand(3)}, r"shape of draws=\[3\]: \[2\] is needed"),
        ({"rule": "aps", "draws": torch.full((2,), 2.0)}, "draws=2.0: numbers in 0..1"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(changes: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"probabilities": torch.full((2, 5), 0.2), "targets": torch.ones(2)}
    given["targets"] = given["targets"].long()
    with pytest.raises(SettingError, match=f"^{message}"):
        fit_conformal(**{**given, **changes})
