"""Bands of curves, matrices, spectra."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from metalearn.tracking import matrix_figure, quantile_bands_figure, spectrum_figure


def _draw(figure: Figure) -> None:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    assert 3_000 < file.tell() < 300_000


def _legend(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def _curves(members: int) -> torch.Tensor:
    return torch.arange(members).double().unsqueeze(-1) + torch.arange(6) + 1


@pytest.mark.parametrize("members", [1, 3, 32])
def test_bands_are_median_quartiles_and_extremes(members: int) -> None:
    values = _curves(members)
    figure = quantile_bands_figure(torch.arange(6) * 10, values, ylabel="loss", title="band")
    (axes,) = figure.axes
    (median,) = axes.lines
    assert list(median.get_ydata()) == values.quantile(0.5, dim=0).tolist()
    bands = [band.get_datalim(axes.transData).intervaly for band in axes.collections]
    assert len(bands) == {1: 0, 3: 1, 32: 2}[members]
    if members == 32:
        assert bands[0] == pytest.approx([1, 37])
        quarter = values.quantile(0.25, dim=0)[0], values.quantile(0.75, dim=0)[-1]
        assert bands[1] == pytest.approx([float(end) for end in quarter])
    last = [] if members == 1 else [f"median of {members} members"]
    assert _legend(figure) == ["extremes", "quartiles"][: len(bands)] + last
    _draw(figure)


def test_single_lines_on_request_and_a_member_that_is_lost() -> None:
    values = _curves(5)
    values[4, 3:] = math.nan
    values[3, 5] = math.inf
    figure = quantile_bands_figure(
        torch.arange(6), values, ylabel="", title="", of="runs", lines=True
    )
    (axes,) = figure.axes
    median = next(line for line in axes.lines if "median" in str(line.get_label()))
    assert list(median.get_ydata()) == [3, 4, 5, 5.5, 6.5, 7]
    assert _legend(figure)[2:] == ["single runs", "median of 5 runs", "2 not finite somewhere"]
    assert len(axes.lines) == 5 + 1 + 1
    _draw(figure)


def test_bands_of_decades_are_logarithmic_and_of_nothing_finite_empty() -> None:
    steps = torch.arange(6)
    figure = quantile_bands_figure(steps, 10 ** -_curves(4), ylabel="", title="")
    assert figure.axes[0].get_yscale() == "log"
    _draw(quantile_bands_figure(steps, torch.full((3, 6), math.nan), ylabel="", title=""))
    _draw(quantile_bands_figure(steps[:1], _curves(3)[:, :1], ylabel="", title=""))
    for values in (torch.zeros(6), torch.zeros(0, 6), torch.zeros(2, 5)):
        with pytest.raises(ValueError, match=r"steps \[S\] and values \[M, S\] are needed"):
            quantile_bands_figure(steps, values, ylabel="", title="")


@pytest.mark.parametrize("size", [1, 3, 32])
def test_matrix_figure_writes_small_matrices_out(size: int) -> None:
    matrix = torch.linspace(-1, 1, size * size).reshape(size, size)
    figure = matrix_figure(matrix, title="gradients", label="cosine")
    axes = figure.axes[0]
    picture = axes.images[0]
    assert np.asarray(picture.get_array()) == pytest.approx(matrix.double().numpy())
    assert picture.get_clim() == (-1, 1)
    written = [text.get_text() for text in axes.texts]
    assert written == ([f"{v:.2f}" for v in matrix.flatten().tolist()] if size <= 12 else [])
    _draw(figure)


def test_matrix_figure_names_rows_and_takes_nan() -> None:
    matrix = torch.tensor([[1.0, math.nan], [0.5, 1.0]])
    figure = matrix_figure(matrix, title="", label="", names=["a", "b"], limits=(0, 1))
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == ["a", "b"]
    assert figure.axes[0].texts[1].get_text() == "nan"
    _draw(figure)
    for bad in (torch.zeros(2, 3), torch.zeros(0, 0), torch.zeros(3), torch.zeros(())):
        with pytest.raises(ValueError, match=r"a matrix \[K, K\] and K names are needed"):
            matrix_figure(bad, title="", label="")
    with pytest.raises(ValueError, match="and 1 names"):
        matrix_figure(matrix, title="", label="", names=["a"])


def test_spectrum_figure_has_both_signs_at_their_size() -> None:
    grid = torch.tensor([-10.0, -1.0, 0.0, 1.0, 10.0, 100.0])
    density = torch.tensor([1e-12, 0.5, 1.0, 0.5, 0.1, 0.01])
    figure = spectrum_figure(grid, density, title="Hessian")
    (axes,) = figure.axes
    above, below = axes.lines
    assert list(above.get_xdata()) == [1, 10, 100]
    assert list(above.get_ydata()) == pytest.approx([0.5, 0.1, 0.01])
    assert list(below.get_xdata()) == [10, 1]
    assert math.isnan(below.get_ydata()[0])  # type: ignore[index]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert _legend(figure) == ["λ > 0", "λ < 0, at |λ|"]
    _draw(figure)


def test_spectrum_figure_of_one_sign_or_of_zeros() -> None:
    one = spectrum_figure(torch.arange(1.0, 4), torch.ones(3), title="")
    assert len(one.axes[0].lines) == 1
    _draw(spectrum_figure(torch.arange(3.0), torch.zeros(3), title=""))
    for grid, density in ((torch.ones(2), torch.ones(3)), (torch.ones(0), torch.ones(0))):
        with pytest.raises(ValueError, match=r"a grid \[S\] and a density \[S\] are needed"):
            spectrum_figure(grid, density, title="")


@pytest.mark.parametrize(("linear", "scale"), [(True, "linear"), (False, "log")])
def test_shares_keep_a_linear_axis(linear: bool, scale: str) -> None:
    values = torch.tensor([[0.01, 0.5, 0.9], [0.02, 0.6, 0.9]])
    figure = quantile_bands_figure(
        torch.arange(3), values, ylabel="accuracy", title="members", linear=linear
    )
    assert figure.axes[0].get_yscale() == scale
