"""Which classes are taken for which others, over tasks of few classes each.

Axes: N queries of a task, W classes of a task.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from metalearn.errors import check_whole
from metalearn.evaluation.targets import check_sample_targets
from metalearn.signatures import checked

__all__ = ["Confusion", "ConfusionCounts"]

_EXAMPLES = 16  # of a confusion that are remembered


@dataclass(frozen=True)
class Confusion:
    """Queries of one class that were taken for another.

    Attributes:
        true: name of the class of the queries.
        predicted: name of the class that they were taken for.
        count: of such queries.
        chances: queries of the class in tasks where the other class stood beside it.
        examples: (task, query) of some of them.
    """

    true: str
    predicted: str
    count: int
    chances: int
    examples: tuple[tuple[int, int], ...] = field(default=(), compare=False)

    def as_json(self) -> dict[str, Any]:
        """All but the examples."""
        names = ("true", "predicted", "count", "chances")
        return {name: getattr(self, name) for name in names}


class ConfusionCounts:
    """Counts confusions of classes by name, task after task."""

    def __init__(self) -> None:
        self.tasks, self.queries = 0, 0
        self._counts: Counter[tuple[str, str]] = Counter()
        self._examples: dict[tuple[str, str], list[tuple[int, int]]] = {}
        self._seen: list[Counter[str]] = []

    @checked
    def update(self, names: Sequence[str], targets: Tensor, predictions: Tensor) -> None:
        """Add a task.

        Args:
            names: of its W classes.
            targets: classes ``[N]`` of the queries; −100 is padding.
            predictions: classes ``[N]``.

        Raises:
            SettingError: classes that are not in 0..W−1.
        """
        real = targets != -100
        ways = {"samples": int(real.sum()), "classes": len(names)}
        for found in (targets[real], predictions[real]):
            check_sample_targets(found, **ways)
        seen: Counter[str] = Counter(dict.fromkeys(names, 0))
        pairs = zip(targets.tolist(), predictions.tolist())
        for query, (true, predicted) in enumerate(pairs):
            if true < 0:
                continue
            seen[names[true]] += 1
            if true != predicted:
                pair = names[true], names[predicted]
                self._counts[pair] += 1
                kept = self._examples.setdefault(pair, [])
                if len(kept) < _EXAMPLES:
                    kept.append((self.tasks, query))
        self._seen.append(seen)
        self.queries += seen.total()
        self.tasks += 1

    @property
    def errors(self) -> int:
        """Queries that were taken for another class."""
        return self._counts.total()

    def most_frequent(self, count: int) -> list[Confusion]:
        """The most frequent confusions, at most ``count``; of equal ones the likelier first."""
        check_whole("count", count, 1)
        least = min((n for _, n in self._counts.most_common(count)), default=0)
        every = [self._confusion(pair) for pair, n in self._counts.items() if n >= least]
        every.sort(key=lambda c: (-c.count, c.chances, c.true, c.predicted))
        return every[:count]

    def _confusion(self, pair: tuple[str, str]) -> Confusion:
        true, predicted = pair
        chances = sum(seen[true] for seen in self._seen if true in seen and predicted in seen)
        return Confusion(true, predicted, self._counts[pair], chances, tuple(self._examples[pair]))
