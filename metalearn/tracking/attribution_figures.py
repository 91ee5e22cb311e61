"""Figures of training examples: which helped and harmed a target, and which are suspected.

Axes: pictures [channels, height, width] in 0..1.

Texts of labels are shown as they are, no part of them is read as mathematics.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from unicodedata import category

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from metalearn.tracking.style import BLUE, DPI, GREY, ORANGE, plain_axes

__all__ = ["ShownExample", "examples_figure", "readable", "shortened", "signed", "target_figure"]

_WIDTH = 5.2  # inches, that of all figures
_PICTURE, _GAP = 0.74, 0.1  # inches
_HEADING, _CAPTION, _TITLE = 0.3, 0.7, 0.5  # inches: above a row, below it, above all
_LEFT = 1.6  # inches, of a target beside its rows
_UNSHOWN = ("Cc", "Cs")
_LONGEST = 20  # characters of a label
_HELPFUL = "most helpful: the loss rises without"
_HARMFUL = "most harmful: the loss falls without"


class ShownExample(NamedTuple):
    """A training example and its score."""

    row: int
    """Its place in the training part."""
    label: str
    score: float
    picture: Tensor | None = None
    """``[channels, height, width]``; None for what is no picture."""


def target_figure(
    picture: Tensor | None,
    lines: Sequence[str],
    helpful: Sequence[ShownExample],
    harmful: Sequence[ShownExample],
    *,
    title: str,
) -> Figure:
    """A target, and beside it the examples that helped and that harmed it most.

    Without pictures, of the target or of an example, these are bars, by their row and label.

    Args:
        picture: of the target, or None.
        lines: what is said of the target, such as its label, prediction and loss.
        helpful: the most helpful first.
        harmful: the most harmful first.
        title: stands above.
    """
    if picture is None or any(example.picture is None for example in (*helpful, *harmful)):
        said = "     ".join(map(shortened, lines))
        return _bars([*helpful, *reversed(harmful)], title=f"{shortened(title, 70)}\n{said}")
    columns = max(len(helpful), len(harmful), 4)
    heights = [_HEADING + _PICTURE + _CAPTION] * 2
    figure = _blank(columns, heights=heights, left=_LEFT, title=title)
    height = figure.get_size_inches()[1]
    for row, (heading, examples) in enumerate(((_HELPFUL, helpful), (_HARMFUL, harmful))):
        top = height - _TITLE - row * (_HEADING + _PICTURE + _CAPTION)
        _text(figure, _LEFT, top, heading, size=10.5)
        colour = (BLUE, ORANGE)[row]
        _row(figure, examples, left=_LEFT, top=top - _HEADING, colour=colour, form=signed)
    side = 1.2
    axes = _placed(figure, 0.15, height - _TITLE - _HEADING, side, side)
    _draw(axes, picture, 0.0, 1.0, "black")
    axes.set(xlim=(0, 1), ylim=(1, 0))
    below = height - _TITLE - _HEADING - side - 0.12
    for number, line in enumerate(lines):
        _text(figure, 0.15, below - 0.2 * number, shortened(line), size=10)
    return figure


def examples_figure(examples: Sequence[ShownExample], *, title: str) -> Figure:
    """Examples in the order given, with label, score and row; bars where they are no pictures.

    Args:
        examples: at least one.
        title: stands above.

    Raises:
        ValueError: no examples.
    """
    if not examples:
        raise ValueError("examples_figure: at least one example is needed")
    if any(example.picture is None for example in examples):
        return _bars(list(examples), title=shortened(title, 70))
    columns = int((_WIDTH - 0.15) / (_PICTURE + _GAP))
    lines = [examples[i : i + columns] for i in range(0, len(examples), columns)]
    figure = _blank(columns, heights=[_PICTURE + _CAPTION] * len(lines), left=0.15, title=title)
    height = figure.get_size_inches()[1]
    for number, line in enumerate(lines):
        top = height - _TITLE - number * (_PICTURE + _CAPTION)
        _row(figure, line, left=0.15, top=top, colour=GREY, form="{:.4g}".format)
    return figure


def signed(score: float) -> str:
    """A score in a few characters, with its sign: ``+0.012``, ``−3.1e-05``."""
    return f"{score:+.2g}".replace("-", "−", 1) if score < 0 else f"{score:+.2g}"


def shortened(text: str, longest: int = _LONGEST) -> str:
    """One line of a text, cut where it is too long."""
    line = " ".join(readable(text).split())
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


def readable(text: str) -> str:
    """A text without what no font and no page can show: control characters and half characters."""
    return "".join("�" if category(c) in _UNSHOWN and not c.isspace() else c for c in text)


def _blank(columns: int, *, heights: Sequence[float], left: float, title: str) -> Figure:
    # Placed by hand: all figures of one kind look alike, whatever stands in them.
    width = max(_WIDTH, left + columns * (_PICTURE + _GAP))
    height = _TITLE + sum(heights)
    figure = Figure(figsize=(width, height), dpi=DPI)
    _text(figure, 0.15, height - 0.1, shortened(title, int(width / 0.088)), size=11)
    return figure


def _placed(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Bare axes, in inches from the lower left corner of the figure."""
    across, tall = figure.get_size_inches()
    box = (left / across, (top - height) / tall, width / across, height / tall)
    axes: Axes = figure.add_axes(box)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    return axes


