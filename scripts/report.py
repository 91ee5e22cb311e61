"""Write one page of a run: ``python scripts/report.py run=outputs/<run>``."""

import sys

from metalearn.cli import main

if __name__ == "__main__":
    main(["report", *sys.argv[1:]])
