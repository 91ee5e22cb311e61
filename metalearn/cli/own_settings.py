"""Settings of a class of one's own on the command line, which no YAML has."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["added_settings"]

_TARGET = re.compile(r"\+{0,2}(\w+)\._target_=.")


def added_settings(arguments: Sequence[str]) -> list[str]:
    """Arguments in which settings of a class that is named among them may be new ones.

    ``model.width=16`` beside ``model._target_=mine.Net`` becomes ``++model.width=16``: Hydra takes
    what the YAML lacks with such signs alone. What the class does not take is refused later.
    """
    named = {found[1] for found in map(_TARGET.match, arguments) if found}
    own = re.compile(rf"({'|'.join(sorted(named))})\.(?!_target_=)[\w.]+=") if named else None
    return [f"++{text}" if own is not None and own.match(text) else text for text in arguments]
