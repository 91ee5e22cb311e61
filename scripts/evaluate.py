"""Score a trained run: ``python scripts/evaluate.py run=outputs/<run>``."""

import sys

from metalearn.cli import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
