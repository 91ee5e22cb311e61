"""One HTML page of an attribution: self-contained, without scripts, to be mailed and printed.

Axes: R targets, N training examples.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from metalearn.attribution.findings import Findings
from metalearn.attribution.findings_figures import score_figures
from metalearn.attribution.gallery import Gallery
from metalearn.attribution.leaving_out import CHANCE, change_in_words
from metalearn.attribution.page_parts import example_row, target_article
from metalearn.errors import SettingError
from metalearn.files import replace_file
from metalearn.pages import (
    chart,
    counted,
    escaped,
    number,
    seconds_in_words,
    sources,
    table,
    warnings_of,
    whole_page,
    with_interval,
)
from metalearn.signatures import checked
from metalearn.tracking.attribution_figures import shortened

__all__ = ["page_of", "write_page"]


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
        *sources(findings.settings, findings.provenance),
    ]
    return whole_page(f"Attribution of {shortened(findings.run, 80)}", parts)


def _opening(findings: Findings) -> Iterator[str]:
    methods = counted(len(findings.scores), "method")
    targets = counted(findings.target_count, "target")
    yield "<h1>Which training examples made this network what it is</h1>"
    yield (
        f"<p>Explained is the network of run <code>{escaped(findings.run)}</code> "
        f"{escaped(findings.state)}. "
        f"Each of {counted(findings.example_count, 'training example')} has a score for the loss "
        f"of each of {targets} of the {escaped(findings.split)} split, by {methods}. "
        "A <b>positive</b> score says that leaving the example out raises the loss, so that it "
        "helps; a <b>negative</b> one, that leaving it out lowers the loss, so that it harms.</p>"
    )
    yield from warnings_of(findings.warnings)


def _methods(findings: Findings) -> Iterator[str]:
    heads = ["method", "seconds"] + [
        f"foretold, {100 * subsets.left_out:.2g}\u00a0% left out" for subsets in findings.retrained
    ]
    rows = []
    for name in [*findings.scores, *findings.self_scores]:
        row = [name, seconds_in_words(findings.seconds.get(name))]
        for subsets in findings.retrained:
            found = subsets.lds.get(name)
            row.append("–" if found is None else with_interval(found.mean, found.interval95))
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
        yield table(["", *names], ([n, *map(number, row)] for n, row in zip(names, numbers)))


def _leave_k_out(findings: Findings) -> Iterator[str]:
    found = findings.leave_k_out
    if found is None:
        return
    heads = ["left out are the most helpful by"]
    for count in found.counts:
        heads += [f"{counted(count, 'example')}: loss"] + ["flipped"] * bool(found.flips)
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
        why = f", which foretold retraining best ({with_interval(known.mean, known.interval95)})"
    yield f"<p>Scores are by <b>{escaped(best)}</b>{why}.{which}</p>"
    for row in gallery.targets:
        yield from target_article(gallery, best, row)


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
        yield f"<h4>{escaped(name)}</h4>{example_row(gallery.suspects(name), signs=False)}"
