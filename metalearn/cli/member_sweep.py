"""A sweep whose runs are the members of one ensemble: its seeds, its table, its winner.

Axes: M members.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, open_dict

from metalearn.cli.given_settings import plain_value
from metalearn.cli.targets import accepted_of, target_of
from metalearn.core.memory import check_memory
from metalearn.percent import decimals, is_accuracy, percent
from metalearn.trainers import Trainer
from metalearn.trainers.report import Report

__all__ = ["put_one_seed", "sweep_of", "sweep_text"]

_OF_MEMBERS = ("lr", "weight_decay", "label_smoothing", "dropout")
_SHOWN = 12  # members of which a table tells; all are in results.json
_NOT_TESTED = "not tested"
_OF_A_SEED = 1_000  # bytes, in a configuration


def put_one_seed(config: DictConfig) -> None:
    """Give all members of a sweep the seed of the run, where none were asked for.

    So members differ in nothing but what is swept; those of equal settings, in a list that repeats
    some, have further seeds. What is put stands in the run's ``config.yaml``; runs of before have
    other seeds and keep them.

    Raises:
        SettingError: there is no memory for so many members.
    """
    trainer = config.trainer
    if trainer.get("seeds") is not None or "seeds" not in accepted_of(trainer, "trainer"):
        return
    members = trainer.get("members")
    given = [plain_value(trainer.get(name)) for name in _OF_MEMBERS]
    one = getattr(target_of(trainer, "trainer"), "networks", None) == 1
    if one or not members or not any(map(_differs, given)):
        return
    check_memory("trainer.members", members, _OF_A_SEED * members)
    lists = [value for value in given if isinstance(value, list)]
    if any(len(values) != members for values in lists):
        return  # which is refused where they are read
    ranges = any(isinstance(value, dict) and _differs(value) for value in given)
    rows = range(members) if ranges else zip(*lists)
    before: Counter[str] = Counter()
    with open_dict(config):
        trainer.seeds = []
        for row in map(str, rows):
            trainer.seeds.append(config.seed + before[row])
            before[row] += 1


def _differs(value: Any) -> bool:
    """Whether a setting has several values over members."""
    if isinstance(value, dict):
        return value.get("low") != value.get("high")
    return isinstance(value, list) and len(set(map(str, value))) > 1


def sweep_of(trainer: Trainer, reports: Mapping[str, Report]) -> dict[str, Any] | None:
    """Members in the order of their best validation, with settings, seeds and tests.

    None where members do not differ in any setting but their seeds. A test never orders anything.
    """
    rows = trainer.member_settings()
    names = [name for name in (rows[0] if rows else ()) if name in _OF_MEMBERS]
    if not any(_varies(rows, name) for name in names):
        return None
    tests = [t for report in reports.values() for t in report.member_headlines()]
    values, steps = trainer.best_values.tolist(), trainer.best_steps.tolist()
    members = [
        {
            "member": index,
            **row,
            "validation": values[index],
            "best_step": steps[index],
            **(tests[index] if len(tests) == len(rows) else {}),
        }
        for index, row in enumerate(rows)
    ]
    sign = -1 if trainer.larger_is_better else 1
    members.sort(key=lambda row: (not math.isfinite(row["validation"]), sign * row["validation"]))
    known = math.isfinite(members[0]["validation"])
    return {
        "ordered_by": trainer.monitor.replace("member_", ""),
        "winner": members[0]["member"] if known else None,
        "members": members,
    }


def sweep_text(sweep: Mapping[str, Any]) -> str:
    """A table of the sweep, the winner named under it."""
    members: Sequence[Mapping[str, Any]] = sweep["members"]
    score = sweep["ordered_by"].rpartition("/")[2]
    settings = [name for name in members[0] if name in _OF_MEMBERS and _varies(members, name)]
    tests = [name for name in ("test/accuracy", "test/nll", "test/rmse") if name in members[0]]
    heads = ["member", *settings, "seed", f"validation {score}", "best step"]
    heads += [name.replace("/", " ") for name in tests]
    keys = ["member", *settings, "seed", "validation", "best_step", *tests]
    table = [[_cell(key, row[key], score) for key in keys] for row in members[:_SHOWN]]
    widths = [max(map(len, column)) for column in zip(heads, *table)]
    lines = [f"sweep: {len(members)} members, the best {score} of validation first"]
    lines += ["  " + "  ".join(map(str.rjust, row, widths)) for row in (heads, *table)]
    if len(members) > _SHOWN:
        lines.append(f"  and {len(members) - _SHOWN} more in results.json, under sweep")
    return "\n".join([*lines, *_conclusion(members, sweep["winner"], settings, score, tests)])


def _conclusion(
    members: Sequence[Mapping[str, Any]],
    winner: int | None,
    settings: Sequence[str],
    score: str,
    tests: Sequence[str],
) -> list[str]:
    if winner is None:
        return ["  no member has a finite score of validation, so there is no winner"]
    best = members[0]
    chosen = ", ".join(f"{name} {best[name]:.4g}" for name in settings)
    shown = [f"{n.replace('/', ' ')} {_cell(n, best[n], score)}" for n in tests]
    lines = [f"winner by validation: member {winner}, {chosen}; {', '.join(shown) or _NOT_TESTED}"]
    for name in settings:
        every = sorted({row[name] for row in members})
        if len(every) > 2 and best[name] in (every[0], every[-1]):
            end = "smallest" if best[name] == every[0] else "largest"
            lines.append(f"  its {name} is the {end} that was tried: better ones may lie beyond")
    if len({row["seed"] for row in members}) == 1:
        lines.append("  one seed for all, so that members differ by these settings alone")
    return lines


def _varies(members: Sequence[Mapping[str, Any]], name: str) -> bool:
    return len({row[name] for row in members}) > 1


def _cell(name: str, value: float, score: str) -> str:
    if is_accuracy(score if name == "validation" else name):
        return percent(value)
    if name in ("member", "seed", "best_step") and math.isfinite(value):
        return str(int(value))
    return decimals(value)
