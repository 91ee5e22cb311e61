"""Put runs side by side: ``python scripts/compare.py outputs/<run> outputs/<run>``."""

import sys

from metalearn.cli import main

if __name__ == "__main__":
    main(["compare", *sys.argv[1:]])
