"""Figures of gradients: what is drawn, what is said of missing values.

Axes: S recorded steps, L layers.
"""

from __future__ import annotations

import pytest
import torch

from metalearn.tracking import layers_figure, noise_scale_figure, quantile_bands_figure


def test_noise_scales_are_lines_on_a_logarithmic_axis_with_the_break_even() -> None:
    steps = torch.tensor([1.0, 2.0, 3.0])
    lost = torch.full((3,), torch.nan)
    figure = noise_scale_figure(
        {"tasks": (steps, torch.tensor([0.5, torch.inf, 4.0])), "shots": (steps, lost)}, title="t"
    )
    axes = figure.axes[0]
    assert axes.get_yscale() == "log"
    assert [str(v) for v in axes.lines[0].get_ydata()] == ["0.5", "nan", "4.0"]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["tasks", "shots: no value", "noise = gradient"]
    figure.draw_without_rendering()
    shown = [tick.get_text() for tick in axes.get_yticklabels(which="both") if tick.get_text()]
    assert shown and all(float(text) > 0 for text in shown)


def test_layers_are_bars_and_missing_ones_say_so() -> None:
    values = torch.tensor([1.0, torch.nan, 100.0])
    figure = layers_figure(["a", "b", "c"], values, label="trace", title="t")
    axes = figure.axes[0]
    assert axes.get_xscale() == "log"
    assert [text.get_text() for text in axes.texts] == ["no value"]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["a", "b", "c"]
    figure.draw_without_rendering()


def test_quantiles_in_the_place_of_curves_say_of_how_many() -> None:
    figure = quantile_bands_figure(
        torch.arange(2.0), torch.rand(5, 2), ylabel="y", title="t", of="tasks", count=32
    )
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[-1] == "median of 32 tasks"


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"noise_scale_figure: steps \[S\] and ratios"):
        noise_scale_figure({"a": (torch.ones(2), torch.ones(3))}, title="t")
    with pytest.raises(ValueError, match=r"noise_scale_figure"):
        noise_scale_figure({}, title="t")
    with pytest.raises(ValueError, match=r"layers_figure: names and values \[L\] are needed"):
        layers_figure(["a"], torch.ones(2), label="", title="t")
