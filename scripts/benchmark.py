"""Time meta-gradients against the floor and other libraries: ``python scripts/benchmark.py``."""

import hydra
from omegaconf import DictConfig

from metalearn import cli


@hydra.main(version_base="1.3", config_path="../conf", config_name="benchmark")
def main(config: DictConfig) -> None:
    """Compose the configuration and measure."""
    cli.benchmark(config)


if __name__ == "__main__":
    cli.run(main)
