"""Which training examples made a network: ``python scripts/attribute.py run=outputs/<run>``."""

import sys

from metalearn.cli import main

if __name__ == "__main__":
    main(["attribute", *sys.argv[1:]])
