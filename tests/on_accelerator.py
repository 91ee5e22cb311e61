"""The contracts on the accelerator that is here: ``python -m tests.on_accelerator``.

``METALEARN_TEST_DEVICE`` names another device; arguments go to pytest. On a device without float64,
in which most contracts compare, those of trainings are left.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

__all__ = ["main"]

CONTRACTS = Path(__file__).parent / "contracts"
_ALONE = ["test_on_a_card.py", "test_ranks.py"]
"""Have processes and devices of their own."""
_OF_TRAININGS = ["test_host_reads.py", "test_objective_contract.py", "test_trainer_contract.py"]


def main(arguments: list[str]) -> int:
    """The exit status of pytest; 1 where there is no accelerator, after a sentence."""
    named = os.environ.get("METALEARN_TEST_DEVICE")
    if named is None:
        found = torch.accelerator.current_accelerator(check_available=True)
        if found is None:
            print(
                f"torch {torch.__version__} finds no accelerator here (CUDA, MPS or another), "
                "so there is nothing to test on.",
                file=sys.stderr,
            )
            return 1
        named = os.environ["METALEARN_TEST_DEVICE"] = found.type
    import pytest

    from metalearn.core.float64 import has_float64
    from metalearn.tracking.provenance import device_name
    from tests.support.devices import DEVICE

    files = _OF_TRAININGS
    if has_float64(DEVICE):
        files = [path.name for path in sorted(CONTRACTS.glob("test_*.py"))]
    paths = [str(CONTRACTS / name) for name in files if name not in _ALONE]
    print(f"device: {named}, {device_name(DEVICE)}; {len(paths)} files of contracts", flush=True)
    return int(pytest.main(["-q", "-p", "no:cacheprovider", *paths, *arguments]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
