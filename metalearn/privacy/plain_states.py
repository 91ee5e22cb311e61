"""What mechanisms that are records of numbers have in common: σ, and themselves as plain JSON.

Axes: none.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any, TypeVar

from metalearn.core.checks import check_number
from metalearn.errors import DataError, SettingError
from metalearn.schema import Kind, Misfit

__all__ = ["made_of", "take_noise"]

T = TypeVar("T")


def take_noise(mechanism: Any) -> None:
    """Check the σ of a frozen record, and make a float of it, so that 1 and 1.0 are the same.

    Raises:
        SettingError: it is no number of at least 0.
    """
    check_number("noise_multiplier", mechanism.noise_multiplier, least=0)
    object.__setattr__(mechanism, "noise_multiplier", float(mechanism.noise_multiplier))


def made_of(kind: type[T], state: Any, wanted: Kind) -> T:
    """The record of a kind that a state tells of.

    Raises:
        DataError: it is not what is wanted, or no such record can be.
    """
    try:
        wanted(state, "the mechanism")
        names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
        return kind(**{name: state[name] for name in names})
    except (Misfit, SettingError) as error:
        raise DataError(f"this is no mechanism of private steps ({error})") from error
