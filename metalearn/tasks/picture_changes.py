"""What episodes may change of pictures, and what of it contradicts the data or one another.

Axes: none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from metalearn.data.affine import AffineRanges
from metalearn.errors import SettingError
from metalearn.signatures import check_settings

__all__ = ["affine_ranges", "check_turns"]


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
    texts: bool,
    shape: Sequence[int],
) -> None:
    """Refuse changes of what is no square picture, and those that contradict one another.

    Args:
        turns: ``rotate_train``, ``rotate_eval`` and ``turn_groups``.
        within_group: whether the classes of a task come from one group.
        changed: whether pictures are changed at random.
        texts: whether inputs are texts.
        shape: of an input.

    Raises:
        SettingError: names the first.
    """
    asked = [name for name, turned in turns.items() if turned]
    if asked and (texts or shape[1] != shape[2]):
        shown = "texts" if texts else tuple(shape)
        accepted = f"turning needs square pictures, not {shown}"
        raise SettingError(asked[0], True, accepted)
    if changed and texts:
        raise SettingError("augment", "ranges above 0", "texts are not changed: 0 is needed")
    if turns["turn_groups"] and not within_group:
        accepted = "false is needed where a task's classes come from any group"
        raise SettingError("turn_groups", True, f"{accepted} (within_group=false)")
    if turns["turn_groups"] and turns["rotate_train"]:
        accepted = "false is needed beside rotate_train=true, which turns each class by itself"
        raise SettingError("turn_groups", True, accepted)
