"""What ``attribute`` found of a meta-learner, on the page of its run.

Axes: none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from metalearn.cli.reports.tables import shown
from metalearn.pages import escaped, seconds_in_words, table, warnings_of, with_interval
from metalearn.schema import Misfit, list_of, map_of, mapping, maybe, number, text

__all__ = ["learner_attribution_part", "listed"]

_MOST_TASKS, _MOST_QUERIES, _MOST_METHODS, _MOST_WARNINGS = 20, 12, 20, 20
_NUMBER = maybe(number(nan=True))
_EXAMPLES = map_of(text, list_of(mapping({"score": _NUMBER}, {"label": text})))
_TASKS = list_of(mapping({"task": number(), "score": _NUMBER}, {}))
_TASK = mapping(
    {"task": number(), "loss": _NUMBER},
    {
        "of_queries": list_of(
            mapping(
                {"loss": _NUMBER, "most_helpful": _EXAMPLES, "most_harmful": _EXAMPLES},
                {"label": text, "prediction": maybe(text)},
            )
        ),
        "most_helpful_tasks": _TASKS,
        "most_harmful_tasks": _TASKS,
    },
)
_FORM = mapping(
    {"split": text, "state": text, "scores": text, "warnings": list_of(text)},
    {
        "methods": map_of(text, mapping({"seconds": _NUMBER, "what": text}, {})),
        "correlation_with_leaving_out": maybe(mapping({"mean": _NUMBER, "interval95": _NUMBER})),
        "of_tasks": list_of(_TASK),
    },
)


def learner_attribution_part(found: Mapping[str, Any]) -> Iterator[str]:
    """Scores of support examples and of training tasks; a warning where it is another thing."""
    try:
        _FORM(found, "")
    except Misfit:
        yield from warnings_of(["these findings are not as attribute writes them"])
        return
    words = f"Scores are {found['scores']}. Explained is the state {found['state']}."
    yield f'<p class="soft">{escaped(words)}</p>'
    yield from warnings_of(found["warnings"][:_MOST_WARNINGS])
    methods = dict(list((found.get("methods") or {}).items())[:_MOST_METHODS])
    if methods:
        rows = [[f"{n}: {m['what']}", seconds_in_words(m["seconds"])] for n, m in methods.items()]
        yield table(["scores of support examples by", "seconds"], rows)
    yield from _agreement(found.get("correlation_with_leaving_out"))
    tasks = found["of_tasks"][:_MOST_TASKS]
    yield from _queries(tasks, methods)
    yield from _training_tasks(tasks)


def listed(examples: Sequence[Mapping[str, Any]]) -> str:
    """The first three of ranked examples, in a cell."""
    return "; ".join(
        f"no. {e.get('example', '–')} ({e.get('label', '')}) {shown('', e['score'])}"
        for e in examples[:3]
    ) or "–"  # fmt: skip


def _agreement(found: Mapping[str, Any] | None) -> Iterator[str]:
    mean = None if found is None else found["mean"]
    if mean is None or math.isnan(mean):
        return
    half = found["interval95"] if found is not None else None
    words = with_interval(mean, math.nan if half is None else half)
    yield (
        f'<p class="soft">Rank correlation of scores through adaptation with leaving each support '
        f"example out: {words}, the mean over tasks ± half of its 95 % interval; 1 is perfect, 0 "
        "is chance. Alarming: near 0, as these scores then say little of this learner.</p>"
    )


def _queries(tasks: Sequence[Mapping[str, Any]], methods: Mapping[str, Any]) -> Iterator[str]:
    """Queries of the highest loss, by the first method that has ranked their support examples."""
    every = [(task["task"], query) for task in tasks for query in task.get("of_queries") or []]
    kinds = ("most_helpful", "most_harmful")
    known = [m for m in methods if all(m in query[k] for _, query in every for k in kinds)]
    if not every or not known:
        return
    worst = sorted(every, key=lambda pair: -_known(pair[1]["loss"]))[:_MOST_QUERIES]
    rows = [
        [
            f"{task:g}",
            f"{query.get('row', '–')}: {query.get('label', '')}",
            query.get("prediction") or "–",
            shown("", query["loss"]),
            *(listed(query[kind][known[0]]) for kind in kinds),
        ]
        for task, query in worst
    ]
    words = f"Queries of highest loss, and the support examples that mattered most, by {known[0]}"
    yield f"<h4>{escaped(words)}</h4>"
    heads = ["task", "query", "predicted", "loss", "most helpful", "most harmful"]
    yield table(heads, rows, numbers=[False, False, False, True, False, False])


def _training_tasks(tasks: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """For each test task, the training tasks that mattered most to its loss."""
    kinds = ("most_helpful_tasks", "most_harmful_tasks")
    some = [task for task in tasks if all(kind in task for kind in kinds)]
    if not some:
        return
    rows = [
        [f"{t['task']:g}", shown("", t["loss"]), *(_numbered(t[kind]) for kind in kinds)]
        for t in some
    ]
    yield "<h4>Test tasks, and the training tasks that mattered most to them</h4>"
    heads = ["test task", "loss", "most helpful", "most harmful"]
    yield table(heads, rows, numbers=[False, True, False, False])


def _numbered(tasks: Sequence[Mapping[str, Any]]) -> str:
    return "; ".join(f"task {t['task']:g}: {shown('', t['score'])}" for t in tasks[:3]) or "–"


def _known(value: float | None) -> float:
    return -math.inf if value is None or math.isnan(value) else float(value)
