"""What a person typed to call a command."""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["typed"]


def typed(command: str = "") -> str:
    """The words before a command's settings, in texts of ``--help``; of no command, before it."""
    program = Path(sys.argv[0].removesuffix(f" {command}")).name
    if command and program == f"{command}.py":
        return f"python scripts/{program}"
    name = "python -m metalearn" if program == "__main__.py" else "metalearn"
    return f"{name} {command}".rstrip()
