"""Whether threads may draw from a source of tasks at once: what it says of its own draws."""

from __future__ import annotations

from typing import Any

__all__ = ["threads_may_draw"]

_DRAWS = frozenset({"sample", "training_samples"})
_SAYS = "thread_safe"


def threads_may_draw(source: Any) -> bool:
    """Whether a source says ``thread_safe = True`` of the draws that it has.

    A class that draws in a way of its own says nothing by what it inherits: a subclass of a safe
    source may keep state where that does not, and has to say so anew.

    Args:
        source: of tasks; see `metalearn.types.TaskDistribution`.
    """
    if _SAYS not in getattr(source, "__dict__", {}):
        for kind in type(source).__mro__:
            own = vars(kind)
            if _SAYS in own:
                break
            if own.keys() & _DRAWS:
                return False
    return getattr(source, _SAYS, False) is True
