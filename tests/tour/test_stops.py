"""Every stop of the tour passes, what it shows is what ran, and a wrong stop is caught."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from metalearn.core.tree import leaves
from metalearn.errors import SettingError
from metalearn.tour import (
    Chapter,
    DisagreementError,
    Stop,
    Ways,
    chapters,
    check,
    choose,
    scalar_engine,
    stop,
    walk,
)

TOUR = chapters(scalar_engine)


@functools.cache
def walked(name: str) -> list[Stop]:
    ((_, chapter),) = choose(TOUR, [name])
    return list(walk(chapter))


@pytest.mark.parametrize("chapter", TOUR, ids=lambda c: c.name)
def test_every_stop_passes_and_explains_itself(chapter: Chapter) -> None:
    stops = walked(chapter.name)
    assert len(stops) == len(chapter.stops) >= 3
    for one in stops:
        assert one.title and one.about and one.formula and one.code
        assert len(one.ways) >= 2
        retrained = any(way.label == "of two retrainings" for way in one.ways)
        assert one.tolerance <= (1e-8 if retrained else 1e-12)  # a finite difference is no more
        for way in one.ways:
            assert way.error <= (one.tolerance if "retrainings" in way.label else 1e-12)
        for way in one.ways:
            assert all(v.dtype == torch.float64 for v in leaves(way.value))


@pytest.mark.parametrize("chapter", TOUR, ids=lambda c: c.name)
def test_the_code_that_is_shown_runs_by_itself_and_gives_what_is_shown(chapter: Chapter) -> None:
    for one in walked(chapter.name):
        names = {"engine": scalar_engine}
        exec(compile(f"{chapter.preamble}\n{one.code}", one.title, "exec"), names)
        for way in (*one.ways, *([one.unlike] if one.unlike else [])):
            value = names[way.label.replace(" ", "_")]()
            for a, b in zip(leaves(value), leaves(way.value)):
                torch.testing.assert_close(torch.as_tensor(a, dtype=torch.float64), b)


def test_the_tour_has_its_stops() -> None:
    titles = {c.name: [one.title for one in walked(c.name)] for c in TOUR}
    assert list(titles) == [
        *("gradients", "vmap", "names", "samples", "jacobians", "hessians", "losses"),
        *("programs", "engine"),
    ]
    labels = {way.label for c in TOUR for one in walked(c.name) for way in one.ways}
    assert {
        *("functional", "stateful", "by vjp", "by jvp", "through adapt", "first order"),
        *("by vmap", "by loop", "by two loops", "with groups", "all at once"),
        *("row by row", "by reverse mode", "by forward mode", "by summing outputs"),
        *("forward over reverse", "reverse over reverse", "of dict", "of tuple", "of module"),
        *("engine walks back", "forwards", "backwards"),
        *("by name", "as compiled", "of two retrainings"),
    } <= labels


def test_the_closed_forms_of_a_step_are_those_of_the_numbers() -> None:
    full, truncated = walked("gradients")[2:]
    w, x, alpha = 3.0, 2.0, 0.1
    assert float(full.ways[0].value) == pytest.approx((1 - 2 * alpha * x) ** 2 * 2 * w * x)
    assert float(truncated.ways[0].value) == pytest.approx(2 * w * x * (1 - 2 * alpha * x))
    assert torch.equal(truncated.unlike.value, full.ways[1].value)


def test_the_shape_decides_the_mode() -> None:
    tall, wide = walked("jacobians")[:2]
    assert tall.note == "ours chose forward mode" and wide.note == "ours chose reverse mode"


def test_the_global_random_state_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    for chapter in TOUR:
        list(walk(chapter))
    assert torch.equal(torch.random.get_rng_state(), before)


def of(first: Any, second: Any, *, unlike: Any = None) -> Callable[[], Stop]:
    @stop("Two numbers", formula="a = b")
    def numbers():
        """Compare."""

        def one():
            return first

        def other():
            return second

        def third():
            return unlike

        return Ways((one, other), unlike=None if unlike is None else third)

    return numbers


def test_a_wrong_stop_is_caught() -> None:
    with pytest.raises(
        DisagreementError, match=r"^Two numbers: other and one differ by 1\.0e-03, more than 1e-12"
    ):
        check(of(1.0, 1.001)())


def test_a_wrong_stop_ends_the_walk() -> None:
    chapter = Chapter("wrong", "Wrong", "Wrong.", (of(1.0, 1.0), of(1.0, 2.0), of(1.0, 1.0)))
    seen = walk(chapter)
    assert next(seen).ways[1].error == 0
    with pytest.raises(DisagreementError, match="other and one differ"):
        next(seen)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (float("nan"), float("nan")),
        (1.0, float("nan")),
        (float("nan"), 1.0),
        (float("inf"), float("inf")),
        (torch.ones(2).double(), torch.ones(1, 2).double()),  # broadcasting must not hide it
        ((1.0, 2.0), (1.0,)),
    ],
)
def test_what_is_not_a_number_or_of_another_shape_is_no_agreement(first: Any, second: Any) -> None:
    with pytest.raises(DisagreementError):
        check(of(first, second)())


def test_the_error_is_relative_to_large_values_and_absolute_for_small_ones() -> None:
    assert of(200.0, 200.5)().ways[1].error == pytest.approx(0.5 / 200)
    assert of(1e-3, 2e-3)().ways[1].error == pytest.approx(1e-3)


def test_what_must_differ_must_differ() -> None:
    assert check(of(1.0, 1.0, unlike=2.0)()).unlike.error == 1.0
    with pytest.raises(DisagreementError, match=r"^Two numbers: third and one must not agree$"):
        check(of(1.0, 1.0, unlike=1.0)())


def test_an_engine_with_a_wrong_rule_is_caught() -> None:
    class Wrong:
        Scalar, vmap = scalar_engine.Scalar, staticmethod(scalar_engine.vmap)

        @staticmethod
        def gradients(output, inputs):
            return [g * 1.001 for g in scalar_engine.gradients(output, inputs)]

    *_, chapter = chapters(Wrong)
    with pytest.raises(DisagreementError, match="A polynomial"):
        list(walk(chapter))


def test_chapters_come_in_the_order_of_the_tour() -> None:
    assert [number for number, _ in choose(TOUR, [])] == list(range(1, 10))
    assert [c.name for _, c in choose(TOUR, ["hessians", "vmap"])] == ["vmap", "hessians"]
    with pytest.raises(SettingError, match=r"^chapter='hessian': one of gradients, .*engine is"):
        choose(TOUR, ["hessian"])
