"""The streaming statistics: oracles, any split into batches, permutations, limit cases."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error

from metalearn.core.bayes import predictive
from metalearn.errors import SettingError
from metalearn.evaluation import (
    EnsembleReport,
    EnsembleStatistics,
    adaptive_calibration_error,
    statistics,
    uncertainty_scores,
)

M, N, C = 4, 60, 5


def _drawn(members: int = M, samples: int = N, classes: int = C) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(classes, (samples,), generator=generator)
    signal = 1.5 * torch.nn.functional.one_hot(targets, classes)
    return signal + torch.randn(members, samples, classes, generator=generator), targets


def _report(logits: Tensor, targets: Tensor, sizes: list[int] | None = None) -> EnsembleReport:
    found = EnsembleStatistics(logits.shape[0], logits.shape[2])
    for part, wanted in zip(
        logits.split(sizes or [len(targets)], dim=1), targets.split(sizes or [len(targets)])
    ):
        found.update(part, wanted)
    return found.compute()


def _flat(report: EnsembleReport) -> dict[str, Tensor]:
    flat = {
        f"{kind}/{field.name}": getattr(getattr(report, kind), field.name)
        for kind in ("members", "by_size")
        for field in fields(report.members)
    }
    rest = ("expected_entropy", "mutual_information", "disagreement")
    flat |= {name: getattr(report, name) for name in rest}
    flat |= {
        name: getattr(report.reliability, name) for name in ("count", "confidence", "accuracy")
    }
    return flat | report.uncertainty


def _oracle(log_p: Tensor, targets: Tensor) -> dict[str, float]:
    """Scores of one predictor by other libraries."""
    p = log_p.double().softmax(-1)  # sums to one in float64 too
    confidences, guesses = p.max(-1)
    wanted = torch.nn.functional.one_hot(targets, p.shape[-1])
    return {
        "accuracy": float(accuracy_score(targets, guesses)),
        "nll": float(log_loss(targets, p, labels=list(range(p.shape[-1])))),
        "brier": float(((p - wanted) ** 2).sum(-1).mean()),
        "ece": float(multiclass_calibration_error(p, targets, p.shape[-1], n_bins=15)),
        "adaptive_ece": float(adaptive_calibration_error(confidences, guesses == targets)),
        "entropy": float(-(p * log_p).sum(-1).mean()),
    }


def test_every_member_and_every_size_against_other_libraries() -> None:
    logits, targets = _drawn()
    report = _report(logits, targets)
    assert report.samples == N
    for m in range(M):
        alone = _oracle(logits[m].log_softmax(-1), targets)
        assert report.member(m) == pytest.approx(alone, abs=2e-6)
        first = logits[: m + 1]
        together = _oracle(first.softmax(-1).mean(0).log(), targets)
        assert report.by_size.at(m) == pytest.approx(together, abs=2e-6)
        _, aleatoric, epistemic = predictive.uncertainty(first)
        assert float(report.expected_entropy[m]) == pytest.approx(float(aleatoric.mean()))
        mutual = float(epistemic.mean())
        assert float(report.mutual_information[m]) == pytest.approx(mutual, abs=1e-6)
        pairs = float(predictive.disagreement(first).mean())
        assert float(report.disagreement[m]) == pytest.approx(pairs)
    last = report.by_size.at(-1)
    assert report.ensemble() == last | {
        "expected_entropy": float(report.expected_entropy[-1]),
        "mutual_information": float(report.mutual_information[-1]),
        "disagreement": float(report.disagreement[-1]),
    }
    assert last["nll"] < min(report.members.nll.tolist())  # the mean of probabilities is better
    assert float(report.reliability.error) == pytest.approx(last["ece"])
    assert int(report.reliability.count.sum()) == N


@pytest.mark.parametrize("sizes", [[1] * N, [0, 7, 53, 0], [30, 30]])
def test_any_split_into_batches_is_the_whole(sizes: list[int]) -> None:
    logits, targets = _drawn()
    whole, split = _flat(_report(logits, targets)), _flat(_report(logits, targets, sizes))
    for name, value in whole.items():
        close = {"atol": 1e-6, "rtol": 1e-6, "equal_nan": True}
        torch.testing.assert_close(split[name], value, **close, msg=name)  # type: ignore[arg-type]


def test_chunks_of_a_batch_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, targets = _drawn()
    whole = _flat(_report(logits, targets))
    monkeypatch.setattr(statistics, "_CHUNK", 2 * M * C * 7)
    for name, value in _flat(_report(logits, targets)).items():
        torch.testing.assert_close(value, whole[name], atol=1e-6, rtol=1e-6, equal_nan=True)


def test_permuting_members_permutes_their_scores_alone() -> None:
    logits, targets = _drawn()
    order = torch.tensor([2, 0, 3, 1])
    one, other = _report(logits, targets), _report(logits[order], targets)
    for field in fields(one.members):
        before, after = getattr(one.members, field.name), getattr(other.members, field.name)
        torch.testing.assert_close(after, before[order])
    assert other.ensemble() == pytest.approx(one.ensemble(), abs=1e-6)
    for name, value in one.uncertainty.items():
        torch.testing.assert_close(other.uncertainty[name], value, atol=1e-6, rtol=1e-5)


def test_one_member_is_the_single_model() -> None:
    logits, targets = _drawn(members=1)
    report = _report(logits, targets)
    assert report.by_size.at(0) == pytest.approx(report.member(0), abs=1e-6)
    assert float(report.mutual_information) == pytest.approx(0, abs=1e-6)
    assert float(report.disagreement) == 0


def test_uncertainties_are_those_of_the_scores_in_order_of_arrival() -> None:
    logits, targets = _drawn()
    report = _report(logits, targets, [11, 49])
    expected = uncertainty_scores(logits)
    assert list(report.uncertainty) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(report.uncertainty[name], value, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float32])
def test_extreme_logits_stay_finite(dtype: torch.dtype) -> None:
    logits, targets = _drawn()
    report = _report((1e4 * logits.sign()).to(dtype).requires_grad_(), targets.int())
    flat = _flat(report)
    for name in ("confidence", "accuracy"):
        flat.pop(name)  # NaN in empty bins
    assert all(bool(value.isfinite().all()) for value in flat.values())
    assert not any(value.requires_grad for value in flat.values())


def test_a_member_of_nan_spoils_itself_and_the_ensembles_with_it() -> None:
    logits, targets = _drawn()
    clean = _report(logits, targets)
    logits[2] = math.nan
    report = _report(logits, targets)
    assert all(math.isnan(value) for value in report.member(2).values())
    for member in (0, 1, 3):
        assert report.member(member) == pytest.approx(clean.member(member))
    assert report.by_size.at(1) == pytest.approx(clean.by_size.at(1))
    assert report.disagreement[:2].tolist() == clean.disagreement[:2].tolist()
    assert all(math.isnan(value) for value in report.ensemble().values())


def test_a_report_does_not_change_with_later_batches() -> None:
    logits, targets = _drawn()
    found = EnsembleStatistics(M, C)
    found.update(logits, targets)
    report = found.compute()
    before = {name: value.clone() for name, value in _flat(report).items()}
    found.update(-logits, targets)
    for name, value in _flat(report).items():
        torch.testing.assert_close(value, before[name], equal_nan=True, rtol=0, atol=0)
    assert found.compute().samples == 2 * N


def test_bad_inputs_get_a_sentence() -> None:
    for name in ("members", "classes", "bins"):
        settings = {"members": M, "classes": C, "bins": 15} | {name: 0}
        with pytest.raises(SettingError, match=f"{name}=0: a whole number of at least 1"):
            EnsembleStatistics(**settings)  # type: ignore[arg-type]
    logits, targets = _drawn()
    found = EnsembleStatistics(M, C)
    with pytest.raises(SettingError, match=r"samples=0: update\(\) with at least one sample"):
        found.compute()
    with pytest.raises(SettingError, match=r"shape of logits=\[3, 60, 5\]: \[4, B, 5\] is needed"):
        found.update(logits[:3], targets)
    with pytest.raises(SettingError, match=r"shape of logits=\[60, 5\]: \[4, B, 5\] is needed"):
        found.update(logits[0], targets)
    with pytest.raises(SettingError, match=r"shape of targets=\[59\]: \[60\] is needed"):
        found.update(logits, targets[1:])
    with pytest.raises(SettingError, match=r"dtype of targets='torch.float32': whole numbers"):
        found.update(logits, targets.float())
    for wrong in (-1, C):
        with pytest.raises(SettingError, match=rf"target={wrong}: a class in 0\.\.4 is needed"):
            found.update(logits, torch.where(targets == 1, wrong, targets))
    assert found.samples == 0
