"""What ``deterministic=true`` asks of torch, for as long as a command runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from omegaconf import DictConfig

from metalearn.errors import SettingError

__all__ = ["determinism"]


@contextmanager
def determinism(config: DictConfig) -> Iterator[None]:
    """Have torch refuse operations whose result may change from call to call, if a run asks so.

    The library plans without a stopwatch and leaves torch's global state alone; a command owns its
    process, and puts that state back.

    Raises:
        SettingError: torch has no other way to an operation.
    """
    if config.get("deterministic", False) is not True:
        yield
        return
    memory: Any = torch.utils.deterministic  # its property is not in its type
    enabled = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    filled = memory.fill_uninitialized_memory
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts
    torch.use_deterministic_algorithms(True)
    memory.fill_uninitialized_memory = False  # all that is read is written
    try:
        yield
    except RuntimeError as error:
        if "torch.use_deterministic_algorithms" not in str(error):
            raise
        reason = str(error).partition(", but you set")[0].partition(". ")[0]
        raise SettingError("deterministic", True, f"false is needed here ({reason})") from error
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warns)
        memory.fill_uninitialized_memory = filled
