"""``metalearn study``: run studies of what attribution and hypergradients are good for."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from metalearn.cli.error_messages import one_sentence_errors
from metalearn.cli.usage import OptionParser, typed
from metalearn.errors import SettingError
from metalearn.studies import STUDIES, StudyRunner, chosen_studies, read_results, study_table
from metalearn.trainers.loop.stop_signal import Stopped

__all__ = ["study"]

_FOLDER = Path("outputs") / "studies"
_SEEDS = 5


@one_sentence_errors()
def study(arguments: Sequence[str]) -> None:
    """Run studies, seed after seed, and print their tables; what is finished is not run again.

    Raises:
        SettingError: an unknown study or option.
        DataError: a file in the folder that is no result.
        SystemExit: 130 where a signal stopped it.
    """
    options = _parser().parse_args(arguments)
    if options.seeds < 1:
        raise SettingError("--seeds", options.seeds, "a number of at least 1 is needed")
    studies, folder = chosen_studies(options.study), Path(options.folder)
    runner, results = StudyRunner(folder), read_results(folder)
    if options.list:
        for one in studies:
            done = ", ".join(str(result.seed) for result in results[one.name]) or "none"
            print(f"{one.name:<20} {one.title}; seeds that have been run: {done}")
        return
    try:
        for seed in [] if options.table else range(options.seeds):
            for one in studies:
                if not runner.kept(one, seed).exists():
                    print(f"{one.name}, seed {seed}", flush=True)
                    runner.run(one, seed)
    except Stopped:
        print("stopped; the same command goes on with the study that was broken off")
        raise SystemExit(130) from None
    results = read_results(folder)
    for one in studies:
        if results[one.name]:
            print(f"\n{study_table(one, results[one.name])}")


def _parser() -> argparse.ArgumentParser:
    parser = OptionParser(
        prog=typed("study"),
        description="Run studies of what attribution and hypergradients are good for, over several "
        "seeds, and print their tables. Settings are chosen by validation. What is finished is not "
        "run again.",
    )
    parser.add_argument(
        "study", nargs="*", help=f"names, or patterns, of {', '.join(STUDIES)}; all by default"
    )
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--list", action="store_true", help="say what the studies are, and stop")
    instead.add_argument("--table", action="store_true", help="print the tables alone")
    parser.add_argument("--seeds", type=int, default=_SEEDS, help="how many (%(default)s)")
    parser.add_argument("--folder", default=str(_FOLDER), help="of the results (%(default)s)")
    return parser
