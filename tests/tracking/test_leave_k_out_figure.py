"""What goes without the most helpful examples, as a figure: a line each, counts in their order."""

from __future__ import annotations

import pytest
import torch

from metalearn.tracking.leave_k_out_figure import leave_k_out_figure


@pytest.mark.parametrize("flips", [True, False])
def test_a_line_of_each_method_in_the_order_of_counts(flips: bool) -> None:
    names = [f"method {number}" for number in range(8)] + ["chance"]
    changes = {name: torch.rand(5, 3) + place for place, name in enumerate(names)}
    shares = {name: torch.tensor([0.2, 0.0, 1.0]) for name in names} if flips else {}
    figure = leave_k_out_figure([50, 10, 100], changes, shares, chance="chance", title="a title")
    assert len(figure.axes) == 1 + flips
    lines = figure.axes[0].lines[: len(names)]
    for line, values in zip(lines, changes.values()):
        assert list(line.get_xdata()) == [10, 50, 100]
        assert line.get_ydata() == pytest.approx(values.mean(0)[[1, 0, 2]].numpy())
    looks = {(line.get_color(), line.get_linestyle()) for line in lines}
    assert len(looks) == len(names)
    if flips:
        assert list(figure.axes[1].lines[0].get_ydata()) == pytest.approx([0, 20, 100])
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == [*names[:-1], "by chance"]
