"""One HTML page of an attribution of a meta-learner: to be mailed and printed, as that of a run.

Axes: T test tasks, N training tasks.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from metalearn.attribution.learner_figures import LearnerGallery, agreement_figure
from metalearn.attribution.learner_findings import LearnerFindings
from metalearn.attribution.page_parts import helped_and_harmed, target_article
from metalearn.errors import SettingError
from metalearn.files import replace_file
from metalearn.pages import (
    chart,
    counted,
    escaped,
    number,
    picture_tag,
    seconds_in_words,
    sources,
    table,
    warnings_of,
    whole_page,
    with_interval,
)
from metalearn.signatures import checked
from metalearn.tracking.attribution_figures import shortened

__all__ = ["learner_page_of", "write_learner_page"]

_OF_A_STEP = ("a step on one lowers the loss", "a step on one raises the loss")


@checked
def write_learner_page(path: Path, findings: LearnerFindings, *, top: int = 5) -> None:
    """Write findings of a meta-learner as one HTML file, whole or not at all; as `write_page`.

    Args:
        path: of the file; its folder is made if missing.
        findings: what is shown.
        top: support examples of each kind beside a query, training tasks beside a test task.

    Raises:
        SettingError: a count below 1, no name of a file.
        OSError: what the system refuses, with ``path`` as its file.
    """
    if not Path(path).name:
        raise SettingError("path", str(path), "the name of a file is needed")
    text = learner_page_of(findings, top=top)
    replace_file(Path(path), lambda file: file.write(text.encode()))


def learner_page_of(findings: LearnerFindings, *, top: int = 5) -> str:
    """The text of the page that `write_learner_page` writes."""
    gallery = LearnerGallery(findings, top=top)
    scatter = agreement_figure(findings)
    parts = [
        *_opening(findings),
        *_methods(findings),
        *_queries(gallery),
        *_training_tasks(gallery),
        *(["<h2>Can the scores be trusted?</h2>"] if scatter is not None else []),
        *([] if scatter is None else [chart(scatter, "scores against leaving examples out")]),
        *sources(findings.settings, findings.provenance),
    ]
    return whole_page(f"Attribution of {shortened(findings.run, 80)}", parts)


def _opening(findings: LearnerFindings) -> Iterator[str]:
    queries, examples = findings.losses.shape[1], len(findings.tasks.support[1][0])
    tasks = counted(findings.task_count, "task")
    padded = not bool(findings.real_queries.all() and findings.real_examples.all())
    most = "up to " if padded else ""
    yield "<h1>What a meta-learner made its predictions of</h1>"
    said = (
        f"<p>Explained is the {escaped(findings.learner)} of run "
        f"<code>{escaped(findings.run)}</code> {escaped(findings.state)}, on {tasks} of the "
        f"{escaped(findings.split)} split. "
    )
    if findings.scores:
        said += (
            f"Each of a task's {most}{counted(examples, 'support example')} has a score for the "
            f"loss of each of its {most}{counted(queries, 'query', 'queries')}"
        )
    if findings.trained is not None:
        said += ", and each" if findings.scores else "Each"
        count = counted(len(findings.trained.numbers), "training task")
        said += f" of {count} has one for the loss of each test task"
    yield (
        f"{said}. A <b>positive</b> score says that the loss is higher without it, so that it "
        "helps; a <b>negative</b> one, that the loss is lower without it, so that it harms.</p>"
    )
    yield from warnings_of(findings.warnings)


def _methods(findings: LearnerFindings) -> Iterator[str]:
    if not findings.scores:
        return
    heads = ["scores of support examples by", "seconds"]
    heads += ["disagreement of members"] if findings.disagreement else []
    rows = []
    for name in findings.scores:
        what = f"{name}: {findings.words(name)}"
        row = [what, seconds_in_words(findings.seconds.get(name))]
        if findings.disagreement:
            row.append(number(float(findings.disagreement[name].nanmean())))
        rows.append(row)
    yield "<h2>Methods</h2>"
    yield table(heads, rows)
    if findings.agreement is not None:
        words = with_interval(findings.agreement.mean, findings.agreement.interval95)
        yield (
            f"<p>Rank correlation of both over a task's support examples: <b>{words}</b>, the mean "
            "over tasks with its 95 % interval. 1 is perfect, 0 is chance.</p>"
        )
    if findings.disagreement:
        yield (
            '<p class="soft">Disagreement: one minus the correlation of two members\' scores; 0 '
            "where they agree which examples mattered, 1 where they have nothing in common.</p>"
        )


def _queries(gallery: LearnerGallery) -> Iterator[str]:
    findings, method = gallery.findings, gallery.findings.method
    if method is None:
        return
    yield "<h2>Queries, and the support examples that helped and harmed them most</h2>"
    what = f"<b>{escaped(method)}</b>: {findings.words(method)}"
    yield f"<p>Scores are by {what}.{_shown(gallery)}</p>"
    for place in gallery.tasks:
        queries = gallery.queries(place)
        for row in queries.targets:
            further = gallery.disagreement(place, int(queries.findings.targets.rows[row]))
            yield from target_article(queries, method, row, further)


def _training_tasks(gallery: LearnerGallery) -> Iterator[str]:
    findings = gallery.findings
    if findings.trained is None:
        return
    yield "<h2>Training tasks that helped and harmed test tasks most</h2>"
    yield (
        "<p>Scores are products of the gradients of a training task and of a test task, each "
        f"through its adaptation, summed over states that the run has kept.{_shown(gallery)}</p>"
    )
    for place in gallery.tasks:
        title = f"{findings.split} task {findings.numbers[place]}"
        loss = f"loss {float(findings.task_losses[place]):.3g}"
        picture = gallery.picture(place)
        tag = "" if picture is None else picture_tag(picture, title, kind="of-target")
        yield f'<article class="target"><div class="beside"><div class="head">{tag}<div>'
        facts = "" if findings.class_names is None else ", ".join(findings.class_names[place])
        yield (
            f'<h3>{escaped(title)}</h3><p class="facts"><span>{escaped(shortened(facts, 120))}'
            f"</span><span>{escaped(loss)}</span></p></div></div>"
        )
        shown = helped_and_harmed(*gallery.trained(place), meaning=_OF_A_STEP)
        yield f"<div>{shown}</div></div></article>"


def _shown(gallery: LearnerGallery) -> str:
    shown, count = len(gallery.tasks), gallery.findings.task_count
    return "" if shown == count else f" {shown} of {count} tasks are shown, those of highest loss."
