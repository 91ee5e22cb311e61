"""Parts that pages of attributions share: a target beside its examples.

Axes: R targets, N examples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from metalearn.attribution.gallery import Gallery
from metalearn.pages import escaped, picture_tag
from metalearn.tracking.attribution_figures import ShownExample, shortened, signed

__all__ = ["example_row", "helped_and_harmed", "target_article"]


def target_article(
    gallery: Gallery, best: str, row: int, further: Sequence[str] = ()
) -> Iterator[str]:
    """A target, and the examples that helped and harmed it by the best method and by others.

    Args:
        gallery: of which it is.
        best: the method that is shown first.
        row: of the target.
        further: lines that are told of it.
    """
    others = [name for name in gallery.findings.scores if name != best]
    lines = [*gallery.lines(row), *further]
    picture = gallery.target_picture(row)
    words = " ".join([gallery.title(row), *lines])
    tag = "" if picture is None else picture_tag(picture, words, kind="of-target")
    facts = "".join(f"<span>{escaped(line)}</span>" for line in lines)
    wrong = '<span class="wrong">✗ wrong</span>' if gallery.is_wrong(row) else ""
    yield '<article class="target"><div class="beside"><div class="head">' + tag
    heading = f"<h3>{escaped(gallery.title(row))}</h3>"
    yield f'<div>{heading}<p class="facts">{facts}{wrong}</p></div></div>'
    yield f"<div>{_by(gallery, best, row)}"
    if others:
        inner = "".join(f"<h3>{escaped(n)}</h3>{_by(gallery, n, row)}" for n in others)
        more = "the other method" if len(others) == 1 else f"the {len(others)} other methods"
        yield f"<details><summary>By {more}</summary>{inner}</details>"
    yield "</div></div></article>"


def _by(gallery: Gallery, method: str, row: int) -> str:
    return helped_and_harmed(gallery.helpful(method, row), gallery.harmful(method, row))


def helped_and_harmed(
    helpful: list[ShownExample],
    harmful: list[ShownExample],
    *,
    meaning: tuple[str, str] = (
        "leaving one out raises the loss",
        "leaving one out lowers the loss",
    ),
) -> str:
    """Two rows, the first of what helped; ``meaning`` says what a high and a low score mean."""
    return (
        f"<h4>Most helpful: {meaning[0]}</h4>"
        f'<div class="helps">{example_row(helpful)}</div>'
        f"<h4>Most harmful: {meaning[1]}</h4>"
        f'<div class="harms">{example_row(harmful)}</div>'
    )


def example_row(examples: list[ShownExample], *, signs: bool = True) -> str:
    """Pictures in a row, or bars where there are none."""
    if not examples:
        return '<p class="soft">None.</p>'
    form = signed if signs else "{:.4g}".format
    largest = max((abs(e.score) for e in examples if math.isfinite(e.score)), default=0.0) or 1.0
    cells = []
    for example in examples:
        row, label, score, picture = example
        name = escaped(shortened(label, 40))
        if picture is None:
            share = min(100 * abs(score) / largest, 100)
            bar = f'<td class="bar"><i style="width:{share:.1f}%"></i></td>'
            shown = f'<td class="number">{form(score)}</td>'
            cells.append(f'<tr><td>no. {row}</td><td class="name">{name}</td>{shown}{bar}</tr>')
            continue
        tag = picture_tag(picture, f"example {row}, label {label}, score {form(score)}")
        caption = f"<b>{name}</b>{form(score)}<span class='no'>no. {row}</span>"
        cells.append(f"<figure>{tag}<figcaption>{caption}</figcaption></figure>")
    if examples[0].picture is None:
        return f'<table class="bars"><tbody>{"".join(cells)}</tbody></table>'
    return f'<div class="row">{"".join(cells)}</div>'
