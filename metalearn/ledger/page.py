"""The page of the ledger: a function of the rows and of what their runs gave.

Axes: S seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from metalearn.evaluation.seeds import mean_over_seeds
from metalearn.ledger.outcomes import Outcome, Score
from metalearn.ledger.rows import ROWS, TABLES, Protocol, Reported, Row, Table

__all__ = ["ledger_page", "over_seeds", "result_line", "verdict"]

_POINTS = 1.0  # of accuracy or error; within it a result counts as reproduced
_PROTOCOLS: tuple[Protocol, ...] = ("transductive", "inductive")
_HEAD = """# Ledger of reproductions

What published results of few-shot learning become in this project, on two CPU cores. Each row is
one file in `conf/experiment`; the command in it trains that row, and

```sh
python scripts/reproduce.py          # all rows, cheapest first; goes on after a stop
python scripts/reproduce.py --list   # what there is, and what has been run
```

trains, tests and writes this page from what `outputs/ledger` keeps of each run. The state that is
tested is the best on the validation tasks; no setting was chosen by a test. *Transductive*: the
queries of a task share the statistics of normalisation; *inductive*: each is predicted alone,
beside the support set. ± is half of the 95 % interval, over test tasks for one seed and over
seeds for several. *Reproduced* is at most one point behind the paper, *ahead* is above it by more
than the interval. Minutes are those of training and validation of a seed, of the clock, other work
on the machine included, and in brackets of the processor in all threads, where they were counted;
of runs without a card where there are some, else of those that notes say were trained on one.
"""


def ledger_page(outcomes: Mapping[str, Sequence[Outcome]]) -> str:
    """The page in Markdown, of the outcomes of each row, by seed."""
    parts = [_HEAD]
    for table in TABLES.values():
        rows = [row for row in ROWS.values() if row.table == table.name]
        unit = "" if table.measure == "loss" else ", %"
        names = ["method", f"paper{unit}", *_PROTOCOLS, "verdict", "seeds", "steps", "minutes"]
        head = [f"| {' | '.join(names)} |", "| --- " * len(names) + "|"]
        lines = [_line(row, table, outcomes.get(row.name, ())) for row in rows]
        notes = _notes(rows, outcomes)
        parts.append(
            "\n".join([f"## {table.title}\n", _about(table), "", *head, *lines, "", notes])
        )
    parts.append(_commands())
    return "\n".join(parts)


def result_line(row: Row, outcomes: Sequence[Outcome]) -> str:
    """What a paper has for a row, what the row has, and the verdict, in a line."""
    table = TABLES[row.table]
    protocols = {p: _shown(over_seeds(outcomes, p), table) for p in _PROTOCOLS}
    found = [f"{shown} {protocol}" for protocol, shown in protocols.items() if shown]
    parts = ["" if row.reported is None else f"paper {_reported(row.reported)}", ", ".join(found)]
    return "; ".join([*(part for part in parts if part), verdict(row, table, outcomes)])


def over_seeds(outcomes: Sequence[Outcome], protocol: Protocol) -> Score | None:
    """The score of one seed, or mean and interval over S seeds; None where there is none."""
    scores = [o.scores[protocol] for o in outcomes if protocol in o.scores]
    if len(scores) < 2:
        return scores[0] if scores else None
    means = [score.mean for score in scores]
    found = mean_over_seeds(means)
    return Score(found.mean, found.interval95)


def verdict(row: Row, table: Table, outcomes: Sequence[Outcome]) -> str:
    """What becomes of a row's reported number."""
    if not outcomes:
        return f"not run here: {row.not_run}" if row.not_run else "not run yet"
    if row.reported is None:
        return "no published number"
    found = over_seeds(outcomes, row.reported.protocol)
    if found is None:
        return f"no {row.reported.protocol} score"
    ahead = found.mean - row.reported.value
    if not table.larger_is_better:
        ahead = -ahead
    if ahead > found.interval95:
        return "ahead"
    if table.measure == "loss":
        return "reproduced" if ahead >= -found.interval95 else f"behind by {-ahead:.2f}"
    return "reproduced" if ahead >= -_POINTS else f"behind by {-ahead:.1f} points"


