"""All chapters in their order, and how to walk through them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from metalearn.near_names import check_known
from metalearn.tour import (
    axes,
    engine,
    gradients,
    hessians,
    jacobians,
    losses,
    names,
    programs,
    samples,
)
from metalearn.tour.stops import Chapter, ScalarEngine, Stop, check

__all__ = ["chapters", "choose", "walk"]


def chapters(scalar_engine: ScalarEngine) -> tuple[Chapter, ...]:
    """The tour; ``scalar_engine`` is what its last chapter takes apart."""
    return (
        gradients.CHAPTER,
        axes.CHAPTER,
        names.CHAPTER,
        samples.CHAPTER,
        jacobians.CHAPTER,
        hessians.CHAPTER,
        losses.CHAPTER,
        programs.CHAPTER,
        engine.chapter(scalar_engine),
    )


def choose(tour: Sequence[Chapter], names: Sequence[str]) -> list[tuple[int, Chapter]]:
    """Chapters by name with their numbers, in the order of the tour; all without names.

    Raises:
        SettingError: a name that no chapter has.
    """
    known = [chapter.name for chapter in tour]
    for name in names:
        check_known("chapter", name, known, "one of {} is needed")
    numbered = enumerate(tour, start=1)
    return [(i, chapter) for i, chapter in numbered if not names or chapter.name in names]


def walk(chapter: Chapter) -> Iterator[Stop]:
    """Run a chapter's stops one after another, each checked before the next.

    Raises:
        DisagreementError: a stop whose ways do not agree.
    """
    for stop in chapter.stops:
        yield check(stop())
