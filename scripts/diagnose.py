"""Gradients and curvature of a trained run: ``python scripts/diagnose.py run=outputs/<run>``."""

import hydra
from omegaconf import DictConfig

from metalearn import cli


@hydra.main(version_base="1.3", config_path="../conf", config_name="diagnose")
def main(config: DictConfig) -> None:
    """Compose the configuration and diagnose a run."""
    cli.diagnose(config)


if __name__ == "__main__":
    cli.run(main)
