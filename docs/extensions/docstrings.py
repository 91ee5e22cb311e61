"""Docstrings as they are meant, where autodoc or napoleon read them otherwise."""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx

ALIAS = re.compile(r"TypeAliasForwardRef\('([\w.]+)'\)")
OF_A_TUPLE = re.compile(r"Alias for field number \d+")


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the handlers: one before and one after napoleon's (priority 500)."""
    written: dict[str, list[str]] = {}

    def keep(app: Sphinx, what: str, name: str, _: Any, __: Any, lines: list[str]) -> None:
        if what in ("attribute", "data", "property"):
            written[name] = lines[:]

    def restore(app: Sphinx, what: str, name: str, _: Any, __: Any, lines: list[str]) -> None:
        """Napoleon takes what stands before an attribute's first colon for its type.

        What Python says of a named tuple's fields without a docstring is left out.
        """
        if name in written:
            lines[:] = [line for line in written.pop(name) if not OF_A_TUPLE.fullmatch(line)]

    app.connect("autodoc-process-docstring", keep, priority=400)
    app.connect("autodoc-process-docstring", restore, priority=600)
    app.connect("autodoc-process-signature", named_aliases)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def named_aliases(
    app: Sphinx, what: str, name: str, _: Any, __: Any, given: str | None, returned: str | None
) -> tuple[str | None, str | None]:
    """Aliases inside other types by their names."""
    return tuple(ALIAS.sub(r"\1", part) if part else part for part in (given, returned))
