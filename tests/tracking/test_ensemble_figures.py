"""Figures of ensembles: what stands in them, limit cases, refusals."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from scipy.stats import binomtest
from torch import Tensor

from metalearn.evaluation import (
    EnsembleReport,
    EnsembleStatistics,
    RegressionStatistics,
    reliability_bins,
)
from metalearn.tracking import (
    ensemble_size_figure,
    reliability_figure,
    sweep_figure,
    uncertainty_figure,
)


def _draw(figure: Figure) -> None:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    assert 3_000 < file.tell() < 300_000


def _legend(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def _report(members: int, *, lost: int | None = None) -> EnsembleReport:
    generator = torch.Generator().manual_seed(members)
    targets = torch.arange(40) % 3
    logits = torch.randn(members, 40, 3, generator=generator)
    logits += torch.nn.functional.one_hot(targets, 3)
    if lost is not None:
        logits[lost] = math.nan
    found = EnsembleStatistics(members, 3)
    found.update(logits, targets)
    return found.compute()


def test_reliability_figure_draws_points_intervals_and_counts() -> None:
    confidences = torch.tensor([0.5] * 10 + [0.9] * 20)
    hits = torch.arange(30) % 2 == 0
    figure = reliability_figure(reliability_bins(confidences, hits, bins=5), title="ten members")
    top, below = figure.axes
    points = top.lines[1]
    assert list(points.get_xdata()) == pytest.approx([0.5, 0.9])
    assert list(points.get_ydata()) == pytest.approx([0.5, 0.5])
    ends = np.array(top.collections[1].get_segments())[:, :, 1]  # type: ignore[attr-defined]
    for drawn, (right, count) in zip(ends, ((5, 10), (10, 20))):
        interval = binomtest(right, count).proportion_ci(method="wilson")
        assert drawn == pytest.approx([interval.low, interval.high])
    assert [bar.get_height() for bar in below.patches] == [0, 0, 10, 0, 20]  # type: ignore[attr-defined]
    assert top.get_title() == "ten members\nexpected calibration error 0.267"
    _draw(figure)


def test_reliability_figure_without_finite_predictions() -> None:
    figure = reliability_figure(_report(2, lost=0).reliability, title="")
    assert [text.get_text() for text in figure.axes[0].texts] == ["no finite predictions"]
    _draw(figure)
    stacked = reliability_bins(torch.rand(2, 5), torch.rand(2, 5) > 0.5)
    with pytest.raises(ValueError, match=r"bins: those of one predictor .* \[2, 15\]"):
        reliability_figure(stacked, title="")


@pytest.mark.parametrize("members", [1, 3, 32])
def test_size_figure_has_members_as_dots_and_the_ensemble_as_a_line(members: int) -> None:
    report = _report(members)
    figure = ensemble_size_figure(report, title="digits")
    for axes, name in zip(figure.axes, ("accuracy", "nll")):
        alone, mean, together = axes.lines
        assert list(alone.get_ydata()) == getattr(report.members, name).tolist()
        assert alone.get_linestyle() == "None"
        assert mean.get_ydata()[0] == pytest.approx(float(getattr(report.members, name).mean()))  # type: ignore[index]
        assert list(together.get_ydata()) == getattr(report.by_size, name).tolist()
        assert list(together.get_xdata()) == list(range(1, members + 1))
    assert figure.get_suptitle() == "digits"
    assert len(_legend(figure)) == 3
    _draw(figure)
    ticks = figure.axes[0].get_xticks()
    assert all(tick == round(tick) for tick in ticks)


def test_size_figure_of_real_targets() -> None:
    found = RegressionStatistics(3, 1)
    found.update(
        torch.rand(3, 20, 2, generator=torch.Generator().manual_seed(0)), torch.ones(20, 1)
    )
    report = found.compute()
    figure = ensemble_size_figure(report, title="waves")
    for axes, name, label in zip(figure.axes, ("rmse", "nll"), ("RMSE", "NLL (nats)")):
        assert list(axes.lines[0].get_ydata()) == getattr(report.members, name).tolist()
        assert list(axes.lines[-1].get_ydata()) == getattr(report.by_size, name).tolist()
        assert axes.get_ylabel() == label
    _draw(figure)


def test_size_figure_marks_members_that_are_not_finite() -> None:
    figure = ensemble_size_figure(_report(4, lost=2), title="")
    cross = figure.axes[1].lines[-1]
    assert list(cross.get_xdata()) == [3]
    assert "not finite (1 of 4)" in _legend(figure)
    _draw(figure)


def _scores(values: list[float]) -> dict[str, Tensor]:
    return {"entropy": torch.tensor(values), "mutual_information": torch.zeros(len(values))}


def test_uncertainty_figure_shows_shares_of_both_sets() -> None:
    inside, outside = _scores([0.0, 0.1, 0.1, math.nan]), _scores([0.1, 3.0])
    figure = uncertainty_figure(
        inside,
        outside,
        title="digits, letters",
        auroc={"entropy": 0.75},
        names=("digits", "letters"),
    )
    entropy, mutual = figure.axes
    _, first, _, second = entropy.patches
    shares = [patch.get_data().values for patch in (first, second)]  # type: ignore[attr-defined]
    assert [share.sum() for share in shares] == pytest.approx([1, 1])
    assert shares[0][:2] == pytest.approx([1 / 3, 2 / 3])  # bins of 0.1
    assert shares[1][-1] == 0.5
    assert entropy.get_title() == "AUROC 0.750" and mutual.get_title() == ""
    assert entropy.get_xlabel() == "entropy of the prediction (nats)"
    assert mutual.get_xlabel() == "mutual information of prediction and member (nats)"
    assert _legend(figure) == ["digits (3 samples, 1 more not finite)", "letters (2 samples)"]
    _draw(figure)


def test_uncertainty_figure_of_nothing_finite_and_of_nothing() -> None:
    _draw(uncertainty_figure(_scores([math.nan]), _scores([]), title=""))
    with pytest.raises(ValueError, match=r"the same kinds are needed, got \['entropy'"):
        uncertainty_figure(_scores([0.0]), {"entropy": torch.zeros(1)}, title="")
    with pytest.raises(ValueError, match="the same kinds are needed"):
        uncertainty_figure({}, {}, title="")


def _sweep(x: list[float], y: list[float], *, larger: bool = True) -> Figure:
    return sweep_figure(x, y, name="lr", ylabel="score", title="sweep", larger_is_better=larger)


def test_sweep_figure_marks_the_best_and_the_lost() -> None:
    figure = _sweep([1e-3, 1e-2, 1e-2, 0.1, 1.0], [0.1, 0.9, 0.7, 0.85, math.nan])
    (axes,) = figure.axes
    means, members, best, lost = axes.lines
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "linear")
    assert list(means.get_ydata()) == pytest.approx([0.1, 0.8, 0.85])
    assert len(members.get_xdata()) == 4  # type: ignore[arg-type]
    assert list(best.get_xdata()) == [0.1]
    assert list(lost.get_xdata()) == [1.0]
    assert axes.get_title() == "sweep\nbest: lr 0.1, score 0.85"
    assert _legend(figure) == ["member", "best", "not finite (1 of 5)"]
    _draw(figure)


def test_sweep_figure_scales_and_the_smaller_best() -> None:
    figure = _sweep([0.0, 0.1, 0.2], [2e-3, 1e-4, 1.0], larger=False)
    (axes,) = figure.axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("linear", "log")
    assert "best: lr 0.1" in axes.get_title()
    for x, y in (([0.1], [0.5]), ([0.1, 0.2], [math.nan, math.inf])):
        _draw(_sweep(x, y))


def test_sweep_figure_refuses_what_does_not_fit() -> None:
    for x, y in (([0.1], []), ([], []), ([math.inf], [1.0])):
        with pytest.raises(ValueError, match="one finite setting and one score for each member"):
            _sweep(x, y)
