"""Tables of what a test or a look into a run found, whatever its kind: by the shape of its JSON.

Axes: M members, S inner steps.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from metalearn.pages import escaped, table
from metalearn.percent import is_share, percent

__all__ = ["INTERVALS", "found_tables", "shown", "spaced"]

INTERVALS = (
    "Numbers after ± are half of the 95 % interval of the mean over tasks or samples of a test; "
    "they say nothing of other seeds."
)

_MOST_ROWS = 200
_DEEPEST = 8
_INTERVAL = "_interval"
_FEW = 4  # numbers that a line holds, or parts that need no folding
_NAMES = {
    "nll": "negative log-likelihood",
    "ece": "expected calibration error",
    "adaptive_ece": "calibration error, adaptive bins",
    "brier": "Brier score",
    "aurc": "area under the risk-coverage curve",
    "auroc": "AUROC",
    "fpr95": "FPR at 95 % TPR",
    "interval95": "95 % interval ±",
    "calibration": "expected calibration error",
    "rmse": "root mean squared error",
    "memory_gb": "peak memory, GB",
    "tasks_per_s": "tasks a second",
    "samples_per_s": "samples a second",
    "q25": "lower quartile",
    "q75": "upper quartile",
    "share_below_minus_highest_by_1000": "share below −highest ÷ 1000",
}
_WORDS = {"nll": "NLL", "ggn": "GGN", "hessian": "Hessian", "fisher": "Fisher", "auroc": "AUROC"}
"""Words within a name that are not written in lower case."""


def found_tables(found: Mapping[str, Any], *, depth: int = 0) -> Iterator[str]:
    """HTML of an object of JSON: one table for its numbers, one for each list of alike objects.

    Lists of numbers are shown by their median, lowest and highest; what is neither a number, a text
    nor made of these is left out.

    Args:
        found: as a report's ``as_json`` gives it.
        depth: how many objects it stands in.
    """
    if depth > _DEEPEST:
        return
    plain, means, along, rest = _sorted(found)
    members: Any = found.get("members")
    if isinstance(found.get("ensemble"), Mapping) and _alike(members):
        for name in ("ensemble", "members"):
            rest.pop(name)
        if len(members) > 1:
            yield _ensemble_table(found["ensemble"], members)
            yield _folded("Members by themselves", _rows_table("member", members))
        else:
            rest.pop("by_size", None)
            plain = dict(members[0]) | plain
    if 0 < len(plain) <= _FEW and not depth:
        words = "; ".join(f"{spaced(name)}: {shown(name, value)}" for name, value in plain.items())
        yield f'<p class="soft">{escaped(words)}</p>'
    elif plain:
        yield table(["", "value"], [[spaced(n), shown(n, v)] for n, v in plain.items()])
    if along:
        yield _along_table(along)
    if means:
        yield table(["", "mean ± 95 %"], [[spaced(n), _mean(n, v)] for n, v in means.items()])
    for name, value in rest.items():
        title = spaced(name)
        if _alike(value):
            sizes = name == "by_size"
            rows = _rows_table("members", value, 1) if sizes else _rows_table("no.", value)
            yield _folded(title, rows)
        elif isinstance(value, Mapping) and len(value) > 1 and _same_names(list(value.values())):
            named = {spaced(key): row for key, row in value.items()}
            yield f"<h4>{escaped(title)}</h4>{_named_table(named)}"
        elif isinstance(value, Mapping):
            inner = "".join(found_tables(value, depth=depth + 1))
            short = depth or len(value) <= _FEW
            if inner:
                yield f"<h4>{escaped(title)}</h4>{inner}" if short else _folded(title, inner)


def shown(name: str, value: Any) -> str:
    """A value as a table has it: shares in per cent, lists by their middle and ends."""
    if isinstance(value, bool) or not isinstance(value, (int, float, list)):
        return "–" if value is None else str(value)
    if isinstance(value, list):
        known = [float(v) for v in value if v is not None]
        if name.endswith(_INTERVAL) and len(known) == 2:
            return " to ".join(shown(name.removesuffix(_INTERVAL), v) for v in known)
        if not known:
            return "–"
        if len(known) == 1:
            return shown(name, known[0])
        middle, ends = statistics.median_low(known), (min(known), max(known))
        return f"{shown(name, middle)} ({shown(name, ends[0])} to {shown(name, ends[1])})"
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "not finite"
    if is_share(name):
        return percent(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def spaced(name: str) -> str:
    """A name of JSON in words."""
    room, _, inner = name.rpartition("/")
    if room:
        return spaced(inner) if room == "speed" else f"{spaced(room)}: {spaced(inner)}"
    if name.endswith(_INTERVAL):
        return f"{spaced(name.removesuffix(_INTERVAL))}, 95 % interval"
    first, _, rest = name.partition("_")
    if name not in _NAMES and first in _NAMES and rest:
        return f"{_NAMES[first]} by {spaced(rest)}"
    return _NAMES.get(name) or " ".join(_WORDS.get(word, word) for word in name.split("_"))


def _sorted(
    found: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Plain values, means with intervals, such along inner steps, and the rest."""
    plain, means, along, rest = {}, {}, {}, {}
    for name, value in found.items():
        if value is None or isinstance(value, (bool, int, float, str)) or _numbers(value):
            plain[name] = value
        elif _is_mean(value):
            means[name] = value
        elif _alike(value) and all(_is_mean(v) and _is_step(v.get("inner_step")) for v in value):
            along[name] = value
        elif isinstance(value, (Mapping, list)):
            rest[name] = value
    return plain, means, along, rest


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_number, value))


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _is_step(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_mean(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and set(value) <= {"mean", "interval95", "inner_step"}
        and {"mean", "interval95"} <= set(value)
        and all(map(_is_number, value.values()))
    )


def _alike(value: Any) -> bool:
    """Whether it is a list of objects, each of numbers, which are rows of one table."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(v, Mapping) and v and all(map(_is_number, v.values())) for v in value)
    )


def _same_names(values: Sequence[Any]) -> bool:
    """Whether these are objects of the same names, of values that a cell holds."""
    return all(
        isinstance(v, Mapping)
        and list(v) == list(values[0])
        and all(_is_number(x) or _numbers(x) for x in v.values())
        for v in values
    )


def _named_table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    names = list(next(iter(rows.values())))
    body = [[key, *(shown(n, row[n]) for n in names)] for key, row in rows.items()]
    return table(["", *map(spaced, names)], body)


def _mean(name: str, value: Mapping[str, Any]) -> str:
    half = value["interval95"]
    known = half is not None and math.isfinite(half)
    return shown(name, value["mean"]) + (f" ± {shown(name, half)}" if known else "")


def _along_table(along: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    steps = sorted({row["inner_step"] for rows in along.values() for row in rows})
    by_step = [{row["inner_step"]: row for row in rows} for rows in along.values()]
    body = [
        [
            str(step),
            *(_mean(n, rows[step]) if step in rows else "–" for n, rows in zip(along, by_step)),
        ]
        for step in steps[:_MOST_ROWS]
    ]
    return table(["inner steps", *map(spaced, along)], body)


def _ensemble_table(whole: Mapping[str, Any], members: Sequence[Mapping[str, Any]]) -> str:
    names = [n for n in whole if _is_number(whole[n])]
    rows = []
    for name in names:
        of_each = [float(m[name]) for m in members if m.get(name) is not None]
        parts = (statistics.median_low(of_each), min(of_each), max(of_each)) if of_each else ()
        cells = [shown(name, part) for part in parts] or ["–"] * 3
        rows.append([spaced(name), shown(name, whole[name]), *cells])
    return table(["", "the ensemble", "members: median", "lowest", "highest"], rows)


def _rows_table(head: str, rows: Sequence[Mapping[str, Any]], first: int = 0) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    body = [
        [str(place), *(shown(n, row.get(n)) for n in names)]
        for place, row in enumerate(rows[:_MOST_ROWS], first)
    ]
    return table([head, *map(spaced, names)], body)


def _folded(title: str, inner: str) -> str:
    return f"<details><summary>{escaped(title)}</summary>{inner}</details>"
