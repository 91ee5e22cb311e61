"""Checks that networks of pictures share.

Axes: [channels, height, width] of a picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

from metalearn.errors import SettingError, check_whole

__all__ = ["check_choice", "check_pictures", "check_widths"]


def check_pictures(network: str, input_shape: Sequence[int], outputs: int) -> None:
    """Refuse a shape that is not ``(channels, height, width)``, and sizes below 1."""
    if len(input_shape) != 3:
        accepted = f"{network} takes pictures (channels, height, width); for vectors use the mlp"
        raise SettingError("input_shape", tuple(input_shape), accepted)
    for size in input_shape:
        check_whole("input_shape", size, 1)
    check_whole("outputs", outputs, 1)


def check_choice(setting: str, value: object, choices: Any) -> None:
    """Refuse a value that is none of a ``Literal``."""
    if value not in get_args(choices):
        raise SettingError(setting, value, f"one of {', '.join(get_args(choices))} is needed")


def check_widths(filters: int | Sequence[int], blocks: int) -> list[int]:
    """Channels of each of the blocks, from one number or one for each."""
    one = not isinstance(filters, Sequence) or isinstance(filters, str)
    widths = [filters] * blocks if one else list(filters)  # type: ignore[arg-type]
    if len(widths) != blocks:
        raise SettingError("filters", list(widths), f"one number or {blocks} are needed")
    for width in widths:
        check_whole("filters", width, 1)
    return widths  # type: ignore[return-value]
