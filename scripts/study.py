"""What attribution and hypergradients are good for: ``python scripts/study.py``."""

import sys

from metalearn.cli import main

if __name__ == "__main__":
    main(["study", *sys.argv[1:]])
