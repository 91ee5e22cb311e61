"""Meta-learning, ensembles and per-sample gradients on ``torch.func``."""
