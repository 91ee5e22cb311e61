"""Weights from elsewhere put into a network, or into every network of an ensemble.

Axes: M members.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metalearn.errors import DataError, SettingError
from metalearn.models.ensemble import Ensemble, Stack
from metalearn.models.weight_files import SavedWeights, read_weights
from metalearn.signatures import checked

__all__ = [
    "check_patterns",
    "load_weights",
    "of_members",
    "put_entries",
    "put_weights",
    "same_entries",
]

_STACKED = re.compile(r"stacks\.\d+\.network\.")
"""What names of entries of an `Ensemble` begin with."""
_OF_DROPOUT = ("p", "key", "draw")
"""Buffers of a `Dropout`."""
_COUNTER = "num_batches_tracked"
"""Of a batch norm; files of torch before 0.4.1, of torchvision's networks too, have none."""
_SHOWN = 4  # names that a sentence lists of a kind


@checked
def load_weights(
    module: nn.Module, source: str | Path, *, skip: Sequence[str] = ()
) -> SavedWeights:
    """Put weights of a run or a file into a module; gives what was read.

    An `Ensemble` takes those of an ensemble of as many members, or those of one network, with
    which every member then starts. Values are converted to the type that they have in the module.
    Rates and keys of `Dropout` are settings, and stay as they are.

    Args:
        module: changed in place.
        source: see `metalearn.models.read_weights`.
        skip: patterns (``"head.*"``) of names that stay as they are, whether the module has them,
            the file, or both.

    Raises:
        SettingError: nothing there, a pattern that matches nothing.
        DataError: names or shapes that do not fit, all of them in one sentence; then nothing was
            changed.
    """
    weights = read_weights(source)
    check_patterns(skip, [*module.state_dict(), *weights.entries])
    put_weights(module, weights, skip)
    return weights


def check_patterns(skip: Sequence[str], names: Iterable[str], setting: str = "skip") -> None:
    """Refuse a pattern that matches none of the names."""
    plain = [_plain(name) for name in names]
    for pattern in skip:
        if not fnmatch.filter(plain, pattern):
            shown = ", ".join(plain[: 2 * _SHOWN])
            raise SettingError(setting, pattern, f"a pattern that matches one of {shown}, …")


def put_weights(module: nn.Module, weights: SavedWeights, skip: Sequence[str] = ()) -> None:
    """As `load_weights`, of what was read before."""
    entries = _for_members(module, weights)
    put_entries(module.state_dict(), entries, skip, path=weights.path)


def same_entries(module: nn.Module, weights: SavedWeights, skip: Sequence[str] = ()) -> bool:
    """Whether names in the file are those of the module, as a module of the same kind has them."""
    own = set(module.state_dict())
    given = set(weights.entries)
    if isinstance(module, Ensemble) and not of_members(weights.entries):
        given = {name for names in _stack_names(module, given).values() for name in names}
    differing = _taken(own, skip) ^ _taken(given, skip)
    return all(name.endswith(_COUNTER) for name in differing)


def put_entries(
    state: Mapping[str, Any], entries: Mapping[str, Tensor], skip: Sequence[str], *, path: Path
) -> None:
    """Copy entries into those of the same names in a ``state_dict``, all or none.

    Raises:
        DataError: lists what does not fit, but for what ``skip`` matches.
    """
    own = {n: v for n, v in state.items() if isinstance(v, Tensor)}
    taken = _taken(own, skip), _taken(entries, skip)
    wanted = {name: value for name, value in own.items() if name in taken[0]}
    given = {name: value for name, value in entries.items() if name in taken[1]}
    both = {name: given[name] for name in wanted if name in given}
    filled = {_place(wanted[name]) for name in both}
    missing = [
        name
        for name, value in wanted.items()
        if name not in both and _place(value) not in filled and not name.endswith(_COUNTER)
    ]
    unknown = [name for name in given if name not in own]
    other = [
        f"{_plain(name)} is {list(value.shape)}, not {list(wanted[name].shape)}"
        for name, value in both.items()
        if value.shape != wanted[name].shape
    ]
    reasons = [
        *([f"it has no {_listed(missing)}"] if missing else []),
        *([f"the network has no {_listed(unknown)}"] if unknown else []),
        *([_listed(other, "; ")] if other else []),
    ]
    if reasons:
        help_ = "skip= (init_skip on the command line) takes patterns of what stays as it is"
        raise DataError(f"{path}: these weights do not fit: {'; '.join(reasons)}; {help_}")
    with torch.no_grad():
        for name, value in both.items():
            wanted[name].copy_(value)


def _for_members(module: nn.Module, weights: SavedWeights) -> Mapping[str, Tensor]:
    """The entries as the module would have them: of an ensemble, with an axis of members."""
    entries, path = weights.entries, weights.path
    stacked = of_members(entries)
    if not isinstance(module, Ensemble):
        if stacked:
            raise DataError(f"{path}: these are weights of an ensemble, and one network takes them")
        return entries
    if not stacked:
        found: dict[str, Tensor] = {}
        for part, names in _stack_names(module, entries).items():
            for name, full in zip(entries, names):
                value = entries[name]
                found[full] = value.expand(part.size, *value.shape)
        return found
    rows = {n.split(".")[1]: len(v) for n, v in entries.items() if _STACKED.match(n) and v.dim()}
    saved = sum(rows.values())
    if saved != len(module):
        reason = f"these are weights of {saved} members, and the ensemble has {len(module)}"
        raise DataError(f"{path}: {reason}; those of as many, or of one network, are needed")
    return entries


def of_members(entries: Mapping[str, Tensor]) -> bool:
    """Whether entries are those of an `Ensemble`."""
    return any(map(_STACKED.match, entries))


def _stack_names(module: Ensemble, names: Iterable[str]) -> dict[Stack, list[str]]:
    """By stack, what the entries of one network are called in it."""
    stacks = [part for part in module.stacks if isinstance(part, Stack)]
    names = list(names)
    return {p: [f"stacks.{i}.network.{n}" for n in names] for i, p in enumerate(stacks)}


def _place(value: Tensor) -> tuple[int, torch.Size]:
    """The same of tied weights."""
    return value.data_ptr(), value.shape


def _plain(name: str) -> str:
    """The name of an entry in its network."""
    return _STACKED.sub("", name, count=1) if _STACKED.match(name) else name


def _taken(names: Iterable[str], skip: Sequence[str]) -> set[str]:
    """The names of weights that no pattern of ``skip`` matches."""
    found = set(names)
    dropouts = {name.removesuffix("draw") for name in found if name.endswith(".draw")}
    settings = {f"{layer}{part}" for layer in dropouts for part in _OF_DROPOUT}
    return {
        name
        for name in found - settings
        if not any(fnmatch.fnmatchcase(_plain(name), pattern) for pattern in skip)
    }


def _listed(names: Sequence[str], between: str = ", ") -> str:
    shown = list(dict.fromkeys(map(_plain, names)))
    rest = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    return between.join(shown[:_SHOWN]) + rest
