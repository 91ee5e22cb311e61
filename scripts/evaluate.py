"""Score a trained run: ``python scripts/evaluate.py run=outputs/<run>``."""

import hydra
from omegaconf import DictConfig

from metalearn import cli


@hydra.main(version_base="1.3", config_path="../conf", config_name="evaluate")
def main(config: DictConfig) -> None:
    """Compose the configuration and score a run."""
    cli.evaluate(config)


if __name__ == "__main__":
    cli.run(main)
