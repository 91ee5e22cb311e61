"""Trainings of what shapes a training: weights on examples, learning rates, decays, pictures."""
