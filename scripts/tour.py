"""Walk through the mathematics: ``python scripts/tour.py``, ``--list``, or chapters by name."""

import sys

from metalearn.cli import main

if __name__ == "__main__":
    main(["tour", *sys.argv[1:]])
