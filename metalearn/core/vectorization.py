"""What vmap cannot take, said in a sentence that names the way out.

Whether a plain loop would take it is not guessed from the error: the loop is tried.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from metalearn.core._functorch import transforms_active
from metalearn.core.memory import is_out_of_memory
from metalearn.errors import DataError, SettingError

__all__ = ["VectorizationError", "no_transform_active", "vectorizing", "vmapped_or_looped"]

T = TypeVar("T")


class VectorizationError(SettingError, RuntimeError):
    """A function that a plain loop can take and vmap cannot; ``reason`` says why."""

    def __init__(self, setting: str, value: object, reason: str, way_out: str) -> None:
        super().__init__(setting, value, f"vmap cannot take this: {reason}; {way_out}")
        self.reason = reason


_REASONS = (
    (r"\.item\(\)|control flow", "it reads a value of a tensor, by .item(), bool() or an if"),
    (r"boolean mask|dynamic shape|data-dependent|nonzero", "a boolean mask or another operation "
     "whose output's shape depends on values; torch.where and weights keep shapes"),
    (r"saved tensor hooks", "hooks on saved tensors, which activation checkpointing sets"),
    (r"setup_context|generate_vmap_rule", "an autograd.Function without setup_context and vmap, "
     "which backward hooks and reentrant checkpointing use"),
    (r"escaped from inside a function|batched == nullptr", "a backward pass reads what vmap has "
     "left, as that of activation checkpointing does"),
)  # fmt: skip
_OF_VMAP = r"vmap|functorch|torch\.func|[Bb]atching rule"


@contextmanager
def vectorizing(
    setting: str, value: object, loop: Callable[[], object], way_out: str = ""
) -> Iterator[None]:
    """Errors of a block that ``loop`` does without become a `VectorizationError`.

    Args:
        setting: what chooses between vmap and the loop, such as ``"engine"``.
        value: what it is; with ``"loop"`` errors stay as they are.
        loop: does the same for one sample or task without vmap; called after an error alone, so
            that it should write to copies.
        way_out: what to do instead; by default the loop.
    """
    if value == "loop":
        yield
        return
    try:
        yield
    except (SettingError, DataError):
        raise
    except Exception as error:
        if is_out_of_memory(error) or not no_transform_active():
            raise
        try:
            loop()
        except Exception as plain:
            if re.search(_OF_VMAP, str(error)):
                raise plain from error  # in the words of the loop
            raise error from None
        way_out = way_out or f"{setting}='loop' can"
        raise VectorizationError(setting, value, _reason(error), way_out) from error


def vmapped_or_looped(vmapped: Callable[..., T], looped: Callable[..., T], *args: Any) -> T:
    """What the first function gives; what the second gives, where vmap cannot take the first."""
    found: list[T] = []
    try:
        with vectorizing("engine", "vmap", lambda: found.append(looped(*args))):
            return vmapped(*args)
    except VectorizationError:
        return found[0] if found else looped(*args)


def no_transform_active() -> bool:
    """Whether no transform of torch.func is under way."""
    return not transforms_active()


def _reason(error: Exception) -> str:
    text = str(error).strip()
    for pattern, reason in _REASONS:
        if re.search(pattern, text):
            return reason
    line = (text.splitlines() or [type(error).__name__])[0]
    return re.split(r"(?<=[a-z)])\. ", line)[0][:160]
