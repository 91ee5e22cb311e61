"""Figures of what shapes a training: what is drawn, what is refused.

Axes: N examples, K steps, n pictures.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from metalearn.tracking import example_weights_figure, pictures_figure, schedule_figure


def test_weights_are_counted_and_wrong_labels_stand_apart() -> None:
    weights = torch.tensor([0.0, 0.5, 0.5, 1.0, torch.nan])
    figure = example_weights_figure(weights, title="t")
    assert sum(bar.get_height() for bar in figure.axes[0].patches) == 4  # type: ignore[attr-defined]
    wrong = torch.tensor([True, False, False, False, True])
    figure = example_weights_figure(weights, wrong=wrong, title="t")
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["right label (3)", "wrong label (2)"]
    figure.draw_without_rendering()


def test_a_schedule_is_a_line_and_one_rate_holds_for_all_steps() -> None:
    rates = {"learnt": torch.tensor([0.3, 0.2, 0.1]), "constant": torch.tensor(0.2)}
    axes = schedule_figure(rates, title="t").axes[0]
    shown: Any = [line.get_ydata() for line in axes.lines]
    assert [list(map(float, row)) for row in shown] == [
        pytest.approx([0.3, 0.2, 0.1]),
        pytest.approx([0.2] * 3),
    ]


@pytest.mark.parametrize(("count", "channels"), [(3, 1), (12, 3), (130, 1)])
def test_pictures_stand_in_rows_of_ten_over_their_own_range(count: int, channels: int) -> None:
    inputs = torch.linspace(-3, 5, count * channels * 16).reshape(count, channels, 4, 4)
    figure = pictures_figure(inputs, [str(i) for i in range(count)], title="t")
    shown = [axes for axes in figure.axes if axes.images]
    assert len(shown) == min(count, 100)
    assert [axes.get_title() for axes in shown[:3]] == ["0", "1", "2"]
    picture: Any = shown[0].images[0].get_array()
    assert (float(picture.min()), float(picture.max())) == (0, 1)
    figure.draw_without_rendering()


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"example_weights_figure: weights \[N\], wrong \[N\]"):
        example_weights_figure(torch.ones(3), wrong=torch.ones(2), title="t")
    with pytest.raises(ValueError, match=r"schedule_figure: rates \[K\] are needed"):
        schedule_figure({"a": torch.ones(2, 2)}, title="t")
    with pytest.raises(ValueError, match=r"pictures_figure: \[n, 1 or 3, height, width\]"):
        pictures_figure(torch.ones(2, 1, 4, 4), ["a"], title="t")
