"""Bad arguments of every public function: one sentence that names the argument, or a result.

Rows are made from `CALLS`: every argument of every call is replaced in turn by values of other
kinds and out of every range. What is refused is refused by one of the library's errors in one line;
nothing else escapes. What must be refused, whatever else happens, stands in `REFUSED`.
"""

from __future__ import annotations

import inspect
import math
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import metalearn
from metalearn import trainers
from metalearn.core.tree import tree_map
from metalearn.errors import DataError, NonFiniteError, SettingError
from metalearn.trainers.supervised.ensemble_training import EnsembleTraining
from tests.contracts import calls, methods
from tests.contracts.calls import CALLS, public_functions
from tests.contracts.methods import METHODS

ERRORS = (SettingError, DataError, NonFiniteError, OSError)  # those of a disk name the file
LIBRARY = Path(metalearn.__file__).parent
USERS = {Path(calls.__file__), Path(methods.__file__)}
TORCHS = ("core/ops", "core/samples", "models")
FORWARD = LIBRARY / "core" / "module" / "private_copy.py"
EVERY = CALLS | METHODS
"""All calls that work."""

PLAIN: dict[str, Any] = {
    "None": None,
    "text": "text",
    "empty text": "",
    "-1": -1,
    "0": 0,
    "1.5": 1.5,
    "true": True,
    "nan": math.nan,
    "inf": math.inf,
    "2^70": 2**70,
    "[]": [],
    "{}": {},
    "object": object(),
    "tensor(-1)": torch.tensor(-1.0),
    "tensor(nan)": torch.tensor(math.nan),
    "tensor of ints": torch.arange(3),
    "function": lambda *args, **kwargs: None,
}

TREES: dict[str, Any] = {
    "without leaves": lambda tree: {},
    "on the meta device": lambda tree: tree_map(lambda x: x.to("meta"), tree),
    "complex": lambda tree: tree_map(lambda x: x.to(torch.complex64), tree),
    "of ints": lambda tree: tree_map(lambda x: x.to(torch.int64), tree),
    "of bools": lambda tree: tree_map(lambda x: x > 0, tree),
    "of numpy": lambda tree: tree_map(lambda x: x.numpy(), tree),
    "sparse": lambda tree: tree_map(lambda x: x.to_sparse(), tree),
    "without elements": lambda tree: tree_map(lambda x: x[:0] if x.dim() else x, tree),
    "without axes": lambda tree: tree_map(lambda x: x.sum(), tree),
    "one axis more": lambda tree: tree_map(lambda x: x[None], tree),
    "cut": lambda tree: tree_map(lambda x: x[..., :1] if x.dim() else x, tree),
    "one leaf missing": lambda tree: dict(list(tree.items())[1:]) if isinstance(tree, dict) else (),
    "one leaf longer": lambda tree: _longer(tree),
}


def _longer(tree: Any) -> Any:
    first = [True]

    def longer(x: Tensor) -> Tensor:
        if first.pop() if first else False:
            return torch.cat([x, x])
        return x

    return tree_map(longer, tree)


LOSSES: dict[str, Any] = {
    "gives None": lambda *args: None,
    "gives a tuple": lambda *args: (torch.tensor(1.0), torch.tensor(2.0)),
    "gives a number": lambda *args: 1.0,
    "gives whole numbers": lambda params, *rest: torch.tensor(3),
    "gives a constant": lambda params, *rest: torch.tensor(1.0, dtype=torch.float64),
    "detaches": lambda params, *rest: sum(p.detach().sum() for p in _leaves(params)),
    "is complex": lambda params, *rest: sum(p.sum() for p in _leaves(params)) * 1j,
    "takes nothing": lambda: None,
}


def _leaves(params: Any) -> list[Tensor]:
    return list(params.values()) if isinstance(params, dict) else [params]


def rows(name: str) -> Iterator[tuple[str, str]]:
    """Each argument of a call with the name of each bad value."""
    _, given = EVERY[name]()
    for argument, value in given.items():
        for bad in PLAIN:
            yield argument, bad
        if isinstance(value, Tensor | dict | tuple) and _has_tensors(value):
            for bad in TREES:
                yield argument, bad
        if argument.endswith("_fn") or argument in ("f", "matvec"):
            for bad in LOSSES:
                yield argument, bad
    turns = len(INHERITING) if name in INHERITING else 1
    for place, argument in enumerate(others(name)):
        first = (place + INHERITING.index(name)) % turns if name in INHERITING else 0
        for bad in list(PLAIN)[first::turns]:
            yield argument, bad


INHERITING = (
    "trainers.BatchEnsembleTrainer",
    "trainers.MCDropoutTrainer",
    "trainers.SnapshotTrainer",
    "trainers.SWAGTrainer",
)
"""Hand the same settings on to one trainer, which gets every bad value: they share them out."""


def others(name: str) -> list[str]:
    """Arguments of a call that are left to their defaults, those of a loop's settings too."""
    function, given = EVERY[name]()
    makes = [function]
    if name.endswith("Trainer"):
        makes.append(trainers.LoopSettings)
        makes += [EnsembleTraining] * ("members" in given)
    found = [
        parameter.name
        for make in makes
        for parameter in inspect.signature(make).parameters.values()
        if parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    return [argument for argument in dict.fromkeys(found) if argument not in given]


def _has_tensors(value: Any) -> bool:
    return any(isinstance(x, Tensor) for x in torch.utils._pytree.tree_leaves(value))


def spoilt(value: Any, bad: str) -> Any:
    if bad in PLAIN:
        return PLAIN[bad]
    return LOSSES[bad] if bad in LOSSES else TREES[bad](value)


def attempt(name: str, argument: str, bad: str) -> str:
    """``accepted``, or what it said; anything but an error of ours escapes."""
    function, given = EVERY[name]()
    value = spoilt(given.get(argument), bad)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = function(**{**given, argument: value})
            if hasattr(found, "__next__"):
                list(found)
        except ERRORS as error:
            return str(error)
        except Exception as error:
            if of_the_users_function(error):
                return "of the function itself"
            raise
    return "accepted"


def of_the_users_function(error: Exception) -> bool:
    """Whether the error arose in a function or network that the library was given.

    Those surface as they are. What the library's own call raises there is none of them, but for
    its layers and networks, which stand for torch's.
    """
    frames = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
    inside = [LIBRARY in frame.parents for frame in frames]
    given = frames[inside.index(True) :] if any(inside) else []
    below = any(frame in USERS or frame == FORWARD for frame in given)
    layers = any(LIBRARY / room in (frames[-1], *frames[-1].parents) for room in TORCHS)
    return below and (not inside[-1] or layers)


def test_every_public_function_has_a_call() -> None:
    missing = public_functions() - set(CALLS)
    assert not missing, f"tests/contracts/calls.py lacks {sorted(missing)}"


@pytest.mark.parametrize("name", EVERY)
def test_the_call_itself_works(name: str) -> None:
    function, given = EVERY[name]()
    function(**given)


@pytest.mark.parametrize("name", EVERY)
def test_bad_arguments_are_refused_in_one_line_or_taken(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # some name files
    escaped = []
    for row in rows(name):
        try:
            said = attempt(name, *row)
        except Exception as error:
            first = (str(error).splitlines() or [""])[0][:100]
            escaped.append(f"{row[0]}={row[1]}: {type(error).__name__}: {first}")
            continue
        if "\n" in said or len(said) > 400:
            escaped.append(f"{row[0]}={row[1]}: not one sentence: {said}")
    assert not escaped, f"{len(escaped)} of {name}:\n" + "\n".join(escaped)
