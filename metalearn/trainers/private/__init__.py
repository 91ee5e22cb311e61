"""What trainings under differential privacy share: settings, and what is said of their cost."""
