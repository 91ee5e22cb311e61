"""What is said of a value that does not fit: what would be accepted, and what to write instead.

Rooms leave `advise` with their types, so that the sentence about a list of networks knows of
``Ensemble([a, b])``.
"""

from __future__ import annotations

import collections.abc
import inspect
import types
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from torch import Tensor

from metalearn.errors import CallError, SettingError
from metalearn.near_names import nearest

__all__ = ["advise", "describe", "misfit", "unknown_setting"]

Advice = Callable[[Any], "str | None"]

_LISTS = (list, tuple, collections.abc.Sequence, collections.abc.Iterable)
_ADVICE: dict[Any, Advice] = {}
_OF_OPTIMISER = ("lr", "learning_rate", "weight_decay", "momentum", "betas")
_OF_MAML = ("inner_lr", "inner_steps", "inner_optimizer", "eval_steps", "first_order", "engine")
_LONGEST = 300
_EPOCHS = ("epochs", "n_epochs", "num_epochs", "max_epochs")


def advise(hint: Any, advice: Advice) -> None:
    """Leave what to say of values that are none of a type, or of an alias such as a Callable.

    Args:
        hint: as it stands in signatures.
        advice: from a value to the end of the sentence, or None where it knows nothing better.
    """
    _ADVICE[hint] = advice


def misfit(name: str, value: Any, hint: Any) -> SettingError:
    """The error about an argument that does not fit its hint."""
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    for option in (hint, *options):
        said = _ADVICE[option](value) if option in _ADVICE else None
        if said is not None:
            return SettingError(name, value, said)
    return SettingError(name, value, f"{describe(hint)} is needed{_example(options, value)}")


def _example(options: Sequence[Any], value: Any) -> str:
    """What would do in place of a class that was given for one of its objects, or of an array."""
    if Tensor in options and hasattr(value, "__array__") and not inspect.isclass(value):
        return ", such as torch.as_tensor makes"
    kinds = [o for o in options if inspect.isclass(o) and not getattr(o, "_is_protocol", False)]
    own = inspect.isclass(value) and any(issubclass(value, kind) for kind in kinds)
    return f", such as {value.__name__}(…)" if own else ""


def unknown_setting(name: str, value: Any, known: Collection[str], prefix: str = "") -> CallError:
    """The error about a keyword that is not taken.

    Args:
        name: the keyword.
        value: what it was given.
        known: keywords that are taken.
        prefix: put before names in the message, ``"trainer."``; "" of arguments in Python.
    """
    near = nearest(name, known)
    every = ", ".join(known)
    every = every if len(every) <= _LONGEST else f"{every[:_LONGEST].rpartition(',')[0]}, …"
    hint = (
        f"did you mean {prefix}{near}?" if near else f"known: {every}" if every else "none is taken"
    )
    if name in _EPOCHS and "steps" in known:
        hint = f"did you mean {prefix}steps? They are batches: an epoch has samples / batch size"
    elif not prefix and name in _OF_OPTIMISER and near != "lr" and "optimizer" in known:
        setting = "lr=0.001" if name == "learning_rate" else f"{name}=…"
        hint = f"the optimiser has it: optimizer=functools.partial(torch.optim.Adam, {setting})"
    elif not prefix and name in _OF_MAML and "maml" in known:
        hint = f"inner loops have it: maml=MAML({name}=…)"
    return CallError(prefix + name, value, f"there is no such setting; {hint}")


def describe(hint: Any) -> str:
    """A hint in words: ``one of a, b``, ``a whole number or null``."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(describe(option) for option in arguments))
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    words = {
        None: "null",
        type(None): "null",
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "a text",
        Path: "a path",
    }
    if origin is tuple and Ellipsis not in arguments:
        return f"a list of {len(arguments)} values ({', '.join(map(describe, arguments))})"
    if origin in _LISTS:
        if arguments[0] is Any:
            return "a list"
        return f"a list of {describe(arguments[0]).removeprefix('a ')}s"
    if origin is collections.abc.Callable:
        count = len(arguments[0]) if isinstance(arguments[0], list) else 0
        return f"a function of {count} argument{'s' * (count > 1)}" if count else "a function"
    if origin in (dict, collections.abc.Mapping):
        return "a mapping"
    if hint in words:
        return words[hint]
    name = getattr(hint, "__name__", str(hint))
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"
