"""What a callable accepts, and how misfits are named."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import torch
from torch import Tensor, nn

from metalearn.errors import CallError, SettingError
from metalearn.models import MLP, Conv4
from metalearn.signatures import accepted_settings, check_settings, checked
from metalearn.tasks import FewShotTasks, SinusoidTasks, folder_tasks, glyph_tasks, omniglot_tasks
from metalearn.trainers import MAML, LoopSettings, MetaTrainer
from metalearn.types import SampleDistribution, TaskDistribution, offers


def function(
    count: int = 1,
    rate: float = 0.1,
    flag: bool = False,
    mode: Literal["fast", "slow"] = "fast",
    channels: Literal[1, 3] = 1,
    limit: float | None = None,
    name: str = "a",
    root: str | Path | None = None,
    sizes: Sequence[int] = (1,),
    pair: tuple[float, float] = (0.0, 1.0),
    names: list[str] | None = None,
    anything: Any = None,
    bare=None,  # type: ignore[no-untyped-def]
) -> None: ...


class Outer:
    def __init__(self, x: int, **rest: Annotated[Any, "not a callable"]) -> None: ...


class Inner:
    def __init__(self, alpha: float, *, beta: int = 0) -> None: ...


class Middle:
    def __init__(self, gamma: str = "", **inner: Annotated[Any, Inner]) -> None: ...


def top(first: int, *more: int, second: bool = True, **middle: Annotated[Any, Middle]) -> None: ...


@dataclass(frozen=True)
class Record:
    width: int = 1
    height: float = 2.0


class Wrapped:
    """Around a source of tasks, of which it hands everything on."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class Child(Inner):
    pass


def _check(name: str, value: object) -> None:
    check_settings(function, {name: value}, "part.")


# --- accepted_settings -------------------------------------------------------------------------


def test_names_and_hints_of_a_function() -> None:
    accepted = accepted_settings(function)
    assert list(accepted)[:3] == ["count", "rate", "flag"]
    assert accepted["count"] is int
    assert accepted["mode"] == Literal["fast", "slow"]
    assert accepted["bare"] is Any


def test_classes_leave_self_out() -> None:
    assert accepted_settings(Inner) == {"alpha": float, "beta": int}
    assert accepted_settings(Child) == accepted_settings(Inner)


def test_dataclasses_are_read_by_their_fields() -> None:
    assert accepted_settings(Record) == {"width": int, "height": float}


def test_further_keywords_are_followed_through_every_callable() -> None:
    accepted = accepted_settings(top)
    assert accepted == {"first": int, "second": bool, "gamma": str, "alpha": float, "beta": int}


def test_open_keywords_without_a_callable_add_nothing() -> None:
    def open_ended(a: int, **rest: Any) -> None: ...

    assert list(accepted_settings(open_ended)) == ["a"]


def test_positional_only_arguments_are_no_settings() -> None:
    def positional(a: int, /, b: int) -> None: ...

    assert list(accepted_settings(positional)) == ["b"]


@pytest.mark.parametrize("source", [glyph_tasks, omniglot_tasks, folder_tasks])
def test_sources_take_their_own_settings_and_those_of_the_episodes(source: Any) -> None:
    accepted = accepted_settings(source)
    episodes = accepted_settings(FewShotTasks)
    assert {"way", "shot", "query", "rotate_train", "within_group", "seed"} <= set(episodes)
    assert set(episodes) - {"data"} <= set(accepted)
    assert accepted["image_size"] is int


def test_the_meta_trainer_takes_the_settings_of_the_loop() -> None:
    accepted = accepted_settings(MetaTrainer)
    assert set(accepted_settings(LoopSettings)) <= set(accepted)
    assert accepted["meta_batch"] is int
    assert "settings" not in accepted


@pytest.mark.parametrize("target", [MAML, LoopSettings, MLP, Conv4, SinusoidTasks])
def test_every_public_constructor_has_hints(target: Any) -> None:
    hints = accepted_settings(target)
    assert hints and Any not in hints.values()


# --- check_settings: values that fit -----------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("count", 3),
        ("count", -3),
        ("rate", 0.5),
        ("rate", 1),
        ("rate", math.inf),
        ("flag", True),
        ("mode", "slow"),
        ("channels", 3),
        ("limit", None),
        ("limit", 2),
        ("limit", 0.5),
        ("name", ""),
        ("root", "a/b"),
        ("root", None),
        ("sizes", []),
        ("sizes", [1, 2]),
        ("sizes", (1, 2)),
        ("pair", [0.9, 1]),
        ("names", None),
        ("names", ["a"]),
        ("anything", object()),
        ("bare", object()),
    ],
)
def test_values_that_fit(name: str, value: object) -> None:
    _check(name, value)
    assert name in accepted_settings(function)


def test_no_values_are_fine() -> None:
    check_settings(function, {}, "")
    assert accepted_settings(function)


