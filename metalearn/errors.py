"""Errors that a person can act on: one sentence, no traceback needed."""

__all__ = ["DataError", "NonFiniteError", "SettingError"]


class SettingError(ValueError):
    """A setting has a value that cannot work.

    The message names the setting, the value it got and what would be accepted:
    ``way=0: a whole number of at least 2 is needed``.
    """

    def __init__(self, setting: str, value: object, accepted: str) -> None:
        super().__init__(f"{setting}={value!r}: {accepted}")
        self.setting = setting
        self.value = value
        self.accepted = accepted


class DataError(RuntimeError):
    """Data on disk is missing, incomplete or corrupt; the message says which and what to do."""


class NonFiniteError(FloatingPointError):
    """A loss or gradient became infinite or NaN; the message says where."""
