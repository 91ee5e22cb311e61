"""One value for likelihood, kind, samples and variance, in every function that takes them."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

from metalearn import core
from metalearn.core import KroneckerFisher, Laplace, Likelihood
from metalearn.core.tree import leaves
from metalearn.errors import SettingError
from tests.contracts.calls import CALLS
from tests.support.oracles import generator

TAKING = [
    name
    for name in core.__all__
    if inspect.isfunction(getattr(core, name))
    and "likelihood" in inspect.signature(getattr(core, name)).parameters
]
KINDS = [
    {"name": "categorical", "kind": "exact"},
    {"name": "categorical", "kind": "monte_carlo", "samples": 3},
    {"name": "gaussian", "kind": "exact", "variance": 0.4},
    {"name": "gaussian", "kind": "monte_carlo", "samples": 2, "variance": 2.0},
    {"name": "heteroscedastic_gaussian", "kind": "exact"},
    {"name": "heteroscedastic_gaussian", "kind": "monte_carlo", "samples": 2},
]


def test_these_are_the_functions() -> None:
    assert {name.removeprefix("fisher_") for name in TAKING} == {
        "blocks", "diagonal", "matrix", "trace", "vp", "operator", "kfac", "laplace_posterior",
    }  # fmt: skip


def taken(name: str, **settings: Any) -> list[Any]:
    """The tensors of a function's answer, with other settings of its likelihood."""
    function, given = CALLS[f"core.{name}"]()
    given = {k: v for k, v in given.items() if k not in ("likelihood", "kind", "samples")}
    if "generator" in inspect.signature(function).parameters:
        given["generator"] = generator(5)
    found = function(**given, **settings)
    if isinstance(found, KroneckerFisher):
        found = found.blocks
    if isinstance(found, Laplace):
        found = found.root
    return leaves(found(given["params"]) if callable(found) else found)


@pytest.mark.parametrize("settings", KINDS)
@pytest.mark.parametrize("name", TAKING)
def test_a_value_is_the_same_as_its_parts(name: str, settings: dict[str, Any]) -> None:
    if name == "laplace_posterior" and settings["kind"] != "exact":
        return
    parts = {"likelihood": settings["name"], **settings}
    del parts["name"]
    if name == "laplace_posterior":
        del parts["kind"]
    whole, apart = taken(name, likelihood=Likelihood(**settings)), taken(name, **parts)
    assert all(torch.equal(a, b) for a, b in zip(whole, apart, strict=True))
    assert any(bool(a.abs().sum() > 0) for a in whole)


@pytest.mark.parametrize("name", TAKING)
def test_what_the_value_says_may_be_said_again_but_not_otherwise(name: str) -> None:
    rule = Likelihood("gaussian", variance=0.5)
    again = taken(name, likelihood=rule, variance=0.5)
    assert all(torch.equal(a, b) for a, b in zip(again, taken(name, likelihood=rule), strict=True))
    with pytest.raises(SettingError, match=r"^variance=2.0: the likelihood says 0.5, so nothing"):
        taken(name, likelihood=rule, variance=2.0)
    accepted = inspect.signature(getattr(core, name)).parameters
    for setting, value in (("kind", "empirical"), ("samples", 3)):
        if setting in accepted:
            with pytest.raises(SettingError, match=rf"^{setting}={value!r}: the likelihood says "):
                taken(name, likelihood=rule, **{setting: value})


@pytest.mark.parametrize("name", [n for n in TAKING if n != "laplace_posterior"])
def test_a_name_needs_a_kind_beside_it(name: str) -> None:
    with pytest.raises(SettingError, match=r"^kind=None: one of exact, monte_carlo, empirical is"):
        taken(name, likelihood="categorical")


def test_a_posterior_is_of_the_exact_kind() -> None:
    with pytest.raises(SettingError, match=r"^likelihood=.*: kind='exact' is needed for a "):
        taken("laplace_posterior", likelihood=Likelihood("categorical", "empirical"))


@pytest.mark.parametrize("bad", ["poisson", None, 3, torch.ones(2), ("gaussian",), Likelihood])
@pytest.mark.parametrize("name", TAKING)
def test_no_likelihood(name: str, bad: Any) -> None:
    kind = {} if name == "laplace_posterior" else {"kind": "exact"}
    message = (
        r"^likelihood=.*: one of categorical, gaussian, heteroscedastic_gaussian is needed, or"
    )
    with pytest.raises(SettingError, match=message):
        taken(name, likelihood=bad, **kind)