# --- check_settings: values that do not fit ----------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("count", 1.0, "a whole number is needed"),
        ("count", "1", "a whole number is needed"),
        ("count", True, "a whole number is needed"),
        ("count", None, "a whole number is needed"),
        ("rate", "fast", "a number is needed"),
        ("rate", "1e-3", "a number is needed"),
        ("rate", False, "a number is needed"),
        ("rate", math.nan, "a number is needed"),
        ("rate", None, "a number is needed"),
        ("flag", 1, "true or false is needed"),
        ("flag", "true", "true or false is needed"),
        ("flag", None, "true or false is needed"),
        ("mode", "Slow", "one of fast, slow is needed"),
        ("mode", ["fast"], "one of fast, slow is needed"),
        ("mode", None, "one of fast, slow is needed"),
        ("channels", 2, "one of 1, 3 is needed"),
        ("channels", "3", "one of 1, 3 is needed"),
        ("channels", True, "one of 1, 3 is needed"),
        ("channels", 1.0, "one of 1, 3 is needed"),
        ("limit", "none", "a number or null is needed"),
        ("limit", math.nan, "a number or null is needed"),
        ("name", 5, "a text is needed"),
        ("root", 5, "a text or a path or null is needed"),
        ("sizes", 5, "a list.* is needed"),
        ("sizes", "12", "a list.* is needed"),
        ("sizes", {"a": 1}, "a list.* is needed"),
        ("names", "abc", "a list.* or null is needed"),
    ],
)
def test_values_of_a_wrong_type(name: str, value: object, wanted: str) -> None:
    with pytest.raises(SettingError, match=rf"^part\.{name}=.*: {wanted}$") as caught:
        _check(name, value)
    assert caught.value.setting == f"part.{name}"
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize("value", [[1, 2.5], ["a"], [True], [[1]], [None]])
def test_a_list_of_the_wrong_things_says_what_belongs_in_it(value: list[object]) -> None:
    with pytest.raises(SettingError, match=r"^part\.sizes=.*a list of whole number.* is needed$"):
        _check("sizes", value)


@pytest.mark.parametrize("value", [[0.9], [0.9, 0.99, 0.999]])
def test_a_pair_has_two_entries(value: list[float]) -> None:
    with pytest.raises(SettingError, match=r"^part\.pair="):
        _check("pair", value)


# --- check_settings: names ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "right"), [("cuont", "count"), ("rates", "rate"), ("channel", "channels")]
)
def test_a_misspelt_name_is_answered_with_the_nearest(wrong: str, right: str) -> None:
    with pytest.raises(
        SettingError,
        match=rf"^part\.{wrong}=1: there is no such setting; did you mean part\.{right}\?$",
    ):
        check_settings(function, {wrong: 1}, "part.")


def test_a_name_like_no_other_is_answered_with_all() -> None:
    with pytest.raises(SettingError, match=r"^zzz=1: there is no such setting; known: alpha, beta"):
        check_settings(Inner, {"zzz": 1}, "")


def test_names_of_the_callable_behind_are_suggested_too() -> None:
    with pytest.raises(SettingError, match=r"did you mean task\.rotate_train\?"):
        check_settings(glyph_tasks, {"rotate_trian": True}, "task.")


def test_the_first_misfit_is_named() -> None:
    with pytest.raises(SettingError, match="^count="):
        check_settings(function, {"rate": 0.1, "count": "x", "flag": "y"}, "")


@checked
def call(
    loss_fn: Callable[[Any, Any], Tensor],
    module: nn.Module | None = None,
    *,
    steps: int = 1,
    lr: float | Tensor = 0.1,
    names: Sequence[str] | str = "",
    batches: Iterable[Any] = (),
    pair: tuple[Tensor, Tensor] | None = None,
    flag: bool = False,
    free: Any = None,
) -> str:
    return "called"


LOSS: Any = lambda params, batch: params  # noqa: E731


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss_fn": None}, "loss_fn=None: a function of 2 arguments is needed"),
        ({"loss_fn": lambda: 0}, "a function of 2 arguments is needed"),
        ({"loss_fn": lambda a: 0}, "a function of 2 arguments is needed"),
        ({"loss_fn": lambda a, b, c: 0}, "a function of 2 arguments is needed"),
        ({"loss_fn": lambda a, b, *, c: 0}, "a function of 2 arguments is needed"),
        ({"module": 3}, "module=3: a Module or null is needed"),
        ({"module": nn.Linear}, "module=<class .*>: a Module or null is needed"),
        ({"names": 1}, "names=1: a list of texts or a text is needed"),
        ({"names": torch.tensor(1.0)}, "names=.*: a list of texts or a text is needed"),
        ({"names": ["a", 1]}, r"names=\['a', 1\]: a list of texts or a text is needed"),
        ({"batches": 1}, "batches=1: a list is needed"),
        ({"batches": "ab"}, "batches='ab': a list is needed"),
        ({"pair": (1, 2)}, r"pair=\(1, 2\): a list of 2 values"),
        ({"pair": (torch.ones(1),)}, "pair=.*: a list of 2 values"),
        ({"flag": 1}, "flag=1: true or false is needed"),
        ({"flag": "no"}, "flag='no': true or false is needed"),
    ],
)
def test_a_call_refuses_other_kinds_of_arguments(changes: Any, message: str) -> None:
    with pytest.raises(SettingError, match=f"{message}") as caught:
        call(**{"loss_fn": LOSS, **changes})
    assert caught.value.setting == next(iter(changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"loss_fn": lambda *args: 0},
        {"loss_fn": lambda a, b, c=1, *, d=2: 0},
        {"loss_fn": nn.MSELoss()},
        {"loss_fn": max},
        {"module": nn.Linear(1, 1)},
        {"names": ("a", "b")},
        {"names": []},
        {"batches": (x for x in (1, 2))},
        {"batches": torch.utils.data.DataLoader([1, 2])},  # type: ignore[arg-type]
        {"pair": (torch.ones(1), torch.ones(1))},
        {"free": object()},
        {"steps": "of the function's own"},
        {"lr": math.nan},
    ],
)
def test_a_call_takes_what_fits_and_leaves_ranges_to_the_function(changes: Any) -> None:
    assert call(**{"loss_fn": LOSS, **changes}) == "called"


