"""Meta-learning: adaptation to T tasks, and the gradient of the query loss through it."""
