"""Torch's own refusals as one sentence with the way out.

Transforms of ``torch.func`` refuse what depends on values (``.item()``, branches, boolean masks),
random draws, in-place writes into tensors without the axis, and operations without a rule of
batching or differentiation. Their errors are known by their words; any other error, such as one
that a loss raises by itself, passes as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from metalearn.errors import SettingError

__all__ = ["RefusalKind", "explaining_refusals", "is_refusal"]

RefusalKind = Literal["forward", "reverse", "level", "transform"]
"""A derivative that an operation lacks in one of the modes; what no transform can take; what vmap
or another transform cannot take."""

_WORDS: dict[RefusalKind, re.Pattern[str]] = {
    "forward": re.compile(
        r"Trying to use forward AD with|must implement the jvp function|ZeroTensors are immutable"
    ),
    "reverse": re.compile(
        r"must implement either the backward or vjp|[Tt]he derivative for '.*not implemented"
        r"|derivative for .* is not implemented|is not differentiable twice|once_differentiable"
    ),
    "level": re.compile(
        r"Cannot access (data pointer|storage) of|functorch transform|override the setup_context"
        r"|saved tensor hooks|batched == nullptr"
    ),
    "transform": re.compile(
        r"\bvmap: |[Bb]atching rule|\bvmap\(|vmapping over|to vmap over|vmap is not possible"
        r"|functorch transform|does not have vmap support|Cannot access data pointer of Tensor"
        r"|Cannot access storage of|data-dependent|within a vmap|inside of vmap|under vmap"
    ),
}


@contextmanager
def explaining_refusals(
    setting: str, value: object, way_out: str, *kinds: RefusalKind
) -> Iterator[None]:
    """Turn what torch refuses inside the block into a sentence, the cause chained.

    Args:
        setting: that made torch work in this way.
        value: which the setting has.
        way_out: what would do instead.
        kinds: which refusals are meant.

    Raises:
        SettingError: torch refused.
    """
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if not any(is_refusal(error, kind) for kind in kinds):
            raise
        sentence = f"torch refuses it ({_said(error)}); {way_out}"
        raise SettingError(setting, value, sentence) from error


def is_refusal(error: BaseException, kind: RefusalKind) -> bool:
    """Whether an error is a refusal of torch of this kind."""
    ours = isinstance(error, SettingError)
    torchs = isinstance(error, RuntimeError | ValueError) and not ours
    return torchs and bool(_WORDS[kind].search(str(error)))


def _said(error: BaseException) -> str:
    """The first sentence of a message."""
    first = (str(error).splitlines() or [""])[0]
    return re.split(r"(?<=[a-z`)\]])\. ", first)[0].rstrip(". ")[:200]
