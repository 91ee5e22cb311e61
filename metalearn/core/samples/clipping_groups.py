"""Which parameters are clipped together.

Axes: K groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

from metalearn.core.tree import leaf_names, match_names
from metalearn.errors import SettingError
from metalearn.near_names import check_known
from metalearn.types import Params

__all__ = ["Clipping", "ParameterGroups", "check_clipping", "group_numbers"]

Clipping = Literal["flat", "automatic"]
ParameterGroups: TypeAlias = Literal["all", "layers"] | Mapping[str, str | Sequence[str]]
"""One group, one for each layer, or names with patterns of dotted names of parameters."""


def check_clipping(clipping: Any) -> Clipping:
    """Itself.

    Raises:
        SettingError: no such way of clipping.
    """
    check_known("clipping", clipping, get_args(Clipping))
    found: Clipping = clipping
    return found


def group_numbers(params: Params, groups: ParameterGroups) -> list[int]:
    """Of each leaf, the number of its group, in 0..K−1.

    Raises:
        SettingError: another kind of groups; a pattern that matches nothing, or only what an
            earlier one has.
    """
    names = leaf_names(params)
    if isinstance(groups, Mapping):
        return _by_patterns(params, groups, len(names))
    if groups == "all":
        return [0] * len(names)
    if groups == "layers":
        layers = list(dict.fromkeys(_layer(name) for name in names))
        return [layers.index(_layer(name)) for name in names]
    accepted = "all, layers, or a mapping of names to patterns is needed"
    raise SettingError("groups", groups, accepted)


def _layer(name: str) -> str:
    return name.rpartition(".")[0]


def _by_patterns(params: Params, groups: Mapping[str, Any], count: int) -> list[int]:
    found: list[int | None] = [None] * count
    for number, (name, patterns) in enumerate(groups.items()):
        setting = f"groups.{name}"
        if not isinstance(patterns, str) and not (
            isinstance(patterns, Sequence) and all(isinstance(p, str) for p in patterns)
        ):
            raise SettingError(setting, patterns, "a pattern of dotted names is needed, or a list")
        hits = match_names(params, patterns, setting)
        free = [i for i, hit in enumerate(hits) if hit and found[i] is None]
        if not free:
            accepted = "parameters are needed that no earlier group has"
            raise SettingError(setting, patterns, accepted)
        for i in free:
            found[i] = number
    return [len(groups) if number is None else number for number in found]
