"""Train a meta-learner: ``python scripts/train.py task=omniglot maml.first_order=true``."""

import sys

from metalearn.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
