"""What episodes may change of pictures, and what of it contradicts the data or one another.

Axes: none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from metalearn.data.affine import AffineRanges
from metalearn.data.arrays import LabelledArrays
from metalearn.data.labelled_sets import LabelledSet
from metalearn.data.texts import LabelledTexts
from metalearn.errors import SettingError
from metalearn.signatures import check_settings

__all__ = ["affine_ranges", "check_turns", "unchanged"]


def unchanged(data: LabelledSet) -> str:
    """What inputs are that are neither turned nor changed; empty of pictures."""
    if isinstance(data, LabelledTexts):
        return "texts"
    return "arrays" if isinstance(data, LabelledArrays) else ""


def affine_ranges(given: Mapping[str, float]) -> AffineRanges:
    """Ranges of random changes from a mapping.

    Raises:
        SettingError: an unknown name, or a value out of range, under ``augment``.
    """
    check_settings(AffineRanges, given, "augment.")
    try:
        return AffineRanges(**given)
    except SettingError as error:
        raise SettingError(f"augment.{error.setting}", error.value, error.accepted) from error


def check_turns(
    turns: Mapping[str, bool],
    *,
    within_group: bool,
    changed: bool,
    of: str,
    shape: Sequence[int],
) -> None:
    """Refuse changes of what is no square picture, and those that contradict one another.

    Args:
        turns: ``rotate_train``, ``rotate_eval`` and ``turn_groups``.
        within_group: whether the classes of a task come from one group.
        changed: whether pictures are changed at random.
        of: what inputs are that are no pictures; empty of pictures.
        shape: of an input.

    Raises:
        SettingError: names the first.
    """
    asked = [name for name, turned in turns.items() if turned]
    if asked and (of or shape[1] != shape[2]):
        shown = of or tuple(shape)
        accepted = f"turning needs square pictures, not {shown}"
        raise SettingError(asked[0], True, accepted)
    if changed and of:
        raise SettingError("augment", "ranges above 0", f"{of} are not changed: 0 is needed")
    if turns["turn_groups"] and not within_group:
        accepted = "false is needed where a task's classes come from any group"
        raise SettingError("turn_groups", True, f"{accepted} (within_group=false)")
    if turns["turn_groups"] and turns["rotate_train"]:
        accepted = "false is needed beside rotate_train=true, which turns each class by itself"
        raise SettingError("turn_groups", True, accepted)
