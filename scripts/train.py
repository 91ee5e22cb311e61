"""Train a meta-learner: ``python scripts/train.py task=omniglot maml.first_order=true``."""

import hydra
from omegaconf import DictConfig

from metalearn import cli


@hydra.main(version_base="1.3", config_path="../conf", config_name="train")
def main(config: DictConfig) -> None:
    """Compose the configuration and train."""
    cli.train(config)


if __name__ == "__main__":
    cli.run(main)
