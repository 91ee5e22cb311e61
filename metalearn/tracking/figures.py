"""Figures of a run: one task's pictures, one regression task, accuracy against inner steps.

Axes: N samples of a task, K inner steps, C classes; pictures [N, channels, height, width] in 0..1.

Right and wrong differ by their mark as well as by their colour.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from metalearn.tracking.style import (
    BLUE,
    CYCLE,
    DPI,
    FONT,
    GREEN,
    GREY,
    MARKERS,
    ORANGE,
    RED,
    legend_below,
    numpy_of,
    one_panel,
)

__all__ = ["adaptation_figure", "regression_figure", "task_figure"]

_CLASSES, _SHOTS, _QUERIES = 5, 3, 4  # the most that a task's figure shows
_FEW = 50  # query points that are marked
_GAP, _CAPTION = 0.12, 0.34  # around a picture and below it, in picture widths
_PICTURE, _MARGIN = 0.52, 0.62  # inches: a picture's width, the space left of the first


def task_figure(
    support: tuple[Tensor, Tensor],
    query: tuple[Tensor, Tensor],
    predictions: Tensor | None,
    *,
    title: str,
) -> Figure:
    """One classification task: support pictures left, query pictures right, one row a class.

    A query picture has a green frame and ``✓`` if its prediction is right, a red frame and ``✗ k``
    if class k was predicted. At most 5 classes, 3 shots and 4 query pictures a class are drawn;
    the accuracy in the heading counts all.

    Args:
        support: pictures ``[N, channels, height, width]`` in 0..1 and classes ``[N]``.
        query: the same, of other pictures of these classes.
        predictions: predicted classes ``[N of query]``, or None for no marks.
        title: stands above both parts.

    Raises:
        ValueError: shapes that contradict one another.
    """
    (x, y), (qx, qy) = _pictures("support", support), _pictures("query", query)
    if predictions is not None and predictions.shape != qy.shape:
        raise ValueError(
            f"predictions: one class for each query picture, {list(qy.shape)}, is needed, "
            f"got {list(predictions.shape)}"
        )
    guesses = None if predictions is None else predictions.detach().cpu()
    all_classes = torch.unique(torch.cat([y, qy])).tolist()
    classes = all_classes[:_CLASSES]
    left = [torch.nonzero(y == c).flatten().tolist() for c in classes]
    right = [torch.nonzero(qy == c).flatten().tolist() for c in classes]
    shots, queries = _most(left, _SHOTS), _most(right, _QUERIES)

    figure, axes = _two_panels(shots, queries, len(classes))
    width, height = figure.get_size_inches()
    figure.suptitle(title, x=0.15 / width, y=1 - 0.15 / height, ha="left", fontsize=11.5)
    _grid(axes[0], x, left, shots, marks=None)
    marks = None if guesses is None else _marks(qy, guesses)
    _grid(axes[1], qx, right, queries, marks=marks)
    axes[0].set_yticks([_top(row) + 0.5 for row in range(len(classes))], classes, fontsize=10.5)
    more = "" if len(classes) == len(all_classes) else f" (first {_CLASSES} of {len(all_classes)})"
    axes[0].set_ylabel(f"class{more}", fontsize=10.5)
    score = None
    if guesses is not None and len(qy):
        hits = int((guesses == qy).sum())
        score = f"{hits} of {len(qy)} right ({100 * hits / len(qy):.0f}%)"
        text = {"fontsize": 10.5, "fontfamily": FONT}
        axes[1].set_xlabel("✓ right   ✗ k  predicted as k", text, loc="left")
    axes[0].set_title(_heading("support set", left, shots), loc="left", fontsize=10.5)
    axes[1].set_title(_heading("query set", right, queries, score), loc="left", fontsize=10.5)
    return figure


def regression_figure(
    support: tuple[Tensor, Tensor],
    query: tuple[Tensor, Tensor],
    predictions_before: Tensor,
    predictions_after: Tensor,
    *,
    title: str,
    truth: tuple[Tensor, Tensor] | None = None,
) -> Figure:
    """One regression task: support points, the true curve, predictions before and after adaptation.

    Args:
        support: inputs ``[N, 1]`` and targets ``[N, 1]``.
        query: the same.
        predictions_before: ``[N of query, 1]``, from the parameters before adaptation.
        predictions_after: ``[N of query, 1]``, from the adapted ones.
        title: stands above.
        truth: inputs ``[S, 1]`` and targets of the true curve; None takes the query points.

    Raises:
        ValueError: anything but one number a sample.
    """
    x, y = _column("support inputs", support[0]), _column("support targets", support[1])
    qx, qy = _column("query inputs", query[0]), _column("query targets", query[1])
    before = _column("predictions_before", predictions_before)
    after = _column("predictions_after", predictions_after)
    if not len(qx) == len(qy) == len(before) == len(after):
        raise ValueError(
            "regression_figure: one prediction for each query point is needed, got "
            f"{len(before)} and {len(after)} for {len(qx)}"
        )
    order = np.argsort(qx)
    figure, axes = one_panel(title)
    tx, ty = (qx, qy) if truth is None else (_column("truth", part) for part in truth)
    along = np.argsort(tx)
    axes.plot(tx[along], ty[along], color="black", lw=1.4, label="true curve")
    mark = "." if truth is not None and len(qx) <= _FEW else ""
    for name, values, colour, style in (
        ("before adaptation", before, ORANGE, "--"),
        ("after adaptation", after, BLUE, "-"),
    ):
        error = float(np.mean((values - qy) ** 2)) if len(qy) else float("nan")
        label = f"{name} (MSE {error:.3g})"
        look: dict[str, Any] = {"color": colour, "lw": 1.8, "ls": style, "marker": mark}
        axes.plot(qx[order], values[order], label=label, **look)
    label = f"support set ({len(x)} points)"
    axes.plot(x, y, "o", color=RED, ms=8, mec="white", mew=1, label=label, zorder=5)
    axes.set(xlabel="input x", ylabel="target y")
    legend_below(figure, columns=2)
    return figure


def adaptation_figure(
    curves: Mapping[str, tuple[Tensor, Tensor]],
    *,
    ylabel: str,
    title: str,
    chance: float | None,
    trained_steps: int | None,
) -> Figure:
    """A metric against the inner step, with its 95% band.

    Args:
        curves: name to (mean ``[K+1]``, half width of the 95% interval ``[K+1]``); entry k belongs
            to the parameters after k inner steps, so entry 0 stands before adaptation.
        ylabel: the metric and its unit.
        title: stands above.
        chance: the level of guessing, drawn dashed; None draws none.
        trained_steps: inner steps used in training, marked by a thin line; None marks none.

    Raises:
        ValueError: a mean and a half width of different shapes.
    """
    figure, axes = one_panel(title)
    for index, (name, (mean, halfwidth)) in enumerate(curves.items()):
        if mean.ndim != 1 or mean.shape != halfwidth.shape:
            raise ValueError(
                f"curves[{name!r}]: mean and half width of one shape [K+1] are needed, "
                f"got {list(mean.shape)} and {list(halfwidth.shape)}"
            )
        middle, half = numpy_of(mean), numpy_of(halfwidth)
        steps = np.arange(len(middle))
        colour, marker = CYCLE[index % len(CYCLE)], MARKERS[index % len(MARKERS)]
        style = "-" if index < len(CYCLE) else "--"
        axes.fill_between(steps, middle - half, middle + half, color=colour, alpha=0.2, lw=0)
        axes.plot(steps, middle, color=colour, marker=marker, ms=5, lw=2, ls=style, label=name)
    if chance is not None:
        axes.axhline(chance, color=GREY, lw=1.2, ls=(0, (4, 3)), label=f"chance ({chance:.3g})")
    if trained_steps is not None:
        label = f"steps in training ({trained_steps})"
        axes.axvline(trained_steps, color=GREY, lw=1, ls=":", label=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="inner steps (0: before adaptation)", ylabel=ylabel)
    legend_below(figure, columns=3)
    return figure


def _pictures(name: str, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    x, y = batch[0].detach().cpu().float(), batch[1].detach().cpu()
    if x.ndim != 4 or y.shape != x.shape[:1]:
        raise ValueError(
            f"{name}: pictures [N, channels, height, width] and classes [N] are needed, "
            f"got {list(x.shape)} and {list(y.shape)}"
        )
    return x, y


def _column(name: str, values: Tensor) -> np.ndarray:
    if values.ndim not in (1, 2) or (values.ndim == 2 and values.shape[1] != 1):
        raise ValueError(f"{name}: [N, 1] is needed, got {list(values.shape)}")
    return numpy_of(values.reshape(-1))


def _most(rows: list[list[int]], cap: int) -> int:
    return max(1, min(cap, max((len(row) for row in rows), default=0)))


def _heading(part: str, rows: list[list[int]], columns: int, score: str | None = None) -> str:
    longest = max((len(row) for row in rows), default=0)
    shown = f"{columns} of {longest} a class" if longest > columns else None
    if score is not None and shown is not None:
        part, shown = f"{part}, {shown}", None
    return f"{part}\n{score or shown or ''}"  # always two lines: both headings stand level


def _marks(classes: Tensor, guesses: Tensor) -> list[tuple[str, str]]:
    return [
        ("✓", GREEN) if guess == truth else (f"✗ {guess}", RED)
        for guess, truth in zip(guesses.tolist(), classes.tolist(), strict=True)
    ]


def _two_panels(shots: int, queries: int, classes: int) -> tuple[Figure, tuple[Axes, Axes]]:
    # Placed by hand: an automatic layout gives the two sides different scales, and then a class's
    # support and query pictures no longer stand in one row.
    below, above, between = 0.45, 0.95, 0.55
    left, right, height = (
        _PICTURE * size for size in (_width(shots), _width(queries), _top(classes))
    )
    # A narrow figure would cut off its own headings.
    width, tall = max(4.6, _MARGIN + left + between + right + 0.15), below + height + above
    figure = Figure(figsize=(width, tall), dpi=DPI)
    start = (_MARGIN + left + between) / width
    return figure, (
        figure.add_axes((_MARGIN / width, below / tall, left / width, height / tall)),
        figure.add_axes((start, below / tall, right / width, height / tall)),
    )


def _width(columns: int) -> float:
    return columns * (1 + _GAP) - _GAP


def _top(row: int) -> float:
    return row * (1 + _GAP + _CAPTION)


def _grid(
    axes: Axes,
    pictures: Tensor,
    rows: list[list[int]],
    columns: int,
    *,
    marks: list[tuple[str, str]] | None,
) -> None:
    """Draw pictures ``rows[r][c]``, each one unit wide: one Axes, not one for every picture."""
    for row, members in enumerate(rows):
        for column, index in enumerate(members[:columns]):
            left, top = column * (1 + _GAP), _top(row)
            axes.imshow(
                _drawable(pictures[index]),
                cmap="gray",
                vmin=0,
                vmax=1,
                extent=(left, left + 1, top + 1, top),
                interpolation="nearest",
            )
            text, colour = marks[index] if marks is not None else ("", "#BBBBBB")
            frame = Rectangle(
                (left, top), 1, 1, fill=False, ec=colour, lw=2.5 if text else 0.8, clip_on=False
            )
            axes.add_patch(frame)
            if text:
                _caption(axes, left + 0.5, top + 1 + _GAP / 3, text, colour)
    axes.set(xlim=(0, _width(columns)), ylim=(_top(len(rows)), 0), aspect="auto")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def _caption(axes: Axes, x: float, y: float, text: str, colour: str) -> None:
    style = {"fontsize": 10, "fontweight": "bold", "fontfamily": FONT}
    axes.text(x, y, text, style, color=colour, ha="center", va="top")


def _drawable(picture: Tensor) -> np.ndarray:
    # Colour needs three channels; any other number is shown as grey.
    values = picture.clamp(0, 1)
    if len(values) == 3:
        return values.permute(1, 2, 0).numpy()
    return values.mean(dim=0).numpy()
