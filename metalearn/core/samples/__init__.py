"""Per-sample gradients, their norms, clipping and reductions."""
