"""Pieces of an HTML page: texts that stay texts, pictures inside the page, tables.

Axes: pictures [channels, height, width] in 0..1.
"""

from __future__ import annotations

import base64
import html
import io
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from metalearn.tracking.attribution_figures import readable, shortened

__all__ = ["chart", "escaped", "facts_table", "picture_tag", "table"]

_SIDE = 96  # pixels, of the longer side of a picture; larger ones are shrunk
_SMALL = 48  # pixels, below which single ones are shown as squares
_RESOLUTION = 144  # dots per inch of a chart


def escaped(text: object) -> str:
    """A text that is no markup, whatever stands in it."""
    return html.escape(readable(str(text)), quote=True)


def picture_tag(picture: Tensor, words: str, *, kind: str = "") -> str:
    """A picture as an ``<img>`` that needs no other file.

    Args:
        picture: one or three channels; of others the mean is shown.
        words: for who cannot see it.
        kind: further classes of the style.
    """
    values = (255 * picture.detach().cpu().float().clamp(0, 1)).round().byte()
    if len(values) == 3:
        image = Image.fromarray(values.permute(1, 2, 0).contiguous().numpy())
    else:
        image = Image.fromarray(values.float().mean(0).round().byte().numpy())
    small = max(image.size) <= _SMALL
    image.thumbnail((_SIDE, _SIDE), Image.Resampling.BOX)
    source = _encoded(image, lossless=small)
    kinds = " ".join(["picture", *["small"] * small, *[kind] * bool(kind)])
    return f'<img class="{kinds}" alt="{escaped(words)}" src="{source}">'


def chart(figure: Figure, words: str) -> str:
    """A figure inside the page, on white; its memory is given back.

    Args:
        figure: is emptied.
        words: for who cannot see it.
    """
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=_RESOLUTION, facecolor="white")
    figure.clear()
    return f'<div class="chart"><img alt="{escaped(words)}" src="{_data(file, "png")}"></div>'


def table(
    heads: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    numbers: Sequence[bool] | None = None,
    links: Callable[[str], str] | None = None,
) -> str:
    """A table whose cells are escaped.

    Args:
        heads: of the columns.
        rows: of cells.
        numbers: of each column, whether it is of numbers, which stand to the right; None says that
            all are but for the first.
        links: of a first cell, the name of the page's section that it leads to.
    """
    if numbers is None:
        numbers = [place > 0 for place in range(len(heads))]
    kinds = [' class="number"' if right else ' class="text"' for right in numbers]
    head = "".join(f"<th{kind}>{_breakable(text)}</th>" for kind, text in zip(kinds, heads))
    body = []
    for row in rows:
        cells = [escaped(text) for text in row]
        if links is not None:
            cells[0] = f'<a href="#{escaped(links(row[0]))}">{cells[0]}</a>'
        inner = "".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds, cells))
        body.append(f"<tr>{inner}</tr>")
    return _scrolling(f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody>")


def facts_table(facts: Mapping[str, Any]) -> str:
    """Nested settings as a table of two columns, names joined by dots."""
    rows = "".join(
        f'<tr><td>{escaped(name)}</td><td class="long">{escaped(value)}</td></tr>'
        for name, value in _flat(facts, "")
    )
    return _scrolling(f"<tbody>{rows}</tbody>")


def _breakable(head: str) -> str:
    """A head that may be broken after the dots, slashes and underscores of a name."""
    return re.sub(r"([a-z][._/])(?=\w)", r"\1<wbr>", escaped(head))


def _scrolling(inner: str) -> str:
    return f'<div class="wide"><table>{inner}</table></div>'


def _flat(facts: Mapping[str, Any], prefix: str) -> Iterable[tuple[str, str]]:
    for name, value in facts.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            yield f"{prefix}{name}", shortened(text, 400)


def _encoded(image: Image.Image, *, lossless: bool) -> str:
    """As PNG; photographs as JPEG where that halves them."""
    exact, short = io.BytesIO(), io.BytesIO()
    image.save(exact, format="PNG", optimize=True)
    if not lossless:
        image.save(short, format="JPEG", quality=88)
        if 2 * short.tell() < exact.tell():
            return _data(short, "jpeg")
    return _data(exact, "png")


def _data(file: io.BytesIO, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
