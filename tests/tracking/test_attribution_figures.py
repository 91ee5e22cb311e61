"""Figures of training examples and of their scores."""

from __future__ import annotations

import io
import math

import pytest
import torch
from matplotlib.figure import Figure

from metalearn.tracking import (
    ShownExample,
    examples_figure,
    foretold_figure,
    run_smoothness_figure,
    self_scores_figure,
    target_figure,
)
from metalearn.tracking.attribution_figures import shortened, signed


def _draw(figure: Figure) -> None:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    assert 3_000 < file.tell() < 300_000


def _examples(
    count: int, sign: int = 1, shape: tuple[int, ...] | None = (1, 8, 8)
) -> list[ShownExample]:
    picture = None if shape is None else torch.linspace(0, 1, math.prod(shape)).view(shape)
    return [ShownExample(i, f"class {i}", sign / (i + 1), picture) for i in range(count)]


def _texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.texts]


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 12), (4, 5, 3)])
def test_a_target_stands_beside_its_examples(shape: tuple[int, ...]) -> None:
    helpful, harmful = _examples(5, 1, shape), _examples(3, -1, shape)
    lines = ["label a", "predicted b"]
    figure = target_figure(torch.ones(shape), lines, helpful, harmful, title="test 7")
    assert sorted(len(axes.images) for axes in figure.axes) == [1, 3, 5]
    texts = _texts(figure)
    assert {"test 7", "label a", "predicted b", "class 4", "+0.2", "−1", "no. 2"} <= set(texts)
    for image in (image for axes in figure.axes for image in axes.images):
        left, right, bottom, top = image.get_extent()
        assert (right - left) / (bottom - top) == pytest.approx(shape[2] / shape[1])
    _draw(figure)


def test_no_example_is_said_and_figures_keep_their_width() -> None:
    figure = target_figure(torch.ones(1, 8, 8), ["label a"], _examples(2), [], title="t")
    assert _texts(figure).count("none") == 1
    assert figure.get_size_inches()[0] == 5.2
    assert (
        target_figure(torch.ones(1, 8, 8), [], _examples(9), [], title="").get_size_inches()[0] > 7
    )
    _draw(target_figure(torch.ones(1, 8, 8), [], [], [], title=""))


def test_what_is_no_picture_is_bars_in_order() -> None:
    figure = target_figure(
        None, ["label a"], _examples(2, 1, None), _examples(3, -1, None), title="t"
    )
    (axes,) = figure.axes
    widths = [bar.get_width() for bar in axes.patches]
    assert widths == pytest.approx([1, 1 / 2, -1 / 3, -1 / 2, -1])
    names = [tick.get_text() for tick in axes.get_yticklabels()]
    assert names[:3] == ["no. 0: class 0", "no. 1: class 1", "no. 2: class 2"]
    _draw(figure)
    _draw(target_figure(None, [], [], [], title="nothing"))


def test_suspects_are_drawn_in_rows() -> None:
    figure = examples_figure(_examples(10), title="suspects")
    assert sum(len(axes.images) for axes in figure.axes) == 10
    assert len(figure.axes) == 2
    _draw(figure)
    assert len(examples_figure(_examples(4, 1, None), title="").axes[0].patches) == 4
    with pytest.raises(ValueError, match="at least one example is needed"):
        examples_figure([], title="")


def test_labels_are_no_mathematics_and_are_cut() -> None:
    label = "$\\frac{$ of a\nlong name that goes on"
    example = _examples(1)[0]._replace(label=label)
    _draw(target_figure(example.picture, [label], [example], [], title=label))
    bare = example._replace(picture=None)
    _draw(target_figure(None, [label], [bare], [], title=label))
    assert shortened(label) == "$\\frac{$ of a long …"
    assert shortened("a\x00\ud800\x1b[1m b") == "a���[1m b"
    assert [signed(x) for x in (0.01234, -0.00003, 2.0)] == ["+0.012", "−3e-05", "+2"]


