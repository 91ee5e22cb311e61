"""Whether a private run is as private as it says: ``python scripts/audit.py run=outputs/<run>``."""

import sys

from metalearn.cli import main

if __name__ == "__main__":
    main(["audit", *sys.argv[1:]])
