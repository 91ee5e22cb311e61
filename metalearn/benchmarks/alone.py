"""One contestant in a process of its own: ``python -m metalearn.benchmarks.alone W2 batched 5``.

Prints JSON: peak memory above that after the imports and the first small product, and the time of
one meta-gradient after that.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from metalearn.benchmarks.contestants import CONTESTANTS
from metalearn.benchmarks.workloads import WORKLOADS


def main(workload: str, contestant: str, steps: str) -> None:
    """Measure and print."""
    setting = WORKLOADS[workload]
    small = replace(setting, tasks=1, steps=1)
    CONTESTANTS[contestant].prepare(small, torch.float32)()  # loads what is loaded lazily
    run = CONTESTANTS[contestant].prepare(replace(setting, steps=int(steps)), torch.float32)
    before = _peak()
    start = time.perf_counter()
    run()
    first = time.perf_counter() - start
    memory = _peak() - before
    seconds = first
    if first < 20:
        start = time.perf_counter()
        run()
        seconds = min(first, time.perf_counter() - start)
    print(json.dumps({"memory": memory, "seconds": seconds}))


def _peak() -> int:
    """Peak resident bytes of this process; Linux counts its parent's in ru_maxrss."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    main(*sys.argv[1:])
