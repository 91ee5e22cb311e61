"""Names in TensorBoard that are one record's alone: two of a name would be one curve that jumps.

Axes: none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from metalearn.tracking.dashboard import shown_as, shown_figure

__all__ = ["Tags", "shown_names"]

_ENDS = ("_low", "_high")


class Tags:
    """Gives each record the name in words that `metalearn.tracking.dashboard` has for it.

    Where that is another's already, as of ``validation/loss`` beside ``validation/nll``, the
    record's own name stands behind it in brackets.

    Args:
        path: JSON lines of a run that goes on, whose numbers keep their names.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._numbers: dict[str, str] = {}
        self._pictures: dict[str, tuple[str, str]] = {}
        self._written: set[str] = set()
        for line in path.read_bytes().splitlines() if path and path.exists() else ():
            with suppress(ValueError, RecursionError):
                record = json.loads(line)
                for name in shown_names(record) if isinstance(record, dict) else ():
                    self._named(name)

    def number(self, name: str) -> str | None:
        """Of a number; None where TensorBoard shows none."""
        tag = self._named(name)
        if tag is not None:
            self._written.add(tag)
        return tag

    def figure(self, name: str) -> str:
        """Of a figure, by the name that it was recorded by."""
        return self._drawn("figure", name, shown_figure(name))

    def distribution(self, name: str) -> str:
        """Of the distribution of a tensor's entries."""
        return self._drawn("distribution", name, shown_figure(name))

    def band(self, tag: str) -> str:
        """Of a figure of a band, whose name is in words."""
        return self._drawn("band", tag, tag)

    def _named(self, name: str) -> str | None:
        tag = shown_as(name)
        if tag is None:
            return None
        while tag in self._pictures or self._numbers.setdefault(tag, name) != name:
            tag = f"{tag} [{name}]"
        return tag

    def _drawn(self, kind: str, name: str, tag: str) -> str:
        while tag in self._written or self._pictures.setdefault(tag, (kind, name)) != (kind, name):
            tag = f"{tag} [{kind}: {name}]"
        return tag


def shown_names(values: Mapping[str, Any]) -> list[str]:
    """Names of the numbers that are no ends of another's band."""
    ends = {name + end for name in values for end in _ENDS}
    return [name for name in values if name not in ends and name not in ("step", "time")]
