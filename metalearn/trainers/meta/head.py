"""Which parameters of a network are its head, of learners that adapt a part of it.

Axes: C classes (or outputs), D features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from metalearn.core.tree import match_names
from metalearn.errors import SettingError

__all__ = ["head_names"]


def head_names(
    every: Mapping[str, Tensor], trained: Sequence[str], patterns: str | Sequence[str] | None
) -> list[str]:
    """Names of the trained parameters that are the head.

    Args:
        every: all parameters of one network by name, in the module's order.
        trained: names of those that are trained.
        patterns: shell-style, one or several, over the names; None takes the module's submodule
            ``head`` where it has one with parameters, else its last layer with parameters.

    Raises:
        SettingError: no pattern, or one that matches nothing; without patterns, a head that has no
            matrix ``[C, D]``, as a normalisation has none, or of which nothing is trained.
    """
    if patterns is not None:
        if not patterns:
            raise SettingError("learner.head", patterns, "a pattern is needed, or null")
        own = {name: every[name] for name in trained}
        matched = match_names(own, patterns, "learner.head")
        return [name for name, is_head in zip(own, matched) if is_head]
    found = [name for name in every if name.startswith("head.")]
    where = "submodule head" if found else "last layer with parameters"
    if not found:
        last = _layer_of(list(every)[-1])
        found = [name for name in every if _layer_of(name) == last]
    if all(every[name].dim() < 2 for name in found):
        accepted = f"a pattern is needed: the {where} has no weight matrix of its own"
        raise SettingError("learner.head", ", ".join(found), accepted)
    kept = [name for name in found if name in set(trained)]
    if not kept:
        accepted = "a pattern is needed: none of these parameters is trained"
        raise SettingError("learner.head", ", ".join(found), accepted)
    return kept


def _layer_of(name: str) -> str:
    """The module that a parameter belongs to; of one that is parametrised, the module itself."""
    layer, parametrised, _ = name.partition(".parametrizations.")
    return layer if parametrised else name.rpartition(".")[0]
