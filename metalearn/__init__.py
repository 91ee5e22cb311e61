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

    __version__: str

__all__ = ["Ensemble", "__version__", "combine", "export", "load", "load_export"]

_PLACES = {
    "Ensemble": "metalearn.models",
    "combine": "metalearn.cli.combining",
    "export": "metalearn.cli.exporting",
    "load": "metalearn.cli.loading",
    "load_export": "metalearn.cli.exported",
}
_ROOMS = (
    "attribution",
    "auditing",
    "benchmarks",
    "checkpoint",
    "core",
    "data",
    "errors",
    "evaluation",
    "ledger",
    "models",
    "privacy",
    "ranks",
    "studies",
    "tasks",
    "tour",
    "tracking",
    "trainers",
    "types",
)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("torch-metalearn")
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    if name in _ROOMS:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ROOMS})
