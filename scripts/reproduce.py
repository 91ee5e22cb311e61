"""Reproduce published results, row by row: ``python scripts/reproduce.py``."""

import sys

from metalearn.cli import main

if __name__ == "__main__":
    main(["reproduce", *sys.argv[1:]])
