"""Words of a command line that are no settings, as the list that one setting takes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NoReturn

from metalearn.errors import SettingError

__all__ = ["with_words"]


class _Unreadable(Exception):
    pass


def with_words(arguments: Sequence[str], setting: str) -> list[str]:
    """The arguments, with ``setting=[word,word]`` in place of the words among them.

    A word has no ``=``, or is the name of something on the disk; so a shell may write out patterns.

    Args:
        arguments: as given.
        setting: that takes the words.

    Raises:
        SettingError: words beside the setting itself.
    """
    from hydra._internal.utils import get_args_parser  # a quarter of a second
    from hydra.core.override_parser.types import Quote, QuotedString

    parser = get_args_parser()
    parser.error = _refuse  # type: ignore[method-assign]
    try:
        given = parser.parse_known_args(list(arguments))[0].overrides
    except _Unreadable:
        return list(arguments)  # of which more is said where they are checked
    words = [word for word in given if "=" not in word or os.path.lexists(word)]
    if not words:
        return list(arguments)
    if any(word.startswith(f"{setting}=") for word in given if word not in words):
        raise SettingError(setting, words, f"folders by themselves, or {setting}=[...], are needed")
    quoted = ",".join(QuotedString(word, Quote.single).with_quotes() for word in words)
    kept = [word for word in given if word not in words]
    return [*_without(arguments, given, parser), *kept, f"{setting}=[{quoted}]"]


def _without(arguments: Sequence[str], given: Sequence[str], parser: Any) -> list[str]:
    """The arguments but for settings and words: options, with values that may look like words."""
    for place in range(len(arguments)):
        if list(arguments[place : place + len(given)]) != given:
            continue
        rest = [*arguments[:place], *arguments[place + len(given) :]]
        try:
            if not parser.parse_known_args(rest)[0].overrides:
                return rest
        except _Unreadable:
            continue
    return [word for word in arguments if word not in given]


def _refuse(message: str) -> NoReturn:
    raise _Unreadable(message)
