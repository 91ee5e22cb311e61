"""Who scores examples, trains and retrains, by quantity."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from metalearn.benchmarks.runs import attribution_methods as ours
from metalearn.benchmarks.runs import attribution_peers as peers
from metalearn.benchmarks.runs import unrolling_peers, written_out
from metalearn.benchmarks.runs.attribution_problem import AttributionProblem
from metalearn.benchmarks.runs.entrants import Entrant, Package, Race
from metalearn.benchmarks.runs.hypergradients import BERGSON

__all__ = ["ATTRIBUTION", "QUANTITIES"]

_DATTRI = Package("dattri", "pip install dattri")
_TRAKER = Package("trak", "pip install traker")

QUANTITIES = {
    "training": "one training",
    "exact": "exact scores",
    "retraining": "retraining of all subsets",
    "influence": "influence, conjugate gradients",
    "kronecker": "influence, Kronecker factors",
    "tracin": "TracIn",
    "trak": "TRAK",
}
"""What is raced, by the entrant of this library that others stand beside."""


def _helpful(gradient: Any) -> Any:
    """Scores in this library's sign, of a gradient with respect to weights."""

    def prepare(problem: AttributionProblem) -> Any:
        run = gradient(problem.written)

        def scores() -> Tensor:
            found: Tensor = -run()
            return found

        return scores

    return prepare


ATTRIBUTION = Race(
    AttributionProblem,
    {
        "training": Entrant("ours", ours.training, "training"),
        "training_loop": Entrant(
            "loop of torch.func", lambda p: written_out.trained(p.written), "training"
        ),
        "training_torch": Entrant(
            "module, backward, torch.optim", lambda p: written_out.torch_training(p.written),
            "training",
        ),
        "exact": Entrant("ours", ours.exact, "exact"),
        "exact_loop": Entrant("loop of torch.func", _helpful(written_out.walked), "exact"),
        "exact_bergson": Entrant(
            "bergson, MAGIC", _helpful(unrolling_peers.bergson), "exact", needs=BERGSON
        ),
        "retraining": Entrant("ours", ours.retraining, "retraining"),
        "retraining_loop": Entrant(
            "loop of torch.func", lambda p: written_out.retrained(p.written, p.weights),
            "retraining",
        ),
        "influence": Entrant("ours", ours.influence, "influence"),
        "influence_dattri": Entrant(
            "dattri", peers.dattri_influence, "influence", needs=_DATTRI
        ),
        "kronecker": Entrant("ours", ours.kronecker, "kronecker"),
        "kronecker_dattri": Entrant(
            "dattri", peers.dattri_kronecker, "kronecker", needs=_DATTRI
        ),
        "tracin": Entrant("ours", ours.tracin, "tracin"),
        "tracin_dattri": Entrant("dattri", peers.dattri_tracin, "tracin", needs=_DATTRI),
        "trak": Entrant("ours", ours.trak, "trak"),
        "trak_seed": Entrant("ours, another seed", partial(ours.trak, seed=1), "trak"),
        "trak_dattri": Entrant("dattri", peers.dattri_trak, "trak", needs=_DATTRI),
        "trak_traker": Entrant("traker", peers.traker, "trak", needs=_TRAKER),
    },
    {
        "steps": 4, "examples": 110, "targets": 3, "subsets": 4, "batch": 10, "hidden": (4,),
        "checkpoints": 2, "projection": 101, "left_out": 0.1,  # traker fails at 100 and below
    },
)  # fmt: skip
"""Entrants of one quantity give the same thing: scores, the targets' logits, or their losses."""
