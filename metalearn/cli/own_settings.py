"""Settings of a class of one's own on the command line, which no YAML has."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

__all__ = ["add_settings", "added_settings", "typed_words"]

_TARGET = re.compile(r"\+{0,2}(\w+)\._target_=.")

_added: set[str] = set()
"""Words of the command that stand in the place of typed ones."""


def add_settings() -> None:
    """Have ``sys.argv`` as Hydra takes it; `typed_words` gives it back."""
    typed = sys.argv[1:]
    sys.argv[1:] = added_settings(typed)
    _added.clear()
    _added.update({*sys.argv[1:]} - {*typed})


def typed_words() -> list[str]:
    """``sys.argv`` as it was typed."""
    return [word.removeprefix("++") if word in _added else word for word in sys.argv]


def added_settings(arguments: Sequence[str]) -> list[str]:
    """Arguments in which settings of a class that is named among them may be new ones.

    ``model.width=16`` beside ``model._target_=mine.Net`` becomes ``++model.width=16``: Hydra takes
    what the YAML lacks with such signs alone. What the class does not take is refused later.
    """
    named = {found[1] for found in map(_TARGET.match, arguments) if found}
    own = re.compile(rf"({'|'.join(sorted(named))})\.(?!_target_=)[\w.]+=") if named else None
    return [f"++{text}" if own is not None and own.match(text) else text for text in arguments]
