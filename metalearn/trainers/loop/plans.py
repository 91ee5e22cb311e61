"""What plans of a training may take, and whether a resumed run keeps the one it had."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from metalearn.core.memory import free_memory, parse_bytes, sharers

__all__ = ["keeps", "memory_budget"]

_SHARE_OF_FREE = 0.8


def keeps(plan: Mapping[str, Any], **asked: Any) -> bool:
    """Whether a resumed run can go on with its plan: what was left open then may be asked for now.

    Args:
        plan: what was decided, by setting, and what memory was given then, if that is known.
        asked: the settings of now; ``"auto"`` and None leave it to the plan.
    """
    return all(value in ("auto", None, plan.get(name, value)) for name, value in asked.items())


def memory_budget(
    memory: str | int | None, device: torch.device, *, deterministic: bool
) -> int | None:
    """Bytes that gradients may take: what was given, or a share of what the device has free.

    Ranks of a machine share what it has. None leaves memory out of it: where nothing is known, and
    where plans are to be deterministic.
    """
    if memory is not None:
        return parse_bytes(memory)
    free = None if deterministic else free_memory(device)
    return None if free is None else int(_SHARE_OF_FREE * free / sharers(device))
