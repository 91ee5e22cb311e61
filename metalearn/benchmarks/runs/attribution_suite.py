"""The suite ``attribution``: scores, training and retraining, each against what stands beside it.

Axes: N examples, R targets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from metalearn.benchmarks.runs.attribution_race import ATTRIBUTION, QUANTITIES
from metalearn.benchmarks.runs.hyper_suite import left_out
from metalearn.benchmarks.runs.rounds import Finish, agreement, raced

__all__ = ["attribution_race", "attribution_table"]

_OF_TRAINING = ("training", "exact", "retraining")
_TOGETHER = (_OF_TRAINING, *((name,) for name in QUANTITIES if name not in _OF_TRAINING))
_SAME = 0.999  # of rank correlation: what rounding leaves


def attribution_race(*, rounds: int, **numbers: Any) -> dict[str, Finish]:
    """Race all entrants, those whose times are compared together, so that few processes wait.

    Errors are 1 − the rank correlation with ours, mean over targets.

    Args:
        rounds: how often each runs.
        numbers: of the problem.
    """
    found: dict[str, Finish] = {}
    for group in _TOGETHER:
        keys = [key for key, entrant in ATTRIBUTION.entrants.items() if entrant.beside in group]
        found |= raced("attribution", numbers, rounds=rounds, keys=keys)
    for key, finish in found.items():
        ours = found[ATTRIBUTION.entrants[key].beside].result
        if finish.result is not None and ours is not None:
            finish.error = 1 - agreement(finish.result, ours)
    return found


def attribution_table(found: Mapping[str, Finish]) -> str:
    """Markdown: a row for each entrant under its quantity, and ratios between quantities."""
    lines = [
        "| | | ms | ÷ ours | MB | rank correlation with ours |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for key, entrant in ATTRIBUTION.entrants.items():
        finish = found[key]
        if finish.failure:
            continue
        same = 1 - finish.error
        note = "" if key == entrant.beside else f"{same:.3f}"
        if same < _SAME:
            note += ", other projections" if entrant.beside == "trak" else ", another result"
        lines.append(
            f"| {QUANTITIES[entrant.beside]} | {entrant.title} | {1e3 * finish.seconds:.0f} "
            f"| {finish.ratio:.2f} | {finish.memory / 1e6:.0f} | {note} |"
        )
    return "\n".join([*lines, *left_out(ATTRIBUTION, [found]), "", *_ratios(found)])


def _ratios(found: Mapping[str, Finish]) -> list[str]:
    """Exact scores and retraining in units of one training."""
    lines = [
        "| in trainings | ours ÷ ours | loop ÷ loop | ours ÷ module, backward, torch.optim |",
        "| --- | --- | --- | --- |",
    ]
    for quantity in ("exact", "retraining"):
        pairs = (("", ""), ("_loop", "_loop"), ("", "_torch"))
        ratios = [
            found[f"{quantity}{way}"].seconds / found[f"training{unit}"].seconds
            for way, unit in pairs
        ]
        cells = " | ".join(f"{ratio:.2f}" for ratio in ratios)
        lines.append(f"| {QUANTITIES[quantity]} | {cells} |")
    return lines
