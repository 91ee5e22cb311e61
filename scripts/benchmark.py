"""Time meta-gradients against the floor and other libraries: ``python scripts/benchmark.py``."""

import sys

from metalearn.cli import main

if __name__ == "__main__":
    main(["benchmark", *sys.argv[1:]])
