"""Errors that a person can act on: one sentence, no traceback needed."""

from collections.abc import Sequence

__all__ = [
    "CallError",
    "CompilationError",
    "DataError",
    "DisagreementError",
    "NonFiniteError",
    "RankError",
    "SettingError",
    "StorageError",
    "SubsetsDivergedError",
    "check_whole",
]


class SettingError(ValueError):
    """A setting has a value that cannot work.

    The message names the setting, the value it got and what would be accepted:
    ``way=0: a whole number of at least 2 is needed``.
    """

    def __init__(self, setting: str, value: object, accepted: str) -> None:
        super().__init__(f"{setting}={_shown(value)}: {accepted}")
        self.setting = setting
        self.value = value
        self.accepted = accepted


_LONGEST = 120


def _shown(value: object) -> str:
    """A value in one line: modules, tensors and long lists are cut."""
    text = " ".join(repr(value).split())
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


class CallError(SettingError, TypeError):
    """An argument that a function does not have: a TypeError too, as Python's own would be."""


class DataError(RuntimeError):
    """Data on disk is missing, incomplete or corrupt; the message says which and what to do."""


class StorageError(OSError):
    """A run's folder cannot be written to; the message says which, why, and what to do then."""


class NonFiniteError(FloatingPointError):
    """A loss or gradient became infinite or NaN; the message says where."""


class SubsetsDivergedError(NonFiniteError):
    """Networks that were trained on subsets diverged; the message has the subsets' numbers."""

    def __init__(self, subsets: Sequence[int]) -> None:
        names = ", ".join(f"member {number}" for number in subsets)
        super().__init__(f"subsets: {names} diverged")
        self.subsets = tuple(subsets)


class DisagreementError(ArithmeticError):
    """Two ways that must agree do not, or two that must differ agree; the message says which."""


class RankError(RuntimeError):
    """Processes that share a training do not meet any more; the message says who is missing."""


class CompilationError(RuntimeError):
    """A function that cannot be traced or compiled; ``reason`` says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"this function cannot be compiled: {reason}")
        self.reason = reason


def check_whole(setting: str, value: object, least: int, most: int = 2**63 - 1) -> None:
    """Refuse what is not a whole number of at least ``least``, and at most ``most``.

    Beyond 64 bits there is nothing that torch could count.

    Raises:
        SettingError: names the setting.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise SettingError(setting, value, f"a whole number of at least {least} is needed")
    if value > most:
        raise SettingError(setting, value, f"a whole number of at most {most} is needed")
