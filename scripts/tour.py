"""Walk through the mathematics: ``python scripts/tour.py``, ``--list``, or chapters by name."""

import sys
from pathlib import Path

sys.path.insert(
    0, str(Path(__file__).resolve().parents[1])
)  # where tests/support/scalar_engine.py is

from metalearn import cli
from tests.support import scalar_engine

if __name__ == "__main__":
    cli.take_tour(sys.argv[1:], engine=scalar_engine)
