"""Gradients and curvature of a trained run: ``python scripts/diagnose.py run=outputs/<run>``."""

import sys

from metalearn.cli import main

if __name__ == "__main__":
    main(["diagnose", *sys.argv[1:]])
