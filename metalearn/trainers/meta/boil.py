"""BOIL: body only update in the inner loop; the head stays as it is."""

from __future__ import annotations

from metalearn.trainers.meta.part_learner import PartLearner

__all__ = ["BOIL"]


class BOIL(PartLearner):
    """MAML whose inner loop changes all but the head, in training and in validation.

    With θ = (body ψ, head w): ψ_{k+1} = ψ_k − α·∂L_support(ψ_k, w)/∂ψ, and the outer step descends
    L_query(ψ_K, w) in ψ_0 and w. Arguments and errors are those of `PartLearner`.

    Source: Oh, Yoo, Kim and Yun, "BOIL: Towards Representation Change for Few-shot Learning",
    ICLR 2021.
    """

    adapts_head = False