def test_arguments_by_position_are_checked_too() -> None:
    with pytest.raises(SettingError, match="module='net': a Module or null is needed"):
        call(LOSS, "net")  # type: ignore[arg-type]


def test_what_is_wrapped_around_a_source_of_tasks_is_one() -> None:
    """From Python 3.12 on, ``isinstance`` with a protocol does not see what `__getattr__` gives."""
    tasks = Wrapped(SinusoidTasks())
    assert offers(tasks, TaskDistribution) and not offers(tasks, SampleDistribution)
    assert not offers(Wrapped(object()), TaskDistribution)
    lacking = SinusoidTasks()
    lacking.sample = None  # type: ignore[method-assign, assignment]
    assert not offers(lacking, TaskDistribution)
    take = checked(_source)
    assert take(tasks) is tasks
    with pytest.raises(SettingError, match="^tasks=.*: a TaskDistribution is needed"):
        take(Wrapped(object()))  # type: ignore[arg-type]


def _source(tasks: TaskDistribution) -> TaskDistribution:
    return tasks


# --- arguments without names ----------------------------------------------------------------------

FACES = ("metalearn", *(f"metalearn.{name}" for name in ("trainers", "models", "data", "core")))
GIVEN_BACK = {
    "Adaptation", "ConformalSets", "DirectionCheck", "EnsembleTest", "FitResult", "FormedGradients",
    "HyperPlan", "HyperProgress", "HyperTest", "ImplicitSolver", "IndexedRows", "InnerOptimizer",
    "LayerCall", "Likelihood", "MemberReport", "OuterProducts", "Plan", "RegressionTest",
    "RunSetup", "SavedWeights", "TestReport",
}  # fmt: skip
"""What is seldom made by hand, some of it in compiled steps: Python answers mistakes."""
INHERITED_FROM = {"Eager", "HyperModule", "Learner", "SampleGradients", "SampleLearner", "Trainer"}


def _public() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for face in FACES:
        module = import_module(face)
        for name in module.__all__:
            thing = getattr(module, name)
            results = inspect.isclass(thing) and issubclass(thing, tuple)
            known = name in GIVEN_BACK | INHERITED_FROM
            if not known and not results and (inspect.isfunction(thing) or inspect.isclass(thing)):
                found[name] = thing
    return found


def _places(function: Any) -> list[str] | None:
    """Parameters that may stand without a name; None where there is no end of them."""
    every = inspect.signature(function).parameters.values()
    if any(p.kind is p.VAR_POSITIONAL for p in every):
        return None
    return [p.name for p in every if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


ENDING = [name for name, thing in _public().items() if _places(thing) is not None]


@pytest.mark.parametrize("name", ENDING)
def test_arguments_too_many_are_counted_and_the_names_are_told(name: str) -> None:
    function = _public()[name]
    places = _places(function) or []
    with pytest.raises(CallError, match=rf"^arguments='{len(places) + 1} without names': ") as said:
        function(*[object()] * (len(places) + 1))
    listed = len(places) == 1 and "as one list" in str(said.value)
    assert listed or all(place in said.value.accepted for place in places)
    assert "self" not in said.value.accepted.replace(",", " ").split()


@pytest.mark.parametrize("name", [name for name, thing in _public().items() if _places(thing)])
def test_an_argument_without_a_name_is_refused_by_its_own(name: str) -> None:
    """What a function does not look at before it uses it may pass."""
    function = _public()[name]
    parameters = inspect.signature(function).parameters
    refused = _refused(function, len(_places(function) or []))
    assert refused is None or refused in {*parameters, "inner", "likelihood"}, refused


def _refused(function: Any, count: int) -> str | None:
    """The argument that is named where none of those in places is of a kind that is taken.

    Of ``RunSettings`` and ``Likelihood`` it is the argument that they are given for elsewhere.
    """
    try:
        function(*[_Odd()] * count)
    except SettingError as error:
        return re.split(r"[.\[ ]", error.setting)[0]
    except TypeError as error:  # of Python itself
        missing = re.search(r"missing \d+ required .*?'(\w+)'", str(error))
        return missing[1] if missing else str(error)
    return None


class _Odd:
    """Fits no hint."""
