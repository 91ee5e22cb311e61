"""The order of the rows of a comparison: by validation scores, where these can be compared.

Axes: none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from metalearn.cli.comparison.rows import Row
from metalearn.cli.comparison.settings import as_typed, key_of

__all__ = ["ordered"]

_LARGER, _SMALLER = ("accuracy",), ("loss", "nll", "objective")
_OWN_LOSS = "objective"
"""Last part of the name of a validation score that is a loss of the user's own."""
_SIZES = ("way", "shot", "query", "split")


def ordered(rows: Sequence[Row]) -> tuple[list[Row], str]:
    """Rows by their validation score, where one goes for all, and what decided the order.

    Test scores decide nothing: the best of several by its test score is better than it will be.
    """
    done = [row for row in rows if row.state is None]
    scores = {row.score for row in done}
    score = scores.pop() if len(scores) == 1 else None
    last = ""
    if len(done) < len(rows):
        last = "; runs that are not finished come last"
    if len(rows) < 2:
        return list(rows), "There is one row."
    reason = _unordered(done, score)
    if score is None or reason is not None:
        return list(rows), f"Rows stand in the order in which they were found: {reason}."
    larger = _larger_is_better(score)
    sign = -1 if larger else 1

    def place(row: Row) -> tuple[bool, float]:
        found = math.nan if row.state else row.numbers[score].mean
        return row.state is not None, sign * found if math.isfinite(found) else math.inf

    best = "the highest" if larger else "the lowest"
    ordered = sorted(rows, key=place)
    return ordered, f"Rows stand in the order of {score} (validation), {best} first{last}."


def _unordered(rows: Sequence[Row], score: str | None) -> str | None:
    """Why the validation score of some rows says nothing of which is better; None where it does."""
    if not rows:
        return "none is finished"
    if score is None or _larger_is_better(score) is None:
        return "not all have the same validation score"
    if _tests_differ(rows):
        return "their tasks or data differ"
    if score.endswith(_OWN_LOSS):
        losses = {
            key_of(_loss_of(run.config)): _loss_of(run.config) for r in rows for run in r.runs
        }
        if len(losses) > 1:
            shown = ", ".join(as_typed(loss) for loss in losses.values())
            return f"{score} is the loss that each was trained by, and these differ ({shown})"
    return None


def _loss_of(config: Mapping[str, Any]) -> Any:
    trainer = config.get("trainer")
    return trainer.get("loss") if isinstance(trainer, Mapping) else None


def _larger_is_better(score: str) -> bool | None:
    if any(name in score for name in _LARGER):
        return True
    return False if any(name in score for name in _SMALLER) else None


def _tests_differ(rows: Sequence[Row]) -> bool:
    """Whether rows are of different tasks or data, whatever setting has brought that about."""
    return any(
        len({key_of(_choice_of(run.config.get(name))) for row in rows for run in row.runs}) > 1
        for name in ("task", "data")
    )


def _choice_of(node: Any) -> Any:
    """What a group builds, and the sizes that say how hard it is."""
    if not isinstance(node, Mapping):
        return node
    return {name: node.get(name) for name in ("_target_", *_SIZES)}
