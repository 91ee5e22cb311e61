"""One contestant in a process of its own: ``python -m metalearn.benchmarks.alone W2 batched 5``.

Prints JSON: peak memory above that after the imports and a tiny meta-gradient, and the shorter time
of two runs (of one, where that takes long).
"""

from __future__ import annotations

import json
import resource
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from metalearn.benchmarks.contestants import CONTESTANTS
from metalearn.benchmarks.workloads import WORKLOADS
from metalearn.models import Conv4


def main(workload: str, contestant: str, steps: str) -> None:
    """Measure and print."""
    setting = WORKLOADS[workload]
    tiny = partial(Conv4, (1, 8, 8), 2, filters=2)
    small = replace(setting, make=tiny, input_shape=(1, 8, 8), way=2, tasks=1, steps=1)
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
