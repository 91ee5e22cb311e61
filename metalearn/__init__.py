"""Meta-learning, ensembles and per-sample gradients on ``torch.func``.

What stands here is imported when it is asked for, so that the command line starts at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metalearn.cli.combining import combine
    from metalearn.cli.exported import load_export
    from metalearn.cli.exporting import export
    from metalearn.cli.loading import load
    from metalearn.models import Ensemble

__all__ = ["Ensemble", "combine", "export", "load", "load_export"]

_PLACES = {
    "Ensemble": "metalearn.models",
    "combine": "metalearn.cli.combining",
    "export": "metalearn.cli.exporting",
    "load": "metalearn.cli.loading",
    "load_export": "metalearn.cli.exported",
}
_ROOMS = (
    "attribution",
    "core",
    "data",
    "errors",
    "evaluation",
    "models",
    "tasks",
    "tracking",
    "trainers",
    "types",
)


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    if name in _ROOMS:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ROOMS})
