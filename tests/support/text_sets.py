"""Small tables of texts whose classes are topics."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

__all__ = ["topics", "write_table"]


def topics(classes: int, texts: int, *, words: int = 6, seed: int = 0) -> list[tuple[str, str]]:
    """(label, text) pairs; a text has words of its topic and, as many, of none."""
    draws = np.random.default_rng(seed)
    rows = []
    for c in range(classes):
        own = [f"topic{c}word{i}" for i in range(4)]
        for _ in range(texts):
            chosen = [own[i] for i in draws.integers(0, len(own), words)]
            common = [f"common{i}" for i in draws.integers(0, 20, words)]
            rows.append((f"class{c:02d}", " ".join(draws.permutation(chosen + common))))
    return rows


def write_table(path: Path, rows: list[tuple[str, str]]) -> Path:
    """A CSV of (label, text) pairs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["label", "text"])
        writer.writerows(rows)
    return path