def _line(row: Row, table: Table, outcomes: Sequence[Outcome]) -> str:
    shown = [_shown(over_seeds(outcomes, protocol), table) for protocol in _PROTOCOLS]
    last = outcomes[0] if outcomes else None
    timed = [o for o in outcomes if o.device == "cpu"] or outcomes
    minutes = _minutes([o.seconds for o in timed]) if timed else f"≈ {row.minutes}"
    of_processor = _minutes([o.cpu_seconds for o in timed])
    minutes += f" ({of_processor})" if of_processor else ""
    return "| {} |".format(
        " | ".join(
            [
                row.method,
                _reported(row.reported),
                *shown,
                verdict(row, table, outcomes),
                str(len(outcomes)) if outcomes else "",
                f"{last.steps:,}" if last else "",
                minutes,
            ]
        )
    )


def _minutes(seconds: Sequence[float | None]) -> str:
    """The mean over seeds; nothing where one is not known."""
    known = [value for value in seconds if value is not None]
    return f"{fmean(known) / 60:.0f}" if known and len(known) == len(seconds) else ""


def _shown(score: Score | None, table: Table) -> str:
    if score is None:
        return ""
    digits = 3 if table.measure == "loss" else 1
    return f"{score.mean:.{digits}f} ± {score.interval95:.{digits}f}"


def _reported(reported: Reported | None) -> str:
    if reported is None:
        return "none"
    if reported.inductive is not None:
        return f"{reported.value:g} (inductive {reported.inductive:g})"
    return f"{reported.value:g}" + (" (inductive)" if reported.protocol == "inductive" else "")


def _notes(rows: Sequence[Row], outcomes: Mapping[str, Sequence[Outcome]]) -> str:
    """Where the papers' numbers come from, and what chose the states that were tested."""
    sources: dict[str, list[str]] = {}
    monitors: dict[str, list[str]] = {}
    norms: dict[str, list[str]] = {}
    cards: dict[str, list[str]] = {}
    for row in rows:
        if row.reported is not None:
            sources.setdefault(row.reported.source, []).append(row.method)
        for monitor in {outcome.monitor for outcome in outcomes.get(row.name, ())}:
            monitors.setdefault(f"`{monitor}`", []).append(row.method)
        for norm in {outcome.normalization for outcome in outcomes.get(row.name, ())} - {""}:
            norms.setdefault(f"`{norm}`", []).append(row.method)
        for card in sorted({outcome.device for outcome in outcomes.get(row.name, ())} - {"cpu"}):
            cards.setdefault(card, []).append(_trained_there(row, outcomes[row.name], card))
    notes = []
    kinds = {
        "Papers": sources,
        "State chosen by": monitors,
        "Normalised with": norms,
        "Trained on": cards,
    }
    for what, found in kinds.items():
        several = [f"{name} ({', '.join(methods)})" for name, methods in found.items()]
        notes += [f"{what}: {'; '.join(several)}."] if several else []
    curves = [_on_the_way(row, outcomes.get(row.name, ())) for row in rows]
    if shown := [curve for curve in curves if curve]:
        notes.append(f"Validation on the way, of rows that are behind: {'; '.join(shown)}.")
    return " ".join(notes) + "\n" if notes else ""


def _on_the_way(row: Row, outcomes: Sequence[Outcome]) -> str:
    """The monitor of a row that is behind, at four steps of its first seed: what more may give."""
    behind = verdict(row, TABLES[row.table], outcomes).startswith("behind")
    curve = outcomes[0].curve if behind else []
    if not curve:
        return ""
    last, losses = curve[-1][0], "loss" in outcomes[0].monitor
    near = (min(curve, key=lambda point: abs(point[0] - last * k / 4)) for k in range(1, 5))
    shown = [f"{v:.3f} at {k:,}" if losses else f"{100 * v:.1f} at {k:,}" for k, v in near]
    return f"{row.method} {', '.join(dict.fromkeys(shown))} steps"


def _trained_there(row: Row, outcomes: Sequence[Outcome], device: str) -> str:
    """The method, with its seeds where others were trained elsewhere."""
    seeds = [str(outcome.seed) for outcome in outcomes if outcome.device == device]
    if len(seeds) == len(outcomes):
        return row.method
    return f"{row.method}, seed{'s' * (len(seeds) > 1)} {' and '.join(seeds)}"


def _about(table: Table) -> str:
    measure = {
        "accuracy": "Accuracy in per cent",
        "error": "Error in per cent",
        "loss": "Loss",
    }[table.measure]
    return f"{table.about} {measure}, mean over test tasks."


def _commands() -> str:
    lines = [
        f"| {TABLES[row.table].title} | {row.method} | `{row.command()}` |" for row in ROWS.values()
    ]
    head = ["## Commands\n", "| task | method | command |", "| --- | --- | --- |"]
    return "\n".join([*head, *lines]) + "\n"
