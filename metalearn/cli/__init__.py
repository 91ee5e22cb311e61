"""From a configuration to objects to a run: the one room that knows Hydra and OmegaConf.

Names are imported when they are asked for: ``--help`` needs neither torch nor a trainer.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metalearn.cli.combining import combine
    from metalearn.cli.command_line import main
    from metalearn.cli.commands.benchmark import benchmark
    from metalearn.cli.commands.diagnose import diagnose
    from metalearn.cli.commands.evaluate import evaluate
    from metalearn.cli.commands.tour import take_tour
    from metalearn.cli.commands.train import train
    from metalearn.cli.hydra_commands import run
    from metalearn.cli.loading import load, load_ensemble, load_learner, load_module

__all__ = [
    "benchmark",
    "combine",
    "diagnose",
    "evaluate",
    "load",
    "load_ensemble",
    "load_learner",
    "load_module",
    "main",
    "run",
    "take_tour",
    "train",
]

_PLACES = {
    "benchmark": "commands.benchmark",
    "combine": "combining",
    "diagnose": "commands.diagnose",
    "evaluate": "commands.evaluate",
    "load": "loading",
    "load_ensemble": "loading",
    "load_learner": "loading",
    "load_module": "loading",
    "main": "command_line",
    "run": "hydra_commands",
    "take_tour": "commands.tour",
    "train": "commands.train",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
