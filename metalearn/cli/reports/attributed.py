"""What ``attribute`` found, on the page of its run: how far to trust scores, and whose they are.

Axes: none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from metalearn.cli.reports.attributed_tasks import learner_attribution_part, listed
from metalearn.cli.reports.tables import shown
from metalearn.pages import escaped, seconds_in_words, table, warnings_of
from metalearn.pages import number as number_of
from metalearn.schema import Misfit, list_of, map_of, mapping, maybe, number, text

__all__ = ["attribution_part"]

_MOST_TARGETS, _MOST_METHODS, _MOST_WARNINGS, _MOST_COUNTS = 12, 40, 20, 6
_NUMBER = maybe(number(nan=True))
_EXAMPLES = list_of(mapping({"score": _NUMBER}, {"label": text}))
_OF_COUNT = dict.fromkeys(("loss_change", "interval95", "flipped"), _NUMBER)
_LEFT_OUT = list_of(mapping({"left_out": number()}, _OF_COUNT))
_FORM = mapping(
    {"split": text, "state": text, "scores": text, "warnings": list_of(text)},
    {
        "methods": map_of(
            text,
            mapping(
                {"seconds": _NUMBER},
                {
                    "retraining": list_of(
                        mapping(
                            {"left_out": number(), "rank_correlation": _NUMBER},
                            {"interval95": _NUMBER},
                        )
                    ),
                    "leave_k_out": _LEFT_OUT,
                },
            ),
        ),
        "leave_k_out_by_chance": _LEFT_OUT,
        "of_targets": list_of(
            mapping(
                {
                    "loss": _NUMBER,
                    "most_helpful": map_of(text, _EXAMPLES),
                    "most_harmful": map_of(text, _EXAMPLES),
                }
            )
        ),
    },
)


def attribution_part(found: Mapping[str, Any]) -> Iterator[str]:
    """Tables of what ``attribution-<split>.json`` holds; nothing where it holds another thing."""
    if "of_tasks" in found:
        yield from learner_attribution_part(found)
        return
    try:
        _FORM(found, "")
    except Misfit:
        yield from warnings_of(["these findings are not as attribute writes them"])
        return
    words = f"Scores are {found['scores']}. Explained is the state {found['state']}."
    yield f'<p class="soft">{escaped(words)}</p>'
    yield from warnings_of(found["warnings"][:_MOST_WARNINGS])
    methods = dict(list((found.get("methods") or {}).items())[:_MOST_METHODS])
    if not methods:
        return
    shares = sorted({row["left_out"] for m in methods.values() for row in m.get("retraining", [])})
    heads = ["method", "seconds", *(f"foretold, {100 * s:.2g} % left out" for s in shares)]
    rows = [
        [name, seconds_in_words(m["seconds"]), *_foretold(m, shares)] for name, m in methods.items()
    ]
    yield table(heads, rows)
    if shares:
        yield (
            '<p class="soft">Foretold: rank correlation of what scores say with what retraining '
            "without so many examples did, mean over targets ± half of its 95 % interval; 1 is "
            "perfect, 0 is chance.</p>"
        )
    yield from _without_most_helpful(methods, found.get("leave_k_out_by_chance") or [])
    yield from _targets(found.get("of_targets") or [], _best(methods))


def _foretold(method: Mapping[str, Any], shares: Sequence[float]) -> Iterator[str]:
    by_share = {row["left_out"]: row for row in method.get("retraining", [])}
    for share in shares:
        row = by_share.get(share)
        half = None if row is None else row.get("interval95")
        known = half is not None and math.isfinite(half)
        text_of = "–" if row is None else _two_digits(row["rank_correlation"])
        yield text_of + (f" ± {half:.2f}" if known else "")


def _two_digits(value: float | None) -> str:
    return "–" if value is None else number_of(value)


def _without_most_helpful(
    methods: Mapping[str, Mapping[str, Any]], chance: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    """What retraining without each target's most helpful examples did to it, by each method."""
    rows = {"(as many by chance)": chance}
    rows |= {name: found.get("leave_k_out") or [] for name, found in methods.items()}
    rows = {name: entries for name, entries in rows.items() if entries}
    counts = sorted({entry["left_out"] for entries in rows.values() for entry in entries})
    counts = counts[:_MOST_COUNTS]
    if not counts:
        return
    flips = any("flipped" in entry for entries in rows.values() for entry in entries)
    heads = ["left out are the most helpful by"]
    for count in counts:
        heads += [f"{count:g}: loss"] + [f"{count:g}: flipped"] * flips
    body = []
    for name, entries in rows.items():
        by_count = {entry["left_out"]: entry for entry in entries}
        cells = [cell for count in counts for cell in _change(by_count.get(count, {}), flips)]
        body.append([name, *cells])
    yield "<h4>Trained anew without the most helpful examples of each target</h4>"
    yield table(heads, body)
    yield (
        '<p class="soft">How far the loss of a target rises, mean over targets ± half of its 95 % '
        f"interval{', and how many predictions change' if flips else ''}. A method whose numbers "
        "are those of as many by chance has not found what matters.</p>"
    )


def _change(entry: Mapping[str, Any], flips: bool) -> Iterator[str]:
    mean, half, share = (entry.get(n) for n in ("loss_change", "interval95", "flipped"))
    known = half is not None and math.isfinite(half)
    sign = "+" if mean is not None and mean > 0 else ""
    yield sign + _two_digits(mean) + (f" ± {half:.2f}" if known else "")
    if flips:
        yield "–" if share is None or math.isnan(share) else f"{100 * share:.0f} %"


def _best(methods: Mapping[str, Mapping[str, Any]]) -> str:
    """The method that foretold retraining best; the first where none was tried."""

    def foretold(name: str) -> float:
        rows = methods[name].get("retraining") or [{"rank_correlation": None}]
        value = rows[0]["rank_correlation"]
        return -math.inf if value is None or math.isnan(value) else float(value)

    return max(methods, key=foretold)


def _targets(targets: Sequence[Mapping[str, Any]], method: str) -> Iterator[str]:
    some = [t for t in targets if method in t["most_helpful"] and method in t["most_harmful"]]
    some = sorted(some, key=lambda t: -_loss(t))[:_MOST_TARGETS]
    if not some:
        return
    rows = [
        [
            f"{t.get('row', '–')}: {t.get('label', '')}",
            shown("", t["loss"]),
            listed(t["most_helpful"][method]),
            listed(t["most_harmful"][method]),
        ]
        for t in some
    ]
    words = f"Targets of highest loss, and the examples that mattered most, by {method}"
    yield f"<h4>{escaped(words)}</h4>"
    yield table(
        ["target", "loss", "most helpful", "most harmful"],
        rows,
        numbers=[False, True, False, False],
    )


def _loss(target: Mapping[str, Any]) -> float:
    loss = target["loss"]
    return -math.inf if loss is None or math.isnan(loss) else float(loss)
