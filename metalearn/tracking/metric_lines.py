"""The lines of ``metrics.jsonl`` that stay when a run goes on.

Axes: none; a step is one outer (meta) step, counted from 0 over all resumptions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metalearn.files import replace_file

__all__ = ["kept_lines"]


def kept_lines(path: Path, resume_step: int | None, again: Sequence[str]) -> list[dict[str, Any]]:
    """Drop torn lines and those after ``resume_step``; return the records that stay."""
    if not path.exists():
        return []
    old = path.read_bytes()
    kept: list[bytes] = []
    records: list[dict[str, Any]] = []
    for line in old.splitlines():
        record = _record(line)
        if record is not None and _stays(record, resume_step, again):
            kept.append(line + b"\n")
            records.append(record)
    new = b"".join(kept)
    if new != old:
        replace_file(path, lambda file: file.write(new))
    return records


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
