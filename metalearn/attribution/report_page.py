"""One HTML page of an attribution: self-contained, without scripts, to be mailed and printed.

Axes: R targets, N training examples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from metalearn.attribution.findings import Findings
from metalearn.attribution.findings_figures import score_figures
from metalearn.attribution.gallery import Gallery
from metalearn.attribution.leaving_out import CHANCE, change_in_words
from metalearn.attribution.page_markup import chart, escaped, facts_table, picture_tag, table
from metalearn.attribution.page_style import STYLE
from metalearn.errors import SettingError
from metalearn.files import replace_file
from metalearn.signatures import checked
from metalearn.tracking.attribution_figures import ShownExample, shortened, signed
from metalearn.tracking.provenance import plain

__all__ = ["page_of", "write_page"]

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@checked
def write_page(path: Path, findings: Findings, *, top: int = 5, most_targets: int = 12) -> None:
    """Write findings as one HTML file, whole or not at all.

    The page needs no other file and no network, and has no scripts; texts of users are shown as
    texts. It begins with what was done, then warnings, methods, targets beside the examples that
    helped and harmed them, suspected label errors, settings and provenance.

    Args:
        path: of the file; its folder is made if missing.
        findings: what is shown.
        top: examples of each kind beside a target.
        most_targets: how many are shown; of more, those with the highest losses.

    Raises:
        SettingError: counts below 1, no name of a file.
        OSError: what the system refuses, with ``path`` as its file.
    """
    if not Path(path).name:
        raise SettingError("path", str(path), "the name of a file is needed")
    text = page_of(findings, top=top, most_targets=most_targets)
    replace_file(Path(path), lambda file: file.write(text.encode()))


def page_of(findings: Findings, *, top: int = 5, most_targets: int = 12) -> str:
    """The text of the page that `write_page` writes."""
    gallery = Gallery(findings, top=top, most_targets=most_targets)
    charts = score_figures(findings, top=top)
    suspected, left_out = charts.pop("self_scores", None), charts.pop("leave_k_out", None)
    parts = [
        *_opening(findings),
        *_methods(findings),
        *_leave_k_out(findings),
        *([] if left_out is None else [chart(left_out, "losses and flips by examples left out")]),
        *_targets(gallery),
        *_suspects(gallery),
        *([] if suspected is None else [chart(suspected, "histograms of these scores")]),
        *(["<h2>Can the scores be trusted?</h2>"] if charts else []),
        *(chart(figure, name.replace("_", " ")) for name, figure in charts.items()),
        *_sources(findings),
    ]
    title = f"Attribution of {shortened(findings.run, 80)}"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escaped(title)}</title>\n<style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _opening(findings: Findings) -> Iterator[str]:
    methods = _counted(len(findings.scores), "method")
    targets = _counted(findings.target_count, "target")
    yield "<h1>Which training examples made this network what it is</h1>"
    yield (
        f"<p>Explained is the network of run <code>{escaped(findings.run)}</code> "
        f"{escaped(findings.state)}. "
        f"Each of {_counted(findings.example_count, 'training example')} has a score for the loss "
        f"of each of {targets} of the {escaped(findings.split)} split, by {methods}. "
        "A <b>positive</b> score says that leaving the example out raises the loss, so that it "
        "helps; a <b>negative</b> one, that leaving it out lowers the loss, so that it harms.</p>"
    )
    for warning in findings.warnings:
        yield f'<p class="warning" role="alert"><b>Warning:</b> {escaped(warning)}</p>'


def _methods(findings: Findings) -> Iterator[str]:
    heads = ["method", "seconds"] + [
        f"foretold, {100 * subsets.left_out:.2g}\u00a0% left out" for subsets in findings.retrained
    ]
    rows = []
    for name in [*findings.scores, *findings.self_scores]:
        seconds = findings.seconds.get(name)
        row = [
            name,
            "–" if seconds is None else f"{seconds:.2g}" if seconds < 10 else f"{seconds:,.0f}",
        ]
        for subsets in findings.retrained:
            found = subsets.lds.get(name)
            row.append("–" if found is None else _with_interval(found.mean, found.interval95))
        rows.append(row)
    yield "<h2>Methods</h2>"
    yield table(heads, rows)
    if findings.retrained:
        counts = sorted({len(subsets.outcomes) for subsets in findings.retrained})
        yield (
            '<p class="soft">Foretold: the rank correlation of what the scores say and what '
            f"retraining without so many of the examples did, over {' or '.join(map(str, counts))} "
            "subsets; the mean over targets with its 95 % interval. 1 is perfect, 0 is chance.</p>"
        )
    if len(findings.scores) > 1:
        names = list(findings.scores)
        yield "<h4>Rank correlation of methods with one another, over examples</h4>"
        numbers = findings.agreement.tolist()
        yield table(["", *names], ([n, *map(_number, row)] for n, row in zip(names, numbers)))


def _leave_k_out(findings: Findings) -> Iterator[str]:
    found = findings.leave_k_out
    if found is None:
        return
    heads = ["left out are the most helpful by"]
    for count in found.counts:
        heads += [f"{_counted(count, 'example')}: loss"] + ["flipped"] * bool(found.flips)
    rows = []
    for name in found.changes:
        row = ["chance" if name == CHANCE else name]
        for place in range(len(found.counts)):
            row.append(change_in_words(found.change(name, place)))
            row += [f"{100 * float(found.flips[name].share[place]):.0f} %"] if found.flips else []
        rows.append(row)
    yield "<h2>Trained anew without the most helpful examples</h2>"
    yield table(heads, rows)
    yield (
        '<p class="soft">How the loss of a target rises where the examples that a method calls the '
        "most helpful for it are really left out, the mean over targets with its 95 % interval"
        + (", and how many predictions change" if found.flips else "")
        + ". As many by chance tell what a smaller training part does.</p>"
    )


def _targets(gallery: Gallery) -> Iterator[str]:
    findings, best = gallery.findings, gallery.findings.best_method
    if best is None:
        return
    shown, count = len(gallery.targets), findings.target_count
    yield "<h2>Targets, and the examples that helped and harmed them most</h2>"
    which = (
        "" if shown == count else f" {shown} of {count} are shown, those with the highest losses."
    )
    why = ""
    if findings.retrained and best in findings.retrained[0].lds:
        known = findings.retrained[0].lds[best]
        why = f", which foretold retraining best ({_with_interval(known.mean, known.interval95)})"
    yield f"<p>Scores are by <b>{escaped(best)}</b>{why}.{which}</p>"
    others = [name for name in findings.scores if name != best]
    for row in gallery.targets:
        words = " ".join([gallery.title(row), *gallery.lines(row)])
        picture = gallery.target_picture(row)
        tag = "" if picture is None else picture_tag(picture, words, kind="of-target")
        facts = "".join(f"<span>{escaped(line)}</span>" for line in gallery.lines(row))
        wrong = '<span class="wrong">✗ wrong</span>' if gallery.is_wrong(row) else ""
        yield '<article class="target"><div class="beside"><div class="head">' + tag
        heading = f"<h3>{escaped(gallery.title(row))}</h3>"
        yield f'<div>{heading}<p class="facts">{facts}{wrong}</p></div></div>'
        yield f"<div>{_helped_and_harmed(gallery, best, row)}"
        if others:
            inner = "".join(
                f"<h3>{escaped(name)}</h3>{_helped_and_harmed(gallery, name, row)}"
                for name in others
            )
            more = "the other method" if len(others) == 1 else f"the {len(others)} other methods"
            yield f"<details><summary>By {more}</summary>{inner}</details>"
        yield "</div></div></article>"


def _helped_and_harmed(gallery: Gallery, method: str, row: int) -> str:
    return (
        "<h4>Most helpful: leaving one out raises the loss</h4>"
        f'<div class="helps">{_examples(gallery.helpful(method, row))}</div>'
        "<h4>Most harmful: leaving one out lowers the loss</h4>"
        f'<div class="harms">{_examples(gallery.harmful(method, row))}</div>'
    )


def _suspects(gallery: Gallery) -> Iterator[str]:
    names = list(gallery.findings.self_scores)
    if not names:
        return
    yield "<h2>Suspected label errors</h2>"
    yield (
        "<p>Examples of the highest scores by themselves: those that the network learns hardest, "
        "or that only they themselves explain. Look at the label of each.</p>"
    )
    for name in names:
        yield f"<h4>{escaped(name)}</h4>{_examples(gallery.suspects(name), signs=False)}"


def _sources(findings: Findings) -> Iterator[str]:
    for heading, facts in (("Settings", findings.settings), ("Provenance", findings.provenance)):
        if facts:
            known = plain(facts)
            assert isinstance(known, dict)
            yield f"<h2>{heading}</h2>{facts_table(known)}"


def _examples(examples: list[ShownExample], *, signs: bool = True) -> str:
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
            number = f'<td class="number">{form(score)}</td>'
            cells.append(f'<tr><td>no. {row}</td><td class="name">{name}</td>{number}{bar}</tr>')
            continue
        tag = picture_tag(picture, f"example {row}, label {label}, score {form(score)}")
        caption = f"<b>{name}</b>{form(score)}<span class='no'>no. {row}</span>"
        cells.append(f"<figure>{tag}<figcaption>{caption}</figcaption></figure>")
    if examples[0].picture is None:
        return f'<table class="bars"><tbody>{"".join(cells)}</tbody></table>'
    return f'<div class="row">{"".join(cells)}</div>'


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def _with_interval(mean: float, half: float) -> str:
    return _number(mean) + (f" ± {half:.2f}" if math.isfinite(half) else "")


def _number(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}".replace("-", "−") if math.isfinite(value) else "–"