def test_predictions_stand_against_outcomes_target_by_target() -> None:
    generator = torch.Generator().manual_seed(0)
    outcomes = torch.randn(8, 3, generator=generator)
    outcomes[:, 2] = 1.0
    right = 5 * outcomes.T + torch.tensor([[100.0], [0.0], [0.0]])
    predicted = {"right": right, "wrong": -right, "$x$": torch.randn(3, 8, generator=generator)}
    told = {"right": (1.0, math.nan), "wrong": (-1.0, 0.1), "$x$": (0.1, 0.2)}
    figure = foretold_figure(predicted, outcomes, told, title="t")
    first, second, third = (axes for axes in figure.axes if axes.axison)
    for axes, sign in ((first, 1), (second, -1)):
        (points,) = (line for line in axes.lines if line.get_marker() == "o")
        assert len(points.get_xdata()) == 16  # the third target has nothing to foretell
        assert list(points.get_xdata()) == pytest.approx(
            [sign * y for y in points.get_ydata()], abs=1e-5
        )
    titles = [axes.get_title() for axes in (first, second, third)]
    assert titles == ["right\n1.00", "wrong\n-1.00 ± 0.10", "$x$\n0.10 ± 0.20"]
    _draw(figure)
    for bad in ({}, {"a": torch.ones(3, 7)}):
        with pytest.raises(ValueError, match=r"predictions \[R, M\], outcomes \[M, R\]"):
            foretold_figure(bad, outcomes, dict.fromkeys(bad, (0.0, 0.0)), title="")
    with pytest.raises(ValueError, match="a correlation for each method"):
        foretold_figure({"right": right}, outcomes, {}, title="")


@pytest.mark.parametrize(
    "walk", [torch.rand(11) + 1, torch.rand(4, 11) + 1, 10 ** torch.arange(9.0)]
)
def test_smoothness_has_a_line_at_two(walk: torch.Tensor) -> None:
    steps, products = torch.tensor([0, 5, 10]), torch.tensor([0.5, 1.5, 3.0])
    figure = run_smoothness_figure((steps, products), walk, title="t")
    above, below = figure.axes
    assert any(list(line.get_ydata()) == [2, 2] for line in above.lines)
    assert above.get_ylim()[1] > 3
    assert below.get_yscale() == ("log" if walk.max() > 100 else "linear")
    left, right = below.get_xlim()
    assert left > right  # the end of the run stands right
    assert len(below.collections) == (walk.dim() > 1)
    _draw(figure)


def test_smoothness_of_one_kind_and_of_what_is_not_finite() -> None:
    walk = torch.tensor([1.0, math.inf, math.nan])
    _draw(run_smoothness_figure(None, walk, title=""))
    _draw(run_smoothness_figure(None, torch.full((2, 3), math.nan), title=""))
    products = torch.tensor([math.nan, -1.0])
    figure = run_smoothness_figure((torch.arange(2), products), None, title="")
    assert len(figure.axes) == 1 and figure.axes[0].get_ylim()[0] <= -1
    _draw(figure)
    with pytest.raises(ValueError, match="curvature or walk_norms is needed"):
        run_smoothness_figure(None, None, title="")
    with pytest.raises(ValueError, match=r"steps \[S\] and as many products"):
        run_smoothness_figure((torch.arange(3), products), None, title="")


def test_histograms_mark_the_highest() -> None:
    values = torch.arange(50.0)
    values[3] = math.nan
    figure = self_scores_figure({"a": values, "b": values.nan_to_num(0)}, marked=5, title="t")
    first, second = (axes for axes in figure.axes if axes.axison)
    assert first.lines[0].get_xdata()[0] == 45
    assert first.get_title() == "a\n1 not finite" and second.get_title() == "b"
    _draw(figure)
    _draw(self_scores_figure({"none": torch.full((3,), math.nan)}, marked=5, title=""))
    _draw(self_scores_figure({"one": torch.ones(1)}, marked=5, title=""))
    least = torch.tensor([0.1, 0.1 + 2**-56, 0.1], dtype=torch.float64)  # rounding apart
    for size in (1.0, -1.0, 1e30, 0.0):
        _draw(self_scores_figure({"alike": size * least}, marked=5, title=""))
    with pytest.raises(ValueError, match="at least one method is needed"):
        self_scores_figure({}, marked=5, title="")
