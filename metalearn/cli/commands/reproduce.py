"""``metalearn reproduce``: train and test rows of the ledger, and write its page."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from metalearn.cli.error_messages import one_sentence_errors
from metalearn.cli.usage import OptionParser, typed
from metalearn.errors import SettingError
from metalearn.files import replace_file
from metalearn.ledger import (
    TABLES,
    Commands,
    Interrupted,
    Outcome,
    Row,
    RowRunner,
    chosen_rows,
    ledger_page,
    read_outcomes,
    result_line,
)

__all__ = ["reproduce"]

_FOLDER = Path("outputs") / "ledger"
_PAGE = Path("docs") / "ledger.md"


@one_sentence_errors()
def reproduce(arguments: Sequence[str]) -> None:
    """Run rows, cheapest first, and write the page after each; prints what is done.

    Raises:
        SettingError: an unknown row or option.
        DataError: a training or a test that failed.
        SystemExit: 130 where a training was stopped.
    """
    options = _parser().parse_args(arguments)
    if options.page and options.row:
        raise SettingError("row", options.row[0], "none is needed with --page, which has all rows")
    if options.device and (options.page or options.list):
        raise SettingError("--device", options.device, "nothing is trained, so none is needed")
    rows = chosen_rows(options.row)
    folder = Path(options.folder)
    further = [f"device={options.device}"] if options.device else []
    runner = RowRunner(folder, Commands([sys.executable, "-m", "metalearn"]), further)
    if options.list:
        _print_rows(rows, runner, read_outcomes(folder))
        return
    _write_page(folder)
    for row in [] if options.page else rows:
        try:
            _run(row, runner)
        except Interrupted as stop:
            print(stop)
            raise SystemExit(130) from None
        _write_page(folder)


def _run(row: Row, runner: RowRunner) -> None:
    for seed in row.seeds:
        if runner.state(row, seed) == "finished":
            continue
        print(f"{row.name}, seed {seed}: about {row.minutes} minutes", flush=True)
        found = runner.run(row, seed)
        for protocol, score in found.scores.items():
            unit = "" if TABLES[row.table].measure == "loss" else " %"
            print(f"  {protocol}: {score.mean:.3g} ± {score.interval95:.2g}{unit}", flush=True)


def _write_page(folder: Path) -> None:
    """Beside the other pages of a checkout, else into the folder."""
    path = _PAGE if _PAGE.parent.is_dir() else folder / "ledger.md"
    text = ledger_page(read_outcomes(folder))
    replace_file(path, lambda file: file.write(text.encode()))


def _print_rows(
    rows: Sequence[Row], runner: RowRunner, outcomes: Mapping[str, Sequence[Outcome]]
) -> None:
    for row in rows:
        title = TABLES[row.table].title
        states = {seed: runner.state(row, seed) for seed in row.seeds}
        left = ", ".join(f"seed {s} {state}" for s, state in states.items() if state != "finished")
        todo = f"; about {row.minutes} minutes a seed, {left}" if left else ""
        result = result_line(row, outcomes.get(row.name, ()))
        print(f"{row.name:<28} {title}: {row.method}; {result}{todo}")


def _parser() -> argparse.ArgumentParser:
    parser = OptionParser(
        prog=typed("reproduce"),
        description="Train and test rows of the ledger of reproductions, cheapest first, and write "
        "its page. What is finished is not run again; what was stopped goes on.",
    )
    parser.add_argument(
        "row", nargs="*", help="names of rows or tables, or patterns; all rows by default"
    )
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--list", action="store_true", help="say what the rows are, and stop")
    instead.add_argument("--page", action="store_true", help="write the page alone")
    parser.add_argument("--folder", default=str(_FOLDER), help="of runs and outcomes (%(default)s)")
    parser.add_argument("--device", help="where to train: auto, cpu, cuda, mps")
    return parser
