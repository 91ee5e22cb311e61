"""``python -m metalearn <command> …``, as ``metalearn <command> …``."""

from metalearn.cli import main

if __name__ == "__main__":
    main()