def _row(
    figure: Figure,
    examples: Sequence[ShownExample],
    *,
    left: float,
    top: float,
    colour: str,
    form: Callable[[float], str],
) -> None:
    """Pictures beside one another, one Axes for all; label, score and row below each."""
    if not examples:
        _text(figure, left, top - 0.1, "none", size=10.5, color=GREY)
        return
    step = 1 + _GAP / _PICTURE
    span = len(examples) * step - _GAP / _PICTURE
    axes = _placed(figure, left, top, span * _PICTURE, _PICTURE)
    for number, example in enumerate(examples):
        assert example.picture is not None
        _draw(axes, example.picture, number * step, 1.0, colour)
        at = left + number * step * _PICTURE
        _text(figure, at, top - _PICTURE - 0.05, shortened(example.label, 9), size=10)
        _text(figure, at, top - _PICTURE - 0.22, form(example.score), size=10, weight="bold")
        _text(figure, at, top - _PICTURE - 0.39, f"no. {example.row}", size=10, color=GREY)
    axes.set(xlim=(0, span), ylim=(1, 0))


def _draw(axes: Axes, picture: Tensor, left: float, side: float, colour: str) -> None:
    """A picture in a square, whole and not stretched."""
    values = picture.detach().cpu().float().clamp(0, 1)
    shown = values.permute(1, 2, 0) if len(values) == 3 else values.mean(0)
    tall, wide = (side * n / max(shown.shape[:2]) for n in shown.shape[:2])
    x, y = left + (side - wide) / 2, (side - tall) / 2
    axes.imshow(
        shown.numpy(),
        cmap="gray",
        vmin=0,
        vmax=1,
        extent=(x, x + wide, y + tall, y),
        interpolation="nearest",
        aspect="auto",
    )
    frame = Rectangle((left, 0), side, side, fill=False, ec=colour, lw=2, clip_on=False)
    axes.add_patch(frame)


def _bars(examples: Sequence[ShownExample], *, title: str) -> Figure:
    """One bar for each example, positive ones blue and negative ones orange."""
    figure = Figure(
        figsize=(_WIDTH, 1.5 + 0.3 * max(len(examples), 1)), layout="constrained", dpi=DPI
    )
    axes = figure.subplots()
    plain_axes(axes)
    scores = [example.score for example in examples]
    colours = [BLUE if score > 0 else ORANGE for score in scores]
    axes.barh(range(len(scores)), scores, color=colours, height=0.7)
    names = [f"no. {e.row}: {shortened(e.label)}" for e in examples]
    axes.set_yticks(range(len(scores)), names, parse_math=False)
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    axes.axvline(0, color=GREY, lw=1)
    axes.set_xlabel("score")
    axes.set_title(title, fontsize=11, parse_math=False, loc="left")
    return figure


def _text(figure: Figure, left: float, top: float, text: str, *, size: float, **look: str) -> None:
    across, tall = figure.get_size_inches()
    style: dict[str, Any] = {"fontsize": size, "va": "top", "parse_math": False, **look}
    figure.text(left / across, top / tall, text, **style)
