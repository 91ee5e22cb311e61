"""Parts that pages of attributions share: the frame, a target beside its examples, words.

Axes: R targets, N examples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from metalearn.attribution.gallery import Gallery
from metalearn.attribution.page_markup import escaped, facts_table, picture_tag
from metalearn.attribution.page_style import STYLE
from metalearn.tracking.attribution_figures import ShownExample, shortened, signed
from metalearn.tracking.provenance import plain

__all__ = [
    "counted",
    "example_row",
    "helped_and_harmed",
    "number",
    "seconds_in_words",
    "sources",
    "target_article",
    "warnings_of",
    "whole_page",
    "with_interval",
]

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def whole_page(title: str, parts: Iterable[str]) -> str:
    """A page of its own: no other file, no network, no scripts."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escaped(title)}</title>\n<style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def warnings_of(warnings: Iterable[str]) -> Iterator[str]:
    """Why some of it should not be trusted."""
    for warning in warnings:
        yield f'<p class="warning" role="alert"><b>Warning:</b> {escaped(warning)}</p>'


def sources(settings: Mapping[str, Any], provenance: Mapping[str, Any]) -> Iterator[str]:
    """Settings and provenance, where there are some."""
    for heading, facts in (("Settings", settings), ("Provenance", provenance)):
        if facts:
            known = plain(facts)
            assert isinstance(known, dict)
            yield f"<h2>{heading}</h2>{facts_table(known)}"


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


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """``1 task``, ``1,000 tasks``."""
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"


def with_interval(mean: float, half: float) -> str:
    """``0.71 ± 0.05``."""
    return number(mean) + (f" ± {half:.2f}" if math.isfinite(half) else "")


def number(value: float) -> str:
    """Two digits; a dash for what is not known."""
    return f"{round(value, 2) + 0.0:.2f}".replace("-", "−") if math.isfinite(value) else "–"


def seconds_in_words(seconds: float | None) -> str:
    """A few digits; a dash for what is not known."""
    if seconds is None:
        return "–"
    return f"{seconds:.2g}" if seconds < 10 else f"{seconds:,.0f}"
