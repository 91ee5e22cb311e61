"""AUROC, FPR95 and their intervals against scikit-learn, torchmetrics and plain resampling."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score, roc_curve
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from metalearn.core.bayes import predictive
from metalearn.errors import SettingError
from metalearn.evaluation import ood_scores, uncertainty_scores


def _seed(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def _scores(ties: bool, n_in: int = 150, n_out: int = 90) -> tuple[Tensor, Tensor]:
    generator = _seed(5)
    inside = torch.randn(n_in, generator=generator, dtype=torch.float64)
    outside = 1.5 + torch.randn(n_out, generator=generator, dtype=torch.float64)
    return (inside.round(), outside.round()) if ties else (inside, outside)


def _oracle(inside: Tensor, outside: Tensor) -> tuple[float, float]:
    scores = torch.cat([inside, outside]).numpy()
    truth = np.r_[np.zeros(len(inside)), np.ones(len(outside))]
    fpr, tpr, _ = roc_curve(truth, scores, drop_intermediate=False)
    return float(roc_auc_score(truth, scores)), float(fpr[tpr >= 0.95].min())


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("n_out", [1, 20, 90])
def test_against_scikit_learn(ties: bool, n_out: int) -> None:
    inside, outside = _scores(ties, n_out=n_out)
    found = ood_scores(inside, outside, resamples=0)
    auroc, fpr = _oracle(inside, outside)
    assert float(found.auroc) == pytest.approx(auroc)
    assert float(found.fpr95) == pytest.approx(fpr)
    assert found.auroc_interval is None and found.fpr95_interval is None


def test_against_torchmetrics() -> None:
    inside, outside = (scores.sigmoid() for scores in _scores(False))
    truth = torch.cat([torch.zeros(len(inside)), torch.ones(len(outside))]).long()
    oracle = binary_auroc(torch.cat([inside, outside]), truth)
    assert float(ood_scores(inside, outside, resamples=0).auroc) == pytest.approx(float(oracle))


def test_perfect_reversed_and_useless_scores() -> None:
    low, high = torch.zeros(4), torch.ones(3)
    best = ood_scores(low, high, generator=_seed())
    assert (float(best.auroc), float(best.fpr95)) == (1, 0)
    assert best.auroc_interval == (1, 1) and best.fpr95_interval == (0, 0)
    worst = ood_scores(high, low, resamples=0)
    assert (float(worst.auroc), float(worst.fpr95)) == (0, 1)
    useless = ood_scores(low, low, resamples=0)
    assert (float(useless.auroc), float(useless.fpr95)) == (0.5, 1)
    endless = ood_scores(low, torch.full((3,), math.inf), resamples=0)
    assert float(endless.auroc) == 1


@pytest.mark.parametrize("ties", [False, True])
def test_intervals_are_those_of_plain_resampling(ties: bool) -> None:
    inside, outside = _scores(ties)
    found = ood_scores(inside, outside, resamples=400, generator=_seed(1))
    random = np.random.default_rng(2)
    drawn = [
        _oracle(
            inside[torch.as_tensor(random.integers(len(inside), size=len(inside)))],
            outside[torch.as_tensor(random.integers(len(outside), size=len(outside)))],
        )
        for _ in range(400)
    ]
    low, high = np.quantile(np.array(drawn), [0.025, 0.975], axis=0)
    assert found.auroc_interval is not None and found.fpr95_interval is not None
    auroc = [float(end) for end in found.auroc_interval]
    assert auroc == pytest.approx([low[0], high[0]], abs=0.015)
    fpr = [float(end) for end in found.fpr95_interval]
    assert fpr == pytest.approx([low[1], high[1]], abs=0.08)
    assert auroc[0] < float(found.auroc) < auroc[1]


def test_rows_are_scored_side_by_side_and_a_seed_repeats_them() -> None:
    inside, outside = _scores(False)
    stacked = torch.stack([inside, -inside]), torch.stack([outside, -outside])
    found = ood_scores(*stacked, resamples=50, generator=_seed())
    again = ood_scores(*stacked, resamples=50, generator=_seed())
    assert found.auroc.shape == (2,)
    assert float(found.auroc.sum()) == pytest.approx(1)
    assert found.auroc_interval is not None and again.auroc_interval is not None
    assert torch.equal(found.auroc_interval[0], again.auroc_interval[0])


def test_uncertainty_scores_of_ensemble_members_and_sizes() -> None:
    logits = torch.randn(4, 6, 3, generator=_seed(), dtype=torch.float64)
    whole = uncertainty_scores(logits)
    torch.testing.assert_close(whole["entropy"], predictive.predictive_entropy(logits))
    torch.testing.assert_close(whole["mutual_information"], predictive.mutual_information(logits))
    peak = logits.softmax(-1).mean(0).amax(-1)
    torch.testing.assert_close(whole["max_probability"], 1 - peak)
    sizes, members = (uncertainty_scores(logits, of=of) for of in ("sizes", "members"))
    for name in whole:
        for m in range(4):
            torch.testing.assert_close(sizes[name][m], uncertainty_scores(logits[: m + 1])[name])
            alone = uncertainty_scores(logits[m : m + 1])[name]
            torch.testing.assert_close(members[name][m], alone)
    assert float(members["mutual_information"].abs().max()) < 1e-12


def test_bad_inputs_get_a_sentence() -> None:
    good = torch.zeros(3)
    with pytest.raises(SettingError, match=r"shape of in_scores=\[0\]: .* one sample"):
        ood_scores(good[:0], good, resamples=0)
    with pytest.raises(SettingError, match=r"out_scores=nan: scores without NaN"):
        ood_scores(good, good / 0, resamples=0)
    with pytest.raises(
        SettingError, match=r"shape of out_scores=\[2, 3\]: \[\] before the samples"
    ):
        ood_scores(good, good.expand(2, 3), resamples=0)
    with pytest.raises(SettingError, match="generator=None: a torch.Generator is needed"):
        ood_scores(good, good)
    with pytest.raises(SettingError, match="resamples=-1: a whole number"):
        ood_scores(good, good, resamples=-1)
    with pytest.raises(SettingError, match="of='all': one of ensemble, members, sizes"):
        uncertainty_scores(torch.zeros(1, 2, 3), of="all")  # type: ignore[arg-type]
