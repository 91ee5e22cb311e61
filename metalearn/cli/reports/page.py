"""One HTML page of a run, or of several side by side: to be mailed, read in a year, printed.

Axes: none.
"""

from __future__ import annotations

import base64
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

from metalearn.cli.reports.attributed import attribution_part
from metalearn.cli.reports.bands import of_bands
from metalearn.cli.reports.diagnosed import diagnosis_part
from metalearn.cli.reports.story import RunStory
from metalearn.cli.reports.tables import INTERVALS, found_tables, shown, spaced
from metalearn.pages import (
    chart,
    counted,
    escaped,
    facts_table,
    seconds_in_words,
    table,
    warnings_of,
    whole_page,
)
from metalearn.percent import is_share
from metalearn.tracking.run_curves import Curve, curve_figure, curves_of

__all__ = ["FIRST_CURVES", "LINEAR_CURVES", "page_of_run"]

FIRST_CURVES = (
    "accuracy_after",
    "accuracy",
    "loss_after",
    "loss",
    "objective",
    "learning_rate",
    "gradient_norm",
    "privacy/epsilon",
    "speed/tasks_per_s",
    "speed/samples_per_s",
)
"""Curves that stand beside that of the score, in this order; all others are folded."""
_MOST_CURVES = 40
_ATTRIBUTED = re.compile(r"(\d )?attribution", re.IGNORECASE)
_GROUPS = (
    "task", "test_task", "data", "ood", "learner", "maml", "hyper", "model", "optimizer", "trainer",
)  # fmt: skip
_SIZES = ("way", "shot", "query", "inner_steps", "inner_lr", "first_order", "lr", "members")
"""Settings that say what a group is, where it has them."""
_SECTIONS = ("version", "shapes", "hydra")
_KNOWN = {
    "steps", "reason", "best_step", "seconds", "cpu_seconds", "checkpoint", "test", "headline",
}  # fmt: skip
_UNVALIDATED = "best/step"
"""The headline's score of a training that no validation looks at."""
LINEAR_CURVES = ("learning_rate",)


def page_of_run(story: RunStory) -> str:
    """The text of a run's page."""
    curves = curves_of(story.records)
    parts = [
        *_opening(story),
        *_results(story),
        *_curves(story, curves),
        *_findings(story),
        *_pictures(story),
        *_sources(story),
    ]
    return whole_page(f"Run {PurePath(story.run.name).name}", parts)


def _opening(story: RunStory) -> Iterator[str]:
    run, results = story.run, story.results
    yield f"<h1>Run <code>{escaped(run.name)}</code></h1>"
    origin = next(iter(story.origins.values()), {})
    groups = [(name, run.config[name]) for name in _GROUPS if name in run.config]
    facts = {name: _made_of(node) for name, node in groups if isinstance(node, Mapping)}
    facts["steps"] = _steps(story)
    if isinstance(results.get("seconds"), (int, float)):
        facts["training took"] = f"{seconds_in_words(float(results['seconds']))} s"
    facts["seed"] = str(run.seed)
    if "device" in origin:
        facts["device"] = str(origin["device"])
    if "time" in origin:
        facts["begun"] = str(origin["time"]).replace("T", " ").replace("+00:00", " UTC")
    command = origin.get("command")
    if isinstance(command, list):
        facts["command"] = shlex.join(["python", *map(str, command)])
    yield facts_table(facts)
    if run.state is not None:
        yield from warnings_of([f"{run.state}; there are no results"])
    yield from warnings_of(story.warnings)


def _made_of(node: Mapping[str, Any]) -> str:
    """A group in a line: what is built, without its package, and the sizes that say most of it."""
    name = str(node.get("_target_", "–")).rpartition(".")[2]
    sizes = [f"{size} {node[size]}" for size in _SIZES if node.get(size) not in (None, False)]
    return ", ".join([name, *sizes]).replace("_", " ")


def _steps(story: RunStory) -> str:
    asked = story.run.config.get("trainer", {}).get("steps")
    done = story.results.get("steps")
    if done is None:
        return f"{asked} asked for"
    text = f"{done:,}" if isinstance(done, int) else str(done)
    if done != asked:
        text += f" of {asked}"
    reason = story.results.get("reason")
    return text + (f", {reason}" if reason else "")


def _results(story: RunStory) -> Iterator[str]:
    run = story.run
    if not run.numbers:
        return
    yield "<h2>Results</h2>"
    rows = []
    numbers = {name: value for name, value in run.numbers.items() if name != _UNVALIDATED}
    for name, value in numbers.items():
        span, factor = run.spans.get(name), 100.0 if is_share(name) else 1.0
        unit = " %" if is_share(name) else ""
        ends = "" if span is None else f"{factor * span.low:.4g} to {factor * span.high:.4g}{unit}"
        rows.append([_of_what(name), shown(name, value), ends])
    if any(row[-1] for row in rows):
        yield table(["", "value", "95 % interval over the test"], rows)
        yield (
            '<p class="soft">Intervals are over tasks or samples of the test, so that they say '
            "nothing of other seeds.</p>"
        )
    else:
        yield table(["", "value"], [row[:-1] for row in rows])
    yield f'<p class="soft">{_tested(story)}</p>'
    reports = story.results.get("test") or {}
    for name, report in reports.items():
        heading = f"<h3>{escaped(spaced(name))}</h3>" if len(reports) > 1 else ""
        yield heading + "".join(found_tables(report))

    for name, found in story.results.items():
        if name not in _KNOWN and not name.startswith("validation/"):
            inner = "".join(found_tables({name: found}))
            yield inner
            if name == "privacy" and isinstance(found, Mapping) and found.get("epsilon") is None:
                yield from warnings_of(["ε is not known, so nothing is guaranteed"])


