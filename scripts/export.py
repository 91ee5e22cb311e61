"""Write a trained run as one file: ``python scripts/export.py run=outputs/<run>``."""

import sys

from metalearn.cli import main

if __name__ == "__main__":
    main(["export", *sys.argv[1:]])
