"""Figures of an ensemble: calibration, scores against its size, uncertainties, a sweep.

Axes: M members, N samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from metalearn.evaluation import EnsembleReport, RegressionReport, ReliabilityBins
from metalearn.tracking.style import (
    BLUE,
    DPI,
    GREEN,
    GREY,
    ORANGE,
    RED,
    TITLE,
    WIDTH,
    legend_below,
    mark_lost,
    numpy_of,
    one_panel,
    panels,
    plain_axes,
    spans_decades,
)

__all__ = ["ensemble_size_figure", "reliability_figure", "sweep_figure", "uncertainty_figure"]

_NORMAL = 1.959964  # 97.5% of the standard normal distribution


_UNCERTAINTIES = {
    "max_probability": "1 − largest probability",
    "entropy": "entropy of the prediction (nats)",
    "mutual_information": "mutual information of prediction and member (nats)",
}


def reliability_figure(bins: ReliabilityBins, *, title: str) -> Figure:
    """Accuracy against confidence, with the samples of each bin below.

    A point stands at its bin's mean confidence and accuracy, its bar is the 95% interval of the
    accuracy (Wilson, 1927): a point is off the diagonal only as far as its bar does not reach it.

    Args:
        bins: ``[bins]`` of one predictor.
        title: stands above; the expected calibration error is added.

    Raises:
        ValueError: bins of more than one predictor.
    """
    if bins.count.ndim != 1:
        raise ValueError(f"bins: those of one predictor are needed, got {list(bins.count.shape)}")
    count, confidence, accuracy = map(numpy_of, (bins.count, bins.confidence, bins.accuracy))
    figure = Figure(figsize=(WIDTH, 5.4), layout="constrained", dpi=DPI)
    top, below = figure.subplots(2, 1, sharex=True, height_ratios=(3.2, 1))
    for axes in (top, below):
        plain_axes(axes)
    full = np.isfinite(confidence)
    x, y = confidence[full], accuracy[full]
    top.plot([0, 1], [0, 1], color=GREY, lw=1.2, ls=(0, (4, 3)), label="perfect calibration")
    top.vlines(x, x, y, color=RED, lw=5, alpha=0.3, label="gap")
    low, high = _wilson(y, count[full])
    bars = np.clip(np.stack([y - low, high - y]), 0, None)
    label = "bin, 95% interval"
    top.errorbar(x, y, bars, color=BLUE, fmt="o-", ms=6, lw=1.6, elinewidth=1.2, label=label)
    if not full.any():
        top.text(0.5, 0.6, "no finite predictions", color=RED, ha="center", fontsize=12)
    top.set(xlim=(0, 1), ylim=(-0.02, 1.02), ylabel="accuracy")
    top.set_title(f"{title}\nexpected calibration error {float(bins.error):.3f}", fontsize=TITLE)
    edges = np.linspace(0, 1, len(count) + 1)
    below.bar(edges[:-1], count, width=np.diff(edges), align="edge", color=BLUE, ec="white", lw=0.8)
    below.set(xlabel="probability of the predicted class", ylabel="samples")
    below.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    legend_below(figure, columns=2)
    return figure


def ensemble_size_figure(report: EnsembleReport | RegressionReport, *, title: str) -> Figure:
    """Accuracy, or RMSE, and NLL against the number of members.

    The dot at m is the m-th member alone, the line at m the ensemble of the first m.

    Args:
        report: of `metalearn.evaluation.EnsembleStatistics`, or of `RegressionStatistics` there.
        title: stands above both panels.
    """
    figure, row = panels(title, 2)
    first = ("accuracy", "accuracy") if isinstance(report, EnsembleReport) else ("rmse", "RMSE")
    for axes, (name, label) in zip(row, (first, ("nll", "NLL (nats)"))):
        alone = numpy_of(getattr(report.members, name))
        together = numpy_of(getattr(report.by_size, name))
        sizes = np.arange(1, len(alone) + 1)
        axes.plot(sizes, alone, "o", color=ORANGE, ms=6, mec="white", label="member m alone")
        if bool(np.isfinite(alone).any()):
            mean = alone[np.isfinite(alone)].mean()
            axes.axhline(mean, color=ORANGE, lw=1.2, ls=(0, (4, 3)), label="mean of members")
        mark = "o" if len(sizes) == 1 else ""
        axes.plot(
            sizes, together, color=BLUE, lw=2.2, marker=mark, ms=4, label="ensemble of members 1..m"
        )
        mark_lost(axes, sizes[~np.isfinite(alone)], total=len(sizes))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set(xlabel="members m", ylabel=label, xlim=(0.5, len(sizes) + 0.5))
    legend_below(figure, columns=3)
    return figure


def uncertainty_figure(
    inside: Mapping[str, Tensor],
    outside: Mapping[str, Tensor],
    *,
    title: str,
    auroc: Mapping[str, float] | None = None,
    names: tuple[str, str] = ("in distribution", "out of distribution"),
) -> Figure:
    """Histograms of uncertainties in and out of distribution, a panel for each kind.

    Shares of samples on a square-root axis, so that a tail stays visible beside a peak at 0.

    Args:
        inside: kind (``"entropy"``, ``"mutual_information"``) to one value a sample, ``[N]``.
        outside: the same kinds for the other samples, ``[N']``.
        title: stands above.
        auroc: kind to the AUROC of telling both apart, added to the panel's heading.
        names: of both sets of samples.

    Raises:
        ValueError: no kinds, or kinds that differ.
    """
    if not inside or list(inside) != list(outside):
        raise ValueError(
            f"inside and outside: the same kinds are needed, got {list(inside)}, {list(outside)}"
        )
    figure, row = panels(title, len(inside))
    for axes, kind in zip(row, inside):
        every = [numpy_of(part[kind]) for part in (inside, outside)]
        values = [np.extract(np.isfinite(part), part) for part in every]
        together = np.concatenate(values)
        high = float(together.max()) if len(together) else 1.0
        low = min(0.0, float(together.min())) if len(together) else 0.0
        edges = np.linspace(low, high if high > low else low + 1.0, 31)
        for name, part, given, colour in zip(names, values, every, (BLUE, ORANGE)):
            shares = np.histogram(part, edges)[0] / max(1, len(part))
            axes.stairs(shares, edges, color=colour, fill=True, alpha=0.3)
            lost = f", {len(given) - len(part)} more not finite" if len(given) > len(part) else ""
            label = f"{name} ({len(part)} samples{lost})"
            axes.stairs(shares, edges, color=colour, lw=1.8, label=label)
        axes.set_yscale("function", functions=(_root, np.square))
        axes.set(xlabel=_UNCERTAINTIES.get(kind, kind), ylabel="share of samples")
        axes.set_ylim(bottom=0)
        _share_ticks(axes)
        if auroc is not None and kind in auroc:
            axes.set_title(f"AUROC {auroc[kind]:.3f}", fontsize=11)
    legend_below(figure, columns=2)
    return figure


def sweep_figure(
    settings: Sequence[float],
    scores: Sequence[float],
    *,
    name: str,
    ylabel: str,
    title: str,
    larger_is_better: bool,
) -> Figure:
    """Final score of each member against the hyper-parameter that tells members apart.

    The line joins means over members of one setting; axes are logarithmic where values above 0
    span more than a decade and a half. A score that is not finite (a member that diverged) is a
    cross on the lower edge.

    Args:
        settings: the hyper-parameter, one a member.
        scores: the members' scores.
        name: of the hyper-parameter.
        ylabel: of the score.
        title: stands above; the best setting is added.
        larger_is_better: which end is best.

    Raises:
        ValueError: no members, numbers of settings and scores that differ, or a setting that is not
            finite.
    """
    x, y = np.asarray(settings, dtype=float), np.asarray(scores, dtype=float)
    if x.ndim != 1 or x.shape != y.shape or not len(x) or not bool(np.isfinite(x).all()):
        raise ValueError(
            "sweep_figure: one finite setting and one score for each member are needed, got "
            f"{len(x)} and {len(y)}"
        )
    figure, axes = one_panel(title)
    good = np.isfinite(y)
    axes.set(xlabel=name, ylabel=ylabel)
    if spans_decades(x):
        axes.set_xscale("log")
    if spans_decades(y[good]):
        axes.set_yscale("log")
    places = np.unique(x[good])
    means = np.array([y[good & (x == place)].mean() for place in places])
    axes.plot(places, means, color=BLUE, lw=1.6, alpha=0.7)
    axes.plot(x[good], y[good], "o", color=BLUE, ms=6, mec="white", label="member")
    if good.any():
        best = int(means.argmax() if larger_is_better else means.argmin())
        axes.plot(places[best], means[best], "*", color=GREEN, ms=17, mec="white", label="best")
        best_of = f"best: {name} {places[best]:.3g}, {ylabel} {means[best]:.3g}"
        axes.set_title(f"{title}\n{best_of}", fontsize=TITLE)
    mark_lost(axes, x[~good], total=len(x))
    legend_below(figure, columns=3)
    return figure


def _wilson(share: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    square = _NORMAL**2
    middle = (share + square / (2 * count)) / (1 + square / count)
    spread = share * (1 - share) / count + square / (4 * count**2)
    half = _NORMAL * np.sqrt(spread) / (1 + square / count)
    return middle - half, middle + half


def _root(values: np.ndarray) -> np.ndarray:
    return np.asarray(np.sqrt(np.clip(values, 0, None)))


def _share_ticks(axes: Axes) -> None:
    top = axes.get_ylim()[1]
    ticks = [tick for tick in (0, 0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1) if tick <= top]
    axes.set_yticks(ticks, [f"{tick:.0%}" for tick in ticks])
