"""``metalearn tour``: walk through the chapters and print what is seen."""

from __future__ import annotations

import argparse
import textwrap
import time
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from metalearn.cli.error_messages import one_sentence_errors
from metalearn.cli.usage import OptionParser, typed
from metalearn.core.tree import leaves, norm
from metalearn.tour import Chapter, ScalarEngine, Stop, Way, chapters, choose, scalar_engine, walk

__all__ = ["take_tour"]

_WIDTH = 100
_WELCOME = """
A tour of the mathematics that metalearn stands on. Every value is computed in two ways or more, and
the tour stops with an error where they disagree. The code that is shown is the code that ran.

All numbers are float64: normal(*shape, seed=...) draws them, number(value) is a single one. Times
are medians of a few calls on one thread; 12 × is twelve times as long as the way in the first line.
"""


@one_sentence_errors()
def take_tour(arguments: Sequence[str], *, engine: ScalarEngine = scalar_engine) -> None:
    """Walk through all chapters, or those that are named; prints what is seen.

    Args:
        arguments: of the command line.
        engine: the scalar engine that the last chapter takes apart.

    Raises:
        SystemExit: 2 for an unknown chapter, 1 where two ways disagree.
    """
    tour = chapters(engine)
    options = _parser(tour).parse_args(arguments)
    if options.list:
        for number, chapter in enumerate(tour, start=1):
            print(f"{number}  {chapter.name:<10} {chapter.about}")
        return
    chosen = choose(tour, options.chapter)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # for problems this small, threads add nothing but noise to times
    try:
        _print_tour(chosen)
    finally:
        torch.set_num_threads(threads)


def _print_tour(chosen: Sequence[tuple[int, Chapter]]) -> None:
    print(_WELCOME.strip())
    start, count = time.perf_counter(), 0
    with warnings.catch_warnings():
        # torch's own, at the first jvp (torch 2.14)
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
        for number, chapter in chosen:
            _print_heading(number, chapter)
            for index, stop in enumerate(walk(chapter), start=1):
                _print_stop(f"{number}.{index}", stop)
                count += 1
    seconds = time.perf_counter() - start
    print(f"\n\n{count} stops, all of them equal where they must be, in {seconds:.1f} s.")


def _parser(tour: Sequence[Chapter]) -> argparse.ArgumentParser:
    names = ", ".join(chapter.name for chapter in tour)
    parser = OptionParser(
        prog=typed("tour"),
        description="A walk through the mathematics: everything computed twice, and timed.",
    )
    parser.add_argument("chapter", nargs="*", help=f"{names}; all of them by default")
    parser.add_argument("--list", action="store_true", help="say what the chapters are, and stop")
    return parser


def _print_heading(number: int, chapter: Chapter) -> None:
    print(f"\n\n{f'━━ {number}  {chapter.title} ':━<{_WIDTH}}\n")
    print(_filled(chapter.about) + "\n")
    print(_quoted(chapter.preamble))
    if chapter.source:
        print("\nThe engine, whole:\n")
        print(_quoted(chapter.source))


def _print_stop(number: str, stop: Stop) -> None:
    print(f"\n\n{number}  {stop.title}")
    print(f"     {stop.formula}\n")
    print(textwrap.indent(_filled(stop.about, _WIDTH - 5), " " * 5) + "\n")
    print(_quoted(stop.code) + "\n", flush=True)
    first = stop.ways[0]
    for way in stop.ways:
        verdict = "" if way is first else f"✓ {_equality(way.error)}"
        print(_row(way, first, verdict))
    if stop.unlike is not None:
        print(_row(stop.unlike, first, f"≠ differs by {stop.unlike.error:.2g}"))
    if stop.note:
        print(f"     {stop.note}")


def _row(way: Way, first: Way, verdict: str) -> str:
    ratio = "" if way is first else _ratio(way.seconds / first.seconds)
    spent = _duration(way.seconds)
    return f"     {way.label:<26}{_shown(way.value):<31}{spent:>8}{ratio:>9}  {verdict}".rstrip()


def _ratio(ratio: float) -> str:
    if ratio < 0.01:
        return "< 0.01 ×"
    return f"{ratio:.{0 if ratio >= 10 else 1 if ratio >= 1 else 2}f} ×"


def _equality(error: float) -> str:
    return f"equal to {error:.0e}" if error else "bit for bit"


def _duration(seconds: float) -> str:
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.0f} µs" if seconds >= 1e-6 else "< 1 µs"


def _shown(value: object) -> str:
    """A value in 30 characters: its numbers where they fit, else its shapes and norm."""
    parts: list[Tensor] = leaves(value)
    numbers = ", ".join(_numbers(part) for part in parts)
    if len(numbers) <= 30:
        return numbers
    shapes = " ".join(str(list(part.shape)) for part in parts)
    return f"{shapes}, norm {norm(value):.4g}" if len(shapes) <= 16 else shapes


def _numbers(part: Tensor) -> str:
    texts = [f"{x:.4g}" for x in part.reshape(-1)[:16].tolist()]
    return texts[0] if part.dim() == 0 else f"[{', '.join(texts)}]"


def _filled(text: str, width: int = _WIDTH) -> str:
    return textwrap.fill(" ".join(text.split()), width)


def _quoted(code: str) -> str:
    return "\n".join(f"  │ {line}".rstrip() for line in code.splitlines())
