"""Figures: what stands in them, and the caps."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from metalearn.tracking import adaptation_figure, regression_figure, task_figure

GREEN, RED = "#009e73", "#d55e00"


def _set(way: int, each: int, channels: int = 1, size: int = 8) -> tuple[Tensor, Tensor]:
    y = torch.arange(way).repeat(each)
    generator = torch.Generator().manual_seed(way * 100 + each)
    return torch.rand(len(y), channels, size, size, generator=generator), y


def _draw(figure: Figure) -> int:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.tell()


def _labels(figure: Figure) -> list[str]:
    return [tick.get_text() for tick in figure.axes[0].get_yticklabels()]


def test_task_figure_marks_right_and_wrong_by_sign_and_colour() -> None:
    support, query = _set(3, 2), _set(3, 2)
    predictions = query[1].clone()
    predictions[4] = 0  # a picture of class 1, the second of its row
    figure = task_figure(support, query, predictions, title="task 7")
    left, right = figure.axes
    assert figure.get_suptitle() == "task 7"
    assert len(left.images) == 6
    assert len(right.images) == 6
    assert len(left.texts) == 0
    marks = [(text.get_text(), to_hex(str(text.get_color()))) for text in right.texts]
    assert marks == [("✓", GREEN)] * 3 + [("✗ 0", RED)] + [("✓", GREEN)] * 2
    frames = [to_hex(p.get_edgecolor()) for p in right.patches if isinstance(p, Rectangle)]
    assert frames == [colour for _, colour in marks]
    assert "5 of 6 right (83%)" in right.get_title(loc="left")
    assert _labels(figure) == ["0", "1", "2"]
    assert left.get_ylabel() == "class"
    assert right.get_xlabel().startswith("✓ right")
    assert 5_000 < _draw(figure) < 200_000


def test_a_pictures_row_and_place_follow_its_class() -> None:
    x, y = torch.zeros(4, 1, 2, 2), torch.tensor([1, 0, 1, 0])
    x += torch.tensor([0.1, 0.2, 0.3, 0.4])[:, None, None, None]
    figure = task_figure((x, y), (x, y), None, title="")
    values = [float(image.get_array()[0, 0]) for image in figure.axes[1].images]  # type: ignore[index]
    assert values == pytest.approx([0.2, 0.4, 0.1, 0.3])
    tops = [image.get_extent()[3] for image in figure.axes[1].images]
    assert tops[0] == tops[1] < tops[2] == tops[3]


def test_support_and_query_pictures_of_a_class_stand_level() -> None:
    figure = task_figure(_set(5, 1), _set(5, 15), None, title="")
    left, right = (axes.get_position() for axes in figure.axes)
    assert (left.y0, left.y1) == (right.y0, right.y1)
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()


def test_task_figure_at_its_caps() -> None:
    query = _set(20, 12)
    figure = task_figure(_set(20, 7), query, query[1], title="20-way")
    assert len(figure.axes) == 2
    assert len(figure.axes[0].images) == 5 * 3
    assert len(figure.axes[1].images) == 5 * 4
    assert figure.axes[0].get_ylabel() == "class (first 5 of 20)"
    assert figure.axes[0].get_title(loc="left") == "support set\n3 of 7 a class"
    title = "query set, 4 of 12 a class\n240 of 240 right (100%)"
    assert figure.axes[1].get_title(loc="left") == title
    assert _draw(figure) < 500_000


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_any_number_of_channels_is_drawn(channels: int) -> None:
    figure = task_figure(_set(2, 1, channels), _set(2, 1, channels), None, title="")
    shape = figure.axes[0].images[0].get_array().shape  # type: ignore[union-attr]
    assert shape == ((8, 8, 3) if channels == 3 else (8, 8))
    assert len(figure.axes[1].texts) == 0
    assert figure.axes[1].get_xlabel() == ""
    assert _draw(figure) > 1_000


def test_a_class_may_lack_query_pictures() -> None:
    x, y = _set(3, 1)
    figure = task_figure((x, y), (x[:1], y[:1]), y[:1], title="")
    assert len(figure.axes[1].images) == 1
    empty = task_figure((x, y), (x[:0], y[:0]), y[:0], title="")
    assert empty.axes[1].get_title(loc="left").strip() == "query set"
    assert _draw(empty) > 1_000


def test_task_figure_refuses_shapes_that_do_not_fit() -> None:
    good, query = _set(2, 1), _set(2, 3)
    with pytest.raises(ValueError, match=r"support: pictures \[N, channels, height, width\]"):
        task_figure((good[0][0], good[1]), query, None, title="")
    with pytest.raises(ValueError, match=r"query: pictures .*, got \[6, 1, 8, 8\] and \[5\]"):
        task_figure(good, (query[0], query[1][:5]), None, title="")
    with pytest.raises(ValueError, match=r"predictions: .* \[6\], is needed, got \[2\]"):
        task_figure(good, query, good[1], title="")


def test_regression_figure_draws_curves_in_order_of_the_input() -> None:
    qx = torch.tensor([[3.0], [1.0], [2.0]])
    support = (torch.tensor([[1.5]]), torch.tensor([[15.0]]))
    figure = regression_figure(support, (qx, 10 * qx), 0 * qx, 10 * qx + 1, title="sine 3")
    (axes,) = figure.axes
    truth, before, after, points = axes.lines
    assert list(truth.get_xdata()) == [1, 2, 3]
    assert list(truth.get_ydata()) == [10, 20, 30]
    assert list(after.get_ydata()) == [11, 21, 31]
    assert points.get_linestyle() == "None"
    assert before.get_linestyle() != after.get_linestyle()
    assert [str(line.get_label()) for line in axes.lines] == [
        "true curve",
        "before adaptation (MSE 467)",
        "after adaptation (MSE 1)",
        "support set (1 points)",
    ]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("input x", "target y")
    assert axes.get_title() == "sine 3"
    assert 5_000 < _draw(figure) < 200_000


def test_a_true_curve_that_is_known_is_drawn_as_densely_as_it_is_given() -> None:
    x = torch.tensor([[2.0], [1.0]])
    fine = torch.linspace(-1, 1, 50)[:, None].flip(0)
    figure = regression_figure((x, x), (x, x), x, x, title="", truth=(fine, fine**2))
    truth, before, *_ = figure.axes[0].lines
    assert list(truth.get_xdata()) == sorted(fine.flatten().tolist())
    assert truth.get_ydata() == pytest.approx([v**2 for v in sorted(fine.flatten().tolist())])
    assert list(before.get_xdata()) == [1, 2] and before.get_marker() == "."


def test_regression_figure_refuses_what_is_no_curve() -> None:
    x = torch.zeros(4, 1)
    with pytest.raises(ValueError, match=r"predictions_after: \[N, 1\] is needed, got \[4, 2\]"):
        regression_figure((x, x), (x, x), x, torch.zeros(4, 2), title="")
    with pytest.raises(ValueError, match="got 3 and 4 for 4"):
        regression_figure((x, x), (x, x), x[:3], x, title="")


def test_adaptation_figure_has_bands_chance_and_the_training_line() -> None:
    mean, half = torch.linspace(0.2, 0.9, 6), torch.full((6,), 0.05)
    figure = adaptation_figure(
        {"validation": (mean, half), "train": (mean + 0.05, half)},
        ylabel="query accuracy",
        title="adaptation",
        chance=0.2,
        trained_steps=3,
    )
    (axes,) = figure.axes
    assert len(axes.collections) == 2
    band = axes.collections[0].get_paths()[0].get_extents()
    assert (band.y0, band.y1) == pytest.approx((0.15, 0.95))
    validation, train, chance, trained = axes.lines
    assert validation.get_ydata() == pytest.approx(mean.double().numpy())
    assert validation.get_color() != train.get_color()
    assert validation.get_marker() != train.get_marker()
    assert list(chance.get_ydata()) == [0.2, 0.2]
    assert list(trained.get_xdata()) == [3, 3]
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["validation", "train", "chance (0.2)", "steps in training (3)"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == (
        "inner steps (0: before adaptation)",
        "query accuracy",
    )
    assert all(float(tick).is_integer() for tick in axes.get_xticks())
    assert 5_000 < _draw(figure) < 200_000


def test_adaptation_figure_without_extras_and_with_many_curves() -> None:
    mean = torch.tensor([0.5, float("nan"), 0.7], requires_grad=True)
    curves = {f"curve {index}": (mean, torch.zeros(3)) for index in range(8)}
    figure = adaptation_figure(curves, ylabel="loss", title="", chance=None, trained_steps=None)
    looks = {(line.get_color(), line.get_linestyle()) for line in figure.axes[0].lines}
    assert len(looks) == 8
    assert _draw(figure) > 1_000
    none = adaptation_figure({}, ylabel="loss", title="", chance=None, trained_steps=None)
    assert none.legends == []


def test_adaptation_figure_refuses_unequal_shapes() -> None:
    with pytest.raises(ValueError, match=r"curves\['v'\]: .* got \[3\] and \[2\]"):
        adaptation_figure(
            {"v": (torch.zeros(3), torch.zeros(2))},
            ylabel="",
            title="",
            chance=None,
            trained_steps=None,
        )


def test_figures_do_without_pyplot() -> None:
    code = "import sys, metalearn.tracking; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
