"""The lines of ``metrics.jsonl`` that stay when a run goes on.

Axes: none; a step is one outer (meta) step, counted from 0 over all resumptions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metalearn.files import replace_file

__all__ = ["drop_lines"]


def drop_lines(path: Path, resume_step: int | None, again: Sequence[str]) -> int:
    """Drop torn lines and those after ``resume_step``; return the last step that stays, or 0."""
    if not path.exists():
        return 0
    old = path.read_bytes()
    kept: list[bytes] = []
    last = 0
    for line in old.splitlines():
        record = _record(line)
        if record is not None and _stays(record, resume_step, again):
            kept.append(line + b"\n")
            last = max(last, record["step"])
    new = b"".join(kept)
    if new != old:
        replace_file(path, lambda file: file.write(new))
    return last


def _stays(record: Mapping[str, Any], resume_step: int | None, again: Sequence[str]) -> bool:
    if resume_step is None or record["step"] < resume_step:
        return True
    repeated = any(name.startswith(tuple(again)) for name in record)
    return record["step"] == resume_step and not repeated


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    whole = isinstance(record, dict) and isinstance(record.get("step"), int)
    return record if whole else None