def _tested(story: RunStory) -> str:
    """Which state the tests are of."""
    best = story.results.get("best_step")
    after = f"{best:,} steps" if isinstance(best, int) else "some steps"
    if _UNVALIDATED in story.run.numbers:
        return f"Tested is the last state, after {after}: no validation chose one."
    if _members(story) > 1:
        return (
            f"Tested is each member at its own best validation, the latest of them after {after}."
        )
    return f"Tested is the state at the best validation, after {after}."


def _members(story: RunStory) -> int:
    """How many there are, as far as settings or a test tell."""
    asked = story.run.config.get("trainer", {}).get("members")
    tested = [
        len(report["members"])
        for report in (story.results.get("test") or {}).values()
        if isinstance(report.get("members"), list)
    ]
    return max([asked if isinstance(asked, int) else 1, *tested])


def _of_what(name: str) -> str:
    part, _, score = name.partition("/")
    words = {"best": "best validation: ", "test": "test: "}.get(part, f"{part}: ")
    return words + spaced(score)


def _curves(story: RunStory, curves: Mapping[str, Mapping[str, Curve]]) -> Iterator[str]:
    if not curves:
        return
    scores = [n.partition("/")[2] for n in story.run.numbers if n.startswith("best/")]
    wanted = [name for name in (*scores, *FIRST_CURVES) if name in curves]
    wanted = list(dict.fromkeys(wanted)) or list(curves)[:4]
    others = [name for name in curves if name not in wanted]
    yield "<h2>How it went</h2>"
    shown_ones = {name: curves[name] for name in others[:_MOST_CURVES]}
    said = of_bands({**{name: curves[name] for name in wanted}, **shown_ones})
    if said:
        yield f'<p class="soft">{said}</p>'
    yield _charts({name: curves[name] for name in wanted})
    if others:
        title = counted(len(others), "further curve")
        if len(shown_ones) < len(others):
            title += f", of which {len(shown_ones)} are here"
        yield f"<details><summary>{title}</summary>{_charts(shown_ones)}</details>"


def _charts(curves: Mapping[str, Mapping[str, Curve]]) -> str:
    inner = "".join(
        chart(
            curve_figure(spaced(name), parts, percent=is_share(name), linear=name in LINEAR_CURVES),
            f"{spaced(name)} over the steps",
        )
        for name, parts in curves.items()
    )
    return f'<div class="charts">{inner}</div>'


def _findings(story: RunStory) -> Iterator[str]:
    """What was asked of the run later."""
    pictured = False
    for name, finding in story.findings.items():
        if name.startswith("attribution-"):
            yield f"<h2>{escaped(name.replace('-', ': ', 1).capitalize())}</h2>{_of_state(finding)}"
            yield from attribution_part(finding)
            if not pictured:  # figures do not say which of several they are of
                yield f'<div class="charts figures">{"".join(_drawn(story, attributed=True))}</div>'
            pictured = True
            continue
        inner = _inner(name, finding)
        if inner:
            title = name.replace("-", ": ").replace("_", " ").capitalize()
            yield f"<h2>{escaped(title)}</h2>{_of_state(finding)}"
            if "±" in inner:
                yield f'<p class="soft">{INTERVALS}</p>'
            yield inner


def _inner(name: str, finding: Mapping[str, Any]) -> str:
    """Tables of an evaluation or a diagnosis; empty where it has none."""
    if name.startswith("diagnosis-"):
        return "".join(diagnosis_part(finding))
    found = finding.get("scores")
    return "".join(found_tables(found)) if isinstance(found, Mapping) else ""


def _of_state(finding: Mapping[str, Any]) -> str:
    """Which state of the run was looked at, and when."""
    known = [f"{word} {finding[word]}" for word in ("checkpoint", "step") if word in finding]
    origin = finding.get("provenance")
    if isinstance(origin, Mapping) and "time" in origin:
        known.append(str(origin["time"]))
    return f'<p class="soft">{escaped(", ".join(known))}</p>' if known else ""


def _pictures(story: RunStory) -> Iterator[str]:
    shown_above = any(name.startswith("attribution-") for name in story.findings)
    drawn = list(_drawn(story, attributed=False if shown_above else None))
    if drawn:
        yield "<h2>Figures</h2>"
        yield f'<div class="charts figures">{"".join(drawn)}</div>'


def _drawn(story: RunStory, *, attributed: bool | None) -> Iterator[str]:
    """Figures of an attribution, all others, or all."""
    for name, (step, png) in story.pictures.items():
        if attributed not in (None, _ATTRIBUTED.match(name) is not None):
            continue
        words = f"{spaced(_without_number(name))}, after {step:,} steps"
        source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
        image = f'<img alt="{escaped(words)}" src="{source}">'
        yield f'<figure><h4>{escaped(words)}</h4><div class="chart">{image}</div></figure>'


def _without_number(name: str) -> str:
    """The name of a figure without the number of its section on a dashboard."""
    return re.sub(r"^\d ", "", name)


def _sources(story: RunStory) -> Iterator[str]:
    settings = {k: v for k, v in story.run.config.items() if k not in _SECTIONS}
    yield "<h2>Settings</h2>"
    yield facts_table(settings)
    for title, origin in story.origins.items():
        yield f"<h2>{escaped(title)}</h2>{facts_table(origin)}"
