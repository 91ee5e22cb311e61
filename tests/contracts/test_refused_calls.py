"""Mistakes are refused by name, right neighbours taken, errors of given functions left alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from metalearn.errors import DataError, SettingError
from tests.contracts.refused import ACCEPTED, REFUSED, Changed
from tests.contracts.test_bad_calls import EVERY


def run(name: str, changes: dict[str, Any]) -> None:
    """A call with changed arguments, to its end."""
    function, given = EVERY[name]()
    for argument, change in changes.items():
        new = change.change(given.get(argument)) if isinstance(change, Changed) else change
        given = {**given, argument: new}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = function(**given)
        if hasattr(found, "__next__"):
            list(found)


@pytest.mark.parametrize(
    ("name", "changes", "message"), REFUSED, ids=lambda value: value if type(value) is str else ""
)
def test_a_mistake_is_refused(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises((SettingError, DataError), match=message) as caught:
        run(name, changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "changes"), ACCEPTED, ids=lambda value: value if type(value) is str else ""
)
def test_a_right_neighbour_is_taken(name: str, changes: dict[str, Any]) -> None:
    run(name, changes)


class Mine(Exception):
    """An error of the user's own."""


def functions() -> Iterator[tuple[str, str]]:
    """Every call with each argument that is a function."""
    for name, make in EVERY.items():
        for argument, value in make()[1].items():
            if callable(value) and not isinstance(value, torch.nn.Module):
                yield name, argument


@pytest.mark.parametrize("kind", [Mine, ValueError, RuntimeError, TypeError, KeyError])
@pytest.mark.parametrize(("name", "argument"), list(functions()))
def test_an_error_inside_a_given_function_surfaces_as_it_is(
    name: str, argument: str, kind: type[Exception]
) -> None:
    raised: list[Exception] = []

    def broken(*args: Any, **kwargs: Any) -> Any:
        raised.append(kind("mine"))
        raise raised[-1]

    found = None
    try:
        run(name, {argument: broken})
    except Exception as error:
        found = error
    if raised:
        assert any(found is one for one in raised)
    else:
        assert found is None  # what is made of it is called later


def network_that_raises(error: Exception) -> Callable[..., torch.nn.Module]:
    class Broken(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise error

    return lambda: Broken(1, 1)


@pytest.mark.parametrize("kind", [Mine, ValueError, RuntimeError, TypeError, KeyError])
def test_an_error_inside_a_network_surfaces_as_it_is(kind: type[Exception]) -> None:
    from metalearn.tasks import SinusoidTasks
    from metalearn.trainers import MetaLearner

    learner = MetaLearner(network_that_raises(kind("mine"))(), kind="regression")
    batch = SinusoidTasks().sample("train", [0, 1])
    support = (batch.support[0][0], batch.support[1][0])
    for entry in (
        lambda: learner.adapt(support),
        lambda: learner.score(batch),
        lambda: learner.meta_gradient(batch),
        lambda: learner.outputs(support[0]),
    ):
        with pytest.raises(kind, match="^'?mine'?$"):
            entry()
