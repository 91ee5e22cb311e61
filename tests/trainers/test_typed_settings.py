"""Settings that trainers hand on are typed: editors and mypy know all names and hints."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from typing import Any, get_args, get_origin

import pytest
from typing_extensions import Unpack

from metalearn import trainers
from metalearn.signatures import accepted_settings
from metalearn.trainers import LoopSettings
from metalearn.trainers.loop.options import LoopOptions, UnseenLoopOptions
from metalearn.trainers.private.options import PrivacyOptions
from metalearn.trainers.private.settings import PrivacySettings
from metalearn.trainers.supervised.ensemble_options import EnsembleOptions
from metalearn.trainers.supervised.ensemble_training import EnsembleTraining

TRAINERS = [
    getattr(trainers, name)
    for name in trainers.__all__
    if name.endswith("Trainer") and name != "Trainer"
]
PLACED = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def own(function: Callable[..., Any]) -> dict[str, Any]:
    """Hints of the keywords in a signature itself, without what is handed on."""
    hints = typing.get_type_hints(function, include_extras=True)
    every = inspect.signature(function).parameters.values()
    return {p.name: hints[p.name] for p in every if p.kind is p.KEYWORD_ONLY}


def handed_on(function: Callable[..., Any]) -> Any:
    """The TypedDict of the further keywords."""
    hints = typing.get_type_hints(function, include_extras=True)
    (rest,) = (
        p for p in inspect.signature(function).parameters.values() if p.kind is p.VAR_KEYWORD
    )
    assert get_origin(hints[rest.name]) is Unpack, f"{rest.name}: {hints[rest.name]}"
    return get_args(hints[rest.name])[0]


def test_options_of_a_loop_are_its_settings() -> None:
    settings = typing.get_type_hints(LoopSettings)
    settings.pop("steps")  # in the signature of every trainer
    assert typing.get_type_hints(LoopOptions) == settings
    settings.pop("diagnostics")
    assert typing.get_type_hints(UnseenLoopOptions) == settings


@pytest.mark.parametrize(
    ("options", "taken_by"),
    [(EnsembleOptions, EnsembleTraining.__init__), (PrivacyOptions, PrivacySettings.__init__)],
)
def test_options_are_what_the_constructor_takes(options: Any, taken_by: Any) -> None:
    loop = typing.get_type_hints(LoopOptions)
    assert typing.get_type_hints(options) == {**loop, **own(taken_by)}
    assert handed_on(taken_by) is LoopOptions


@pytest.mark.parametrize("trainer", TRAINERS, ids=lambda kind: kind.__name__)
def test_every_trainer_types_all_that_it_takes(trainer: Any) -> None:
    """mypy refuses a name that stands in a signature and in the TypedDict too."""
    options = handed_on(trainer.__init__)
    assert not set(own(trainer.__init__)) & set(typing.get_type_hints(options))
    named = {p.name for p in inspect.signature(trainer).parameters.values() if p.kind in PLACED}
    accepted = accepted_settings(trainer)
    assert set(accepted) == {*named, *own(trainer.__init__), *typing.get_type_hints(options)}
    assert {"steps", "clip", "schedule", "eval_every", "patience", "deterministic"} <= set(accepted)
    assert Any not in accepted.values()
