"""Meta-learning, ensembles and per-sample gradients on ``torch.func``."""

from metalearn.models import Ensemble

__all__ = ["Ensemble"]
