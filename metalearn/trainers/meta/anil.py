"""ANIL: almost no inner loop; the head alone adapts."""

from __future__ import annotations

from metalearn.trainers.meta.part_learner import PartLearner

__all__ = ["ANIL"]


class ANIL(PartLearner):
    """MAML whose inner loop changes the head alone, in training and in validation.

    With θ = (body ψ, head w): w_{k+1} = w_k − α·∂L_support(ψ, w_k)/∂w, and the outer step descends
    L_query(ψ, w_K) in ψ and w_0. Of a network that is all head it is MAML. Arguments and errors are
    those of `PartLearner`.

    Source: Raghu, Raghu, Bengio and Vinyals, "Rapid Learning or Feature Reuse? Towards
    Understanding the Effectiveness of MAML", ICLR 2020.
    """

    adapts_head = True
