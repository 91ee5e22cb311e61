"""Trainings on labelled data: their batches, objectives, scores and trainers."""
