"""What a person typed to call a command."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NoReturn

from metalearn.errors import SettingError

__all__ = ["OptionParser", "typed"]


class OptionParser(argparse.ArgumentParser):
    """Answers an unknown option with one sentence in place of a page of usage."""

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print."""
        raise SettingError("options", " ".join(sys.argv[1:]), f"{message}; --help lists them")


def typed(command: str = "") -> str:
    """The words before a command's settings, in texts of ``--help``; of no command, before it."""
    program = Path(sys.argv[0].removesuffix(f" {command}")).name
    if command and program == f"{command}.py":
        return f"python scripts/{program}"
    name = "python -m metalearn" if program == "__main__.py" else "metalearn"
    return f"{name} {command}".rstrip()
